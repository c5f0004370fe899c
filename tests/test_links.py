"Every relative link of every page leads to a file, and where it names a heading, to a heading that is there."

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".venv", ".git", "runs", "build", "dist", ".ipynb_checkpoints", ".pytest_cache", "node_modules", "site"}
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(?:a|img)[^>]+(?:href|src)=\"([^\"]+)\"")


def pages(*suffixes):
    return sorted(
        p
        for p in ROOT.rglob("*")
        if p.suffix in suffixes and p.is_file() and not SKIPPED & set(p.relative_to(ROOT).parts)
    )


def prose(page):
    "The page's markdown without its code."
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def headings(page):
    "The anchors of a page's headings, as GitHub makes them and as Jupyter does."
    titles = re.findall(r"^#+ +(.+?) *#*$", prose(page), flags=re.M)
    github = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return github | {title.replace(" ", "-") for title in titles}


def dead(page):
    "The links of a page that lead nowhere."
    found = []
    for match in LINK.finditer(prose(page)):
        link = unquote(match[1] or match[2])
        if re.match(r"[a-z][a-z0-9+.\-]*:|//", link, flags=re.I):  # another place: https, mailto, data
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists():
            found.append(link)
        elif anchor and target.suffix in (".md", ".ipynb") and anchor not in headings(target):
            found.append(link)
    return found


@pytest.mark.parametrize("page", pages(".ipynb", ".md"), ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    assert dead(page) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "here.md").write_text("# One thing\n\n## The second: *two*\n")
    (tmp_path / "page.md").write_text(
        "[a](here.md) [b](gone.md) [c](here.md#the-second-two) [d](here.md#third)\n"
        "[e](https://x.org/gone.md) `[f](no.md)`\n"
        '<img src="gone.png"> ![g](gone.svg "title")\n\n```\n[h](code.md)\n```\n'
    )
    assert dead(tmp_path / "page.md") == ["gone.md", "here.md#third", "gone.png", "gone.svg"]
