"""A notebook as a page of Markdown: as it was executed and stored, nothing is run.

nbconvert's own exporters were tried first. Its HTML brings 0.6 MB of style and a script of another host to every page,
and hides links from mkdocs; as Markdown, a page has the site's look, search and checks.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Notebook:
    "What the site needs of a notebook."

    title: str  # its first heading
    subtitle: str  # the line that begins with >
    body: str  # Markdown below these two
    pictures: dict[str, bytes]  # by file name, which the body refers to
    executed: bool  # whether any output is stored
    parameters: bool  # whether `wegformer reproduce` runs it

    @property
    def short(self) -> str:  # for navigation
        "The title up to its colon."
        return self.title.partition(":")[0]


def read_notebook(
    path: Path,
    folder: str,  # where the page's pictures go, as a relative URL
) -> Notebook:
    "Convert a notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    head = "".join(cells[0]["source"])
    found = re.match(r"# (.+)\n+> (.+)\n*", head)
    if not found:
        raise ValueError(f"{path} has no title with a subtitle: its first cell begins with '# ' and a line with '> '.")
    sources = ["".join(cell["source"]) for cell in cells]
    module = next((m[1] for s in sources if (m := re.match(r"#\| *default_exp (\S+)", s))), "")
    pictures: dict[str, bytes] = {}
    parts = [re.sub(r"^- \w+: .*\n+", "", head[found.end() :])]  # such as "- skip_exec: true", for nbdev alone
    for i, cell in enumerate(cells[1:], 1):
        if cell["cell_type"] == "markdown":
            parts.append(sources[i])
        elif cell["cell_type"] == "code":
            parts.append(_code(sources[i], cell.get("id", f"cell-{i}"), module))
            caption = next(iter(sources[i + 1 : i + 2]), "")
            for j, output in enumerate(cell["outputs"]):
                parts.append(_output(output, f"{folder}/{i:02}_{j}", caption, pictures))
    executed = any(cell.get("outputs") for cell in cells)
    parameters = any("parameters" in cell["metadata"].get("tags", []) for cell in cells)
    return Notebook(found[1], found[2], "\n\n".join(filter(None, parts)), pictures, executed, parameters)


def _code(source: str, anchor: str, module: str) -> str:
    "A code cell; one that is exported says where to."
    exported = re.search(r"^#\| *exports?\b", source, re.M)
    code = DIRECTIVE.sub("", source).strip("\n")
    title = f' title="wegformer/{module.replace(".", "/")}.py"' if exported and module else ""
    return _fence(code, f"{{.python #{anchor}{title}}}") if code else ""


def _fence(text: str, info: str) -> str:
    "A block that its own text cannot end."
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{ticks} {info}\n{text}\n{ticks}"


def _output(output: Mapping[str, Any], name: str, caption: str, pictures: dict[str, bytes]) -> str:
    "One output of a cell: the best of its forms that a page without a kernel can show."
    if output["output_type"] == "stream":
        return _plain(output["text"])
    if output["output_type"] == "error":
        return _plain("\n".join(output["traceback"]))
    data = output["data"]
    if WIDGET in data:
        return "*A live figure: it moves where the notebook is run.*"
    for kind, ending in IMAGES.items():
        if kind in data:
            source = "".join(data[kind])
            file = f"{name}.{ending}"
            pictures[file] = source.encode() if ending == "svg" else base64.b64decode(source)
            return f"![{alternative(caption)}]({file}){{ .output }}"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    if "text/html" in data:
        return f'<div class="output">\n{"".join(data["text/html"])}\n</div>'
    return _plain(data.get("text/plain", ""))


def _plain(text: str | Sequence[str]) -> str:
    text = ANSI.sub("", "".join(text)).rstrip("\n")
    return _fence(text, "{.text .output}") if text.strip() else ""


def alternative(
    caption: str,  # the cell under a figure; in this house a caption is in italics
) -> str:
    "What a reader who does not see the figure is told: its caption's words."
    found = re.match(r"\*(.+?)\*\s*(?:\n\n|$)", caption.strip(), re.S)
    words = re.sub(r"\]\([^)]*\)|[*`$\\\[\]]", "", found[1]) if found else "figure"
    return " ".join(words.split())
