"The page Troubleshooting: every command it prints is typed, in its order, and does what it says."

import re
import shlex
from pathlib import Path

from wegformer.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs/troubleshooting.md"
COMMANDS = re.findall(r"^wegformer (.+)$", "\n".join(re.findall(r"```\n(.*?)```", PAGE.read_text(), re.S)), re.M)


def test_every_command_of_the_page(tmp_path, monkeypatch, capsys):
    "In one cache: what one of them has made, the next finds."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEGFORMER_CACHE", str(tmp_path / "cache"))
    assert len(COMMANDS) > 10
    said = set()  # the first word of every line
    for command in COMMANDS:
        status, shown = main(shlex.split(command)), capsys.readouterr()
        assert status == 0, (command, shown.err)
        said |= {line.split()[0] for line in shown.out.splitlines() if line.strip()}
    assert (tmp_path / "explain.png").is_file() and list((tmp_path / "tiles").glob("*_overlay.png"))
    assert {"foreground_share", "ignored_share", "images_wholly_ignored"} <= said
