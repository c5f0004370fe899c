"""Set up .venv: say what is missing before anything is downloaded, then what is fetched and how far it is.

python3 install.py            # what `make setup` runs; only Python's own library is used here
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DISK = 8  # GB: 6.5 stay, the rest is pip's while it unpacks


def missing(
    free: float,  # GB on the disk of the checkout
) -> list[str]:  # a sentence for each thing that set-up would fail for
    "What this machine lacks, with the remedy."
    found = []
    if sys.version_info < (3, 11):  # noqa: UP036 (this script runs before anything has checked it)
        found.append(f"Python is {sys.version.split()[0]}; expected 3.11 or newer: `make PYTHON=python3.11 setup`.")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        found.append("There is no C++ compiler, which pydensecrf2 (dense CRF) is built with: `apt-get install g++`.")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        found.append("Python's headers are missing, which pydensecrf2 is built with: `apt-get install python3-dev`.")
    if free < DISK:
        found.append(f"{free:.1f} GB are free in {ROOT}; expected {DISK} (most of it for torch and CUDA).")
    return found


def say(
    line: str,  # of pip's output
    fetched: list[str],  # packages so far; the line's is added
    total: int,  # packages that constraints.txt lists
) -> str | None:  # what the user sees; None: nothing
    "A line for each large file that pip fetches, for every twentieth package, and for each long silent step."
    step = r"\s*(?:Downloading|Using cached|Processing|Obtaining) (\S+)(?:.*?\((\d[\d.]* .B)\))?"
    if (found := re.match(step, line)) and not found[1].endswith(".metadata"):
        name = "-".join(found[1].rstrip("/").rpartition("/")[2].split("-")[:2])
        if name not in fetched:
            fetched.append(name)
            size, unit = (found[2] or "0 kB").split()
            large = unit == "GB" or unit == "MB" and float(size) > 10
            if large or len(fetched) % 20 == 0:
                return f"[{len(fetched):3} of about {total}] {name}" + (f", {found[2]}" if found[2] else "")
    if line.startswith("Installing collected packages"):
        return "installing (a minute or two)"
    return line.strip() if line.startswith(("Building", "ERROR", "error:")) and "started" not in line else None


def install(python: Path) -> int:
    "pip's exit status; its whole output goes to .venv/install.log."
    total = sum(bool(re.match(r"\w", line)) for line in (ROOT / "constraints.txt").read_text().splitlines())
    command = [python, "-m", "pip", "install", "--progress-bar", "off", "-c", "constraints.txt", "-e", ".[dev]"]
    fetched: list[str] = []
    with (ROOT / ".venv/install.log").open("w") as log:
        pip = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in pip.stdout:
            log.write(line)
            if text := say(line, fetched, total):
                print(text, flush=True)
    return pip.wait()


def main() -> int:
    "0 when the environment is ready, 1 when something is missing or pip failed."
    if lacking := missing(shutil.disk_usage(ROOT).free / 1e9):
        print("Not set up:", *lacking, sep="\n  ", file=sys.stderr)
        return 1
    print("Setting up .venv: about 3 GB to download, 6.5 GB on disk, 2 to 5 minutes.", flush=True)
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        venv.create(ROOT / ".venv", with_pip=True)
    if status := install(python):
        print("pip failed; the last lines of .venv/install.log:", file=sys.stderr)
        print(*(ROOT / ".venv/install.log").read_text().splitlines()[-15:], sep="\n", file=sys.stderr)
        return status
    print("Ready: .venv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
