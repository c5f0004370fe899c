"What `make torture` takes for a fault, and what not."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from torture import data_faults, soak, tools  # noqa: E402  (a folder of scripts, not a package that is installed)


def said(text, status=2):
    def work():
        print(text, flush=True)
        return status

    return tools.wrong_refusal(tools.start(work).wait(), "a.jpg")


def test_one_plain_line_that_names_the_file_is_a_refusal():
    assert said("wegformer: a.jpg is broken.") == ""


@pytest.mark.parametrize("text, status, fault", [
    ("wegformer: a.jpg is broken.", 0, "status 0"),
    ("a.jpg is broken.", 2, "status 2"),
    ("wegformer: it is broken.", 2, "does not name a.jpg"),
    ("wegformer: a.jpg\nis broken.", 2, "status 2: is broken."),
    ("wegformer: a.jpg\x1b[31m is broken.", 2, "not one plain line"),
    ("wegformer: a.jpg\nwegformer: a.jpg", 2, "not one plain line"),
    ("Traceback (most recent call last):\nwegformer: a.jpg", 2, "traceback"),
])  # fmt: skip
def test_anything_else_is_none(text, status, fault):
    assert said(text, status).startswith(fault)


def test_an_exception_and_a_signal_are_no_refusals():
    child = tools.start(lambda: 1 // 0).wait()
    assert tools.wrong_refusal(child).startswith("traceback: ZeroDivisionError")
    child = tools.start(lambda: time.sleep(60))
    assert child.kill() and tools.wrong_refusal(child).startswith("ended by signal 9") and not child.kill()


def test_a_process_that_outlives_a_child_is_found():
    def work():
        subprocess.Popen(["sleep", "60"])
        time.sleep(60)

    child = tools.start(work)
    assert child.until(lambda: len(tools._of_session(child.pid)) == 2, 30)
    child.kill(signal.SIGTERM)
    assert len(child.orphans(seconds=0)) == 1
    time.sleep(0.5)
    assert child.orphans(seconds=0) == []


def test_a_child_has_its_limits():
    taken = tools.start(lambda: len(bytearray(1 << 30)) and 0, memory=1 << 28).wait()
    assert "MemoryError" in taken.text
    if os.getuid() == 0:
        assert tools.start(lambda: os.getuid() == tools.NOBODY, nobody=True).wait().status == 1


def test_snapshots_differ_where_results_do(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "stage").mkdir(parents=True)
        (tmp_path / name / "stage/x").write_text("same")
        (tmp_path / name / "stage/done.json").write_text(f'{{"metrics": 1, "seconds": {ord(name)}}}')
    ours, theirs = tools.snapshot(tmp_path / "a"), tools.snapshot(tmp_path / "b")
    assert len(ours) == 2 and tools.difference(ours, theirs) == ""
    (tmp_path / "b/stage/x").write_text("other")
    assert tools.difference(ours, tools.snapshot(tmp_path / "b")) == "stage/x differs"
    (tmp_path / "b/stage/x").unlink()
    assert tools.difference(ours, tools.snapshot(tmp_path / "b")) == "stage/x is too much"


def test_the_valid_folder_is_read_and_a_broken_one_refused(tmp_path):
    root = data_faults.valid(tmp_path / "voc")
    assert data_faults.answer(root) == ("read", "")
    (root / "JPEGImages/p3.jpg").write_bytes(b"")
    assert data_faults.answer(root)[0] == "refused"


@pytest.mark.parametrize("leak, fault", [(0, ""), (1 << 20, "attention: grows by")])
def test_growth_is_seen(leak, fault):
    rows = [(phase, i, 10**9 + leak * i, 9, 1) for phase in ("attention", "labels") for i in range(100)]
    found = soak._fault(rows, 2, soak.GROWTH)
    assert found.startswith(fault) and bool(found) == bool(leak) and soak._fault(rows, 3, 2) == ""
