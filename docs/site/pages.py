"""The texts of the site by their place in the repository: notebooks, guides, sections, modules, and the report.

Nothing is executed and nothing is listed twice: what lies in a room is on the site, in the order of the file names.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from functools import cache
from pathlib import Path, PurePosixPath

from api import Module, module_page
from links import relink, site_name
from notebooks import Notebook, read_notebook

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {  # folder of notebooks: its name, and the sentence on its own page
    "nbs/teach": ("Course", "Short lessons with live figures and exercises, in the order of reading."),
    "nbs/method": ("Method", "The pages that are the paper, in the order of reading."),
    "nbs/workshop": ("Workshop", "What the method stands on, in the order in which one page leans on another."),
    "nbs/kernels": ("Kernels", "The Triton kernels as lessons, each beside its reference in PyTorch."),
    "nbs/tables": ("Tables", "The paper's tables: the notebook that makes each, and what it gave."),
    "nbs/figures": ("Figures", "The paper's figures: the notebook that makes each, and what it gave."),
    "nbs/extras": ("Extras", "Beside the paper: saliency, initial weights, distillation, what each value is worth."),
}
GUIDES = ("docs/*.md", "kernels/README.md", "benchmarks/results/README.md", "benchmarks/voc_subset/README.md")
REPORT = "report.html"


@cache
def settings() -> dict[str, str]:
    "The project's own settings."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def repository() -> str:
    "Where the code host keeps the repository, such as https://github.com/OWNER/NAME; empty while it is nowhere."
    name = settings()["repository"].strip()
    return f"https://github.com/{name}" if name else ""


def notebooks() -> dict[str, Notebook]:
    "Every notebook by its path in the repository."
    paths = [p.relative_to(ROOT) for p in sorted((ROOT / "nbs").rglob("*.ipynb"))]
    paths = [p for p in paths if not any(part.startswith(".") for part in p.parts)]
    return {p.as_posix(): read_notebook(ROOT / p, p.stem) for p in paths}


def guides() -> dict[str, str]:
    "README and the other pages that are Markdown."
    paths = [ROOT / "README.md", *(p for pattern in GUIDES for p in sorted(ROOT.glob(pattern)))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def room(place: str) -> str:
    "The folder that a page lies in."
    return PurePosixPath(place).parent.as_posix()


def section_page(folder: str, books: Mapping[str, Notebook]) -> str:
    "A room's own page: what lies in it."
    name, sentence = ROOMS[folder]
    lines = [f"- [{b.title}]({PurePosixPath(p).name}): {b.subtitle}" for p, b in books.items() if room(p) == folder]
    return f"# {name}\n\n> {sentence}\n\n" + "\n".join(lines) + "\n"


def notebook_page(place: str, book: Notebook) -> str:
    "Title, how to run it, and the notebook; one that stores nothing ends with what was recorded."
    parts = [f"# {book.title}", f"> {book.subtitle}", run_line(place)]
    if book.parameters and not book.executed:
        up = "../" * place.count("/")
        section = recorded(book, place)
        where = "[at the end of this page](#as-recorded)" if section else f"in [the report]({up}{REPORT})"
        parts += [f"*A long run: this notebook stores no output. What it gave when it was recorded stands {where}.*"]
        parts += [book.body, section]
    else:
        parts += [book.body]
    return "\n\n".join(filter(None, parts)) + "\n"


def run_line(place: str) -> str:
    "Where the notebook can be run, with the line that installs the package there."
    name = PurePosixPath(place).name
    parts = [f"[Download this notebook]({name}){{ download={name} }}"]
    if host := repository():
        path = host.removeprefix("https://")
        owner = path.partition("/")[2]
        parts += [
            f"[Colab](https://colab.research.google.com/github/{owner}/blob/main/{place})",
            f"[Kaggle](https://kaggle.com/kernels/welcome?src={host}/blob/main/{place})",
            f"[Binder](https://mybinder.org/v2/gh/{owner}/main?labpath={place})",
            f'in a first cell there: `%pip install "{settings()["lib_name"]}[lab] @ git+{host}"`',
        ]
    return " · ".join(parts) + "\n{ .run }"


def recorded(book: Notebook, place: str) -> str:
    "The part of docs/results.md that a table or figure has; empty where it has none."
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(book.short)}: .*?(?=^## |\Z)", text, re.S | re.M)
    if not found:
        return ""
    up = "../" * place.count("/")
    body = re.sub(r"(\]\()(?![a-z]+:|#|/)", rf"\1{up}docs/", found[0].partition("\n")[2].strip())
    said = f"From [all results]({up}docs/results.md); [the report]({up}{REPORT}) has every row, its seeds and settings."
    return f"## As recorded\n\n{said}\n\n{body}"


def api_pages(modules: Iterable[Module]) -> dict[str, str]:
    "The package, a page a module."
    host = repository()
    pages = {f"api/{m.name}.md": module_page(m, "../", f"{host}/blob/main/" if host else "") for m in modules}
    lines = [f"- [{m.name}]({m.name}.md): {m.summary}" for m in modules]
    index = "# API\n\n> Every module of the package, and what it exports.\n\n" + "\n".join(lines) + "\n"
    return {"api/index.md": index, **pages}


def report() -> str:
    "One HTML page of all recorded tables, as `wegformer report` writes it of a run."
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import records
    from wegformer.report import write_report

    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name in ("toy", "seeds"):
            run = Path(folder, name)
            run.mkdir()
            for table, content in records.load(name).items():
                if "rows" in content:
                    (run / f"{table}.json").write_text(json.dumps(content), encoding="utf-8")
            runs.append(run)
        return write_report(runs, Path(folder, REPORT)).read_text(encoding="utf-8")


def site_links(texts: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    "The texts under the site's names, with the site's links; and the repository's files that they lead to."
    names = {place: site_name(place) for place in texts}
    known, files = set(names.values()), set()
    pages = {
        names[place]: relink(text, PurePosixPath(place), ROOT, files.add, known.__contains__)
        for place, text in texts.items()
    }
    return pages, files
