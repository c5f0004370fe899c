"""mkdocs asks here for its pages and its navigation; mkdocs.yml names this file."""

import re
from pathlib import Path

import pages
from api import read_modules
from links import site_name
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link, Navigation

PACKAGES = Path(__file__).parent / "node_modules"
SERVED = (  # what the site serves of them
    ("katex/dist", ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js", "fonts/*")),
    ("iframe-worker/shim", ("index.js",)),
)
ALONE = ("README.md", "nbs/index.md", "docs/glossary.md")  # pages that are no part of a section
RESULTS = ("nbs/tables", "nbs/figures", "nbs/extras")  # rooms under one entry of the navigation
LIVE = pages.ROOT / "web/dist"
texts: dict[str, str] = {}  # of the last build, by the site's names


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    "What mkdocs.yml does not repeat."
    config.site_description = pages.settings()["description"]
    config.repo_url = pages.repository() or None
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    "Everything on the site beside its stylesheet and script, and the navigation."
    books, modules = pages.notebooks(), read_modules(pages.ROOT / "wegformer")
    rooms = [folder for folder in pages.ROOMS if any(pages.room(place) == folder for place in books)]
    found = {place: pages.notebook_page(place, book) for place, book in books.items()}
    found |= pages.guides() | {f"{folder}/index.md": pages.section_page(folder, books) for folder in rooms}
    found |= pages.api_pages(modules)
    texts.clear()
    site, linked = pages.site_links(found)
    texts.update(site)

    def add(place: str, **content) -> None:
        files.append(File.generated(config, place, **content))

    for place, text in texts.items():
        add(place, content=text if place not in ALONE else f"---\nhide: [navigation]\n---\n{text}")
    for place, book in books.items():
        add(place, abs_src_path=str(pages.ROOT / place))
        for name, data in book.pictures.items():
            add(f"{pages.room(place)}/{name}", content=data)
    for place in sorted(linked - books.keys() - texts.keys()):
        add(place, abs_src_path=str(pages.ROOT / place))
    for folder, patterns in SERVED:
        for path in (path for pattern in patterns for path in sorted((PACKAGES / folder).glob(pattern))):
            add(f"assets/{path.relative_to(PACKAGES).as_posix()}", abs_src_path=str(path))
    if files.get_file_from_path("assets/katex/dist/katex.min.js") is None:
        raise PluginError("docs/site/node_modules holds no KaTeX, which draws the equations; `make docs` fetches it.")
    for path in sorted(p for p in LIVE.rglob("*") if p.is_file()):
        add(f"live/{path.relative_to(LIVE).as_posix()}", abs_src_path=str(path))
    add(pages.REPORT, content=pages.report())
    config.nav = _navigation(books, rooms, [module.name for module in modules])
    return files


def _navigation(books: dict, rooms: list[str], modules: list[str]) -> list:
    "The order of the site."

    def entries(folder: str) -> list:
        inside = [{b.short: site_name(p)} for p, b in books.items() if pages.room(p) == folder]
        return [f"{folder}/index.md", *inside]

    plain, shown = ([{pages.ROOMS[f][0]: entries(f)} for f in rooms if (f in RESULTS) == own] for own in (False, True))
    guides = [place for place in pages.guides() if place.startswith("docs/")]
    guides = [place for place in guides if place not in ("docs/results.md", "docs/glossary.md")]
    return [
        {"Home": "README.md"},
        {"Tour": "nbs/index.md"},
        *plain,
        {"Results": ["docs/results.md", *shown, {"The records": "benchmarks/results/readme.md"}]},
        {"Guides": [*guides, "benchmarks/voc_subset/readme.md", "kernels/readme.md"]},
        {"API": ["api/index.md", *({name.removeprefix("wegformer."): f"api/{name}.md"} for name in modules)]},
        *([{"Glossary": "docs/glossary.md"}] if "docs/glossary.md" in texts else []),
    ]


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    "Two entries that are no pages of mkdocs."
    results = next(item for item in nav.items if item.title == "Results")
    results.children.append(Link("The report", pages.REPORT))
    results.children[-1].parent = results
    if files.get_file_from_path("live/index.html"):
        nav.items.insert(2, Link("Live in the browser", "live/index.html"))
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    "For readers that are programs: every page as Markdown, and llms.txt, which lists them."
    site = Path(config.site_dir)
    for place, text in texts.items():
        (site / place).write_text(text, encoding="utf-8")
    (site / "404.html").unlink()  # it has to know the host's address, and the site is for any
    (site / "llms.txt").write_text(_llms(config.nav, config.site_name, pages.settings()["description"]), "utf-8")


def _llms(nav: list, name: str, sentence: str) -> str:
    "The index that https://llmstxt.org describes: a title, a sentence, and lists of links with what stands there."

    def line(place: str) -> str:
        head = re.search(r"^# (.+?)(?: \{.*)?$(?:\s*^> (.+)$)?", texts[place], re.M)
        return f"- [{head[1]}]({place})" + (f": {head[2]}" if head[2] else "")

    def places(entry: object) -> list[str]:
        inner = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []
        return [entry] if isinstance(entry, str) else [p for part in inner for p in places(part)]

    single = [e for e in nav if isinstance(next(iter(e.values())), str)]
    parts = [f"# {name}\n\n> {sentence}\n", "\n".join(line(p) for e in single for p in places(e)) + "\n"]
    for entry in nav:
        if entry not in single:
            parts.append(f"## {next(iter(entry))}\n\n" + "\n".join(map(line, places(entry))) + "\n")
    return "\n".join(parts)
