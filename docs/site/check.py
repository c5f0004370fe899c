"""Reads the built site as a browser without a network would: every link leads to a file and an anchor of the site, and
nothing that a page needs lies on another host.

    python docs/site/check.py [site]    # exit status 1 and a line for each finding
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHING = "script img iframe source video audio embed object image use input track".split()  # without being asked
NAMES = "src srcset poster data href xlink:href".split()
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.\-]*:)?//", re.I)
CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    "What one page defines and asks for."

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = {"", "__skip"}  # the theme's link to the content
        self.links: list[str] = []  # where a reader may go
        self.needs: list[str] = []  # what the browser fetches
        self.styled = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.styled = tag == "style"
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and not {"canonical", "prev", "next", "alternate"} & set(given.get("rel", "").split()):
            self.needs.append(given.get("href", ""))
        for name in NAMES if tag in FETCHING else ():
            if name in given:
                parts = given[name].split(",") if name == "srcset" else [given[name]]
                self.needs += [part.split()[0] for part in parts if part.split()]
        self.needs += [a or b for a, b in CSS.findall(given.get("style", ""))]

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        if self.styled:
            self.needs += [a or b for a, b in CSS.findall(data)]

    def handle_endtag(self, tag: str) -> None:
        self.styled = False


def findings(
    site: Path,  # a built site
) -> Iterator[str]:  # a sentence for each thing that is wrong
    "Broken links and parts from other hosts."
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} holds no page: build the site first, with `make docs`."
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for link in page.needs:
            yield from (f"{name}: {said}" for said in _needed(path, link))
        for link in page.links:
            if said := _broken(path, link, pages):
                yield f"{name}: {said}"
    for path in sorted(site.rglob("*.css")):
        for link in (a or b for a, b in CSS.findall(path.read_text(encoding="utf-8"))):
            yield from (f"{path.relative_to(site)}: {said}" for said in _needed(path, link))


def _needed(path: Path, link: str) -> Iterator[str]:
    "A part of a page has to be a file of the site."
    if ELSEWHERE.match(link):
        yield f"fetches {link} from another host"
    elif not link.startswith(("data:", "blob:", "#")):
        if link.startswith("/") or not (path.parent / unquote(urlsplit(link).path)).is_file():
            yield f"needs {link}, which is not a file of the site"


def _broken(path: Path, link: str, pages: dict[Path, Page]) -> str | None:
    "What is wrong with a link to follow; one to another host is the reader's to follow."
    parts = urlsplit(link)
    if parts.scheme or ELSEWHERE.match(link):
        return f"leads to {link}, a file of one machine" if parts.scheme == "file" else None
    if link.startswith("/"):
        return f"leads to {link}, which only exists where the site is the whole host"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        return f"leads to {link}, a folder, which a page that is opened as a file cannot show"
    if not target.is_file():
        return f"leads to {link}, which is not there"
    if target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return f"leads to {link}, and {target.name} has no such anchor"
    return None


if __name__ == "__main__":
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    found = list(findings(site))
    pages = sum(1 for _ in site.rglob("*.html"))
    print(*found or [f"{pages} pages: every link leads somewhere, nothing comes from another host"], sep="\n")
    sys.exit(bool(found))
