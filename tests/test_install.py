"Set-up names what is missing before it downloads, and says what it fetches."

import importlib.util
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("install", Path(__file__).parents[1] / "install.py")
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


def test_nothing_is_missing_here():
    assert install.missing(free=100) == []


def test_a_full_disk_is_named():
    assert install.missing(free=2.5) == [
        f"2.5 GB are free in {install.ROOT}; expected 8 (most of it for torch and CUDA)."
    ]


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(which=lambda name: None), "no C++ compiler"),
        (dict(headers="/nowhere"), "headers"),
        (dict(python=(3, 10)), "3.11 or newer"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(monkeypatch, change, said):
    if "which" in change:
        monkeypatch.setattr(install.shutil, "which", change["which"])
    if "headers" in change:
        monkeypatch.setattr(install.sysconfig, "get_paths", lambda: dict(include=change["headers"]))
    if "python" in change:
        monkeypatch.setattr(sys, "version_info", change["python"])
    found = install.missing(free=100)
    assert len(found) == 1 and said in found[0]


def test_nothing_is_fetched_where_something_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(install, "missing", lambda free: ["a thing"])
    monkeypatch.setattr(install, "install", lambda python: pytest.fail("pip was called"))
    assert install.main() == 1 and "a thing" in capsys.readouterr().err


def test_large_files_and_every_twentieth_package_are_said():
    fetched = []
    assert (
        install.say("  Downloading torch-2.14.1-cp311-x.whl (889.1 MB)\n", fetched, 188)
        == "[  1 of about 188] torch-2.14.1, 889.1 MB"
    )
    assert install.say("  Downloading torch-2.14.1-cp311-x.whl.metadata (28 kB)\n", fetched, 188) is None
    said = [install.say(f"  Downloading p{i}-1.0-py3-none-any.whl (3 kB)\n", fetched, 188) for i in range(19)]
    assert said[:18] == [None] * 18 and said[18] == "[ 20 of about 188] p18-1.0, 3 kB"
    assert install.say("Installing collected packages: a, b\n", fetched, 188) == "installing (a minute or two)"
