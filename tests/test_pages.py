"The site's own tools: notebooks become pages, links stay links, the package is described, and what is broken is found."

import sys
from pathlib import Path, PurePosixPath

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs/site"), str(ROOT / "benchmarks")]
import api  # noqa: E402  (scripts, not a package)
import check  # noqa: E402
import links  # noqa: E402
import notebooks  # noqa: E402
import pages  # noqa: E402
import records  # noqa: E402

# links


def relinked(text, page="nbs/method/02_rules.ipynb", files=None):
    known = {"nbs/workshop/index.md", "kernels/readme.md", "docs/results.md"}
    return links.relink(text, PurePosixPath(page), ROOT, (set() if files is None else files).add, known.__contains__)


@pytest.mark.parametrize(
    "text, right",
    [
        ("[a](03_last_block.ipynb)", "[a](03_last_block.md)"),
        ("[a](../workshop/07_vit.ipynb#A-Title:-two)", "[a](../workshop/07_vit.md#a-title-two)"),
        ("[`a`](../workshop)", "[`a`](../workshop/index.md)"),
        ("[a](../../kernels/README.md)", "[a](../../kernels/readme.md)"),
        ("[a](../../README.md)", "[a](../../README.md)"),
        ("[a](../../kernels) [b](../../torture)", "[a](../../kernels/readme.md) b"),
        ("[a](#Below)", "[a](#below)"),
        ("[a](https://x.org/b.ipynb)", "[a](https://x.org/b.ipynb)"),
        ("`[a](b.ipynb)`\n\n```python\n[a](b.ipynb)\n```\n", "`[a](b.ipynb)`\n\n```python\n[a](b.ipynb)\n```\n"),
        ("[a](b.ipynb){ download=b.ipynb }", "[a](b.ipynb){ download=b.ipynb }"),
        ('<a href="b.ipynb">', '<a href="b.md">'),
    ],
)
def test_links_lead_to_pages(text, right):
    assert relinked(text) == right


def test_linked_files_come_along():
    files = set()
    relinked("[a](../../CITATION.cff) ![b](../../docs/soak.png) [c](../../docs/results.md)", files=files)
    assert files == {"CITATION.cff", "docs/soak.png"}


# notebooks


@pytest.fixture
def book(tmp_path):
    v4 = nbformat.v4
    shown = [
        v4.new_output("stream", name="stdout", text="```\n\x1b[31mred\x1b[0m"),
        v4.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"}),
        v4.new_output("display_data", {notebooks.WIDGET: {}, "text/plain": "Slider()"}),
        v4.new_output("execute_result", {"text/plain": "3"}),
    ]
    cells = [
        v4.new_markdown_cell("# A title: more\n\n> A subtitle.\n\n- skip_exec: true\n\nThe first words."),
        v4.new_code_cell("#| default_exp kernels.launch"),
        v4.new_code_cell("#| export\nx = 1", id="c0ffee", outputs=shown),
        v4.new_markdown_cell("*Look at `x` and [this](a.md).*\n\nMore."),
        v4.new_code_cell("y = 2", metadata=dict(tags=["parameters"])),
    ]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "book.ipynb")
    return notebooks.read_notebook(tmp_path / "book.ipynb", "book")


def test_a_notebook_becomes_a_page(book):
    assert (book.title, book.short, book.subtitle) == ("A title: more", "A title", "A subtitle.")
    assert book.executed and book.parameters
    assert book.pictures == {"book/02_1.png": b"hi"}
    assert book.body == "\n\n".join(
        [
            "The first words.",
            '``` {.python #c0ffee title="wegformer/kernels/launch.py"}\nx = 1\n```',
            "```` {.text .output}\n```\nred\n````",
            "![Look at x and this.](book/02_1.png){ .output }",
            "*A live figure: it moves where the notebook is run.*",
            "``` {.text .output}\n3\n```",
            "*Look at `x` and [this](a.md).*\n\nMore.",
            book.body.rpartition("\n\n")[2],
        ]
    )


def test_a_notebook_without_a_subtitle_is_refused(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A")]), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match="no title with a subtitle"):
        notebooks.read_notebook(tmp_path / "a.ipynb", "a")


def test_a_table_that_stores_nothing_shows_what_was_recorded():
    path = "nbs/tables/table4.ipynb"
    page = pages.notebook_page(path, notebooks.read_notebook(ROOT / path, "table4"))
    network = next(row for row in records.load("seeds")["table4"]["rows"] if row["name"] == "DeepLab-V3+")
    assert "(#as-recorded)" in page
    assert f"| DeepLab-V3+ | {network['miou']:.1f}" in page.partition("## As recorded")[2]
    sweep = "nbs/extras/sensitivity.ipynb"
    page = pages.notebook_page(sweep, notebooks.read_notebook(ROOT / sweep, "sensitivity"))
    assert "(../../report.html)" in page and "As recorded" not in page


def test_notebooks_can_be_run_where_the_repository_is(monkeypatch):
    assert "Colab" not in pages.run_line("nbs/index.ipynb") or pages.repository()
    monkeypatch.setattr(pages, "settings", lambda: dict(lib_name="wegformer", repository="them/it"))
    line = pages.run_line("nbs/index.ipynb")
    assert "https://colab.research.google.com/github/them/it/blob/main/nbs/index.ipynb" in line
    assert "https://kaggle.com/kernels/welcome?src=https://github.com/them/it/blob/main/nbs/index.ipynb" in line
    assert "https://mybinder.org/v2/gh/them/it/main?labpath=nbs/index.ipynb" in line
    assert '`%pip install "wegformer[lab] @ git+https://github.com/them/it"`' in line


# the package

SOURCE = """"What it is for."
# %% auto #0
__all__ = ["f", "Box", "LIMIT"]

# %% ../nbs/method/01_x.ipynb #aa11
LIMIT: int = 3

# %% ../nbs/method/01_x.ipynb #bb22
def f(
    images: torch.Tensor,  # (B, 3, H, W) with `p` | more
    *,
    kind: str = 'a',  # one of <these>
    plain=None,
) -> int:  # how many
    "Counts."
    return 1  # not a parameter

# %% ../nbs/method/01_x.ipynb #cc33
@dataclass(frozen=True)
class Box:
    "Holds."
    size: float  # pixels
    _seen: int = 0

    def area(self) -> float:
        "Of it."

    def _hidden(self): ...
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/x.py").write_text(SOURCE)
    (module,) = api.read_modules(tmp_path / "pack")
    return api.module_page(module, "../", "https://host/")


def test_the_package_is_described(page):
    assert page.startswith("# pack.x\n\n> What it is for.\n")
    assert 'def f(images: torch.Tensor, *, kind: str = "a", plain=None) -> int\n' in page.replace(
        "='a'", ' = "a"'
    ).replace('kind: str="a"', 'kind: str = "a"')
    assert "| `images` | `torch.Tensor` |  | (B, 3, H, W) with `p` \\| more |" in page
    assert '| `kind` | `str` | `"a"` | one of \\<these\\> |' in page
    assert "| *returns* | `int` |  | how many |" in page and "not a parameter" not in page
    assert "@dataclass(frozen=True)\nclass Box\n" in page and "| `size` | `float` | pixels |" in page
    assert "### Box.area" in page and "_hidden" not in page and "_seen" not in page
    assert "[01_x.ipynb](../nbs/method/01_x.md#bb22), [pack/x.py](https://host/pack/x.py#L9)" in page
    assert "LIMIT: int = 3" in page


def test_every_export_of_the_package_has_its_place():
    for module in api.read_modules(ROOT / "wegformer"):
        text = api.module_page(module, "../", "")
        assert [n for n in module.exported if f"\n## {n} {{ #{n} }}\n" not in text] == [], module.name


# the checker

GOOD = '<link rel="stylesheet" href="a.css"><img src="a.png"><h1 id="top">A</h1><a href="b.html#top">b</a><a href="https://x.org">x</a>'


@pytest.fixture
def site(tmp_path):
    for name, text in {"a.html": GOOD, "b.html": GOOD, "a.css": "p { background: url(a.png) }", "a.png": ""}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_good_site_has_no_findings(site):
    assert list(check.findings(site)) == []


@pytest.mark.parametrize(
    "text, said",
    [
        ('<a href="gone.html">', "leads to gone.html, which is not there"),
        ('<a href="b.html#gone">', "b.html has no such anchor"),
        ('<a href="#gone">', "no such anchor"),
        ('<a href="/b.html">', "the whole host"),
        ('<a href="file:///home/b.html">', "a file of one machine"),
        ('<img src="gone.png">', "needs gone.png"),
        ('<img srcset="a.png 1x, gone.png 2x">', "needs gone.png"),
        ('<script src="https://x.org/a.js"></script>', "fetches https://x.org/a.js from another host"),
        ('<link rel="preconnect" href="//x.org">', "fetches //x.org from another host"),
        ('<style>@import "https://x.org/a.css";</style>', "from another host"),
        ('<p style="background: url(https://x.org/a.png)">', "from another host"),
    ],
)
def test_what_is_broken_is_found(site, text, said):
    (site / "a.html").write_text(GOOD + text)
    (finding,) = check.findings(site)
    assert finding.startswith("a.html: ") and said in finding


def test_a_stylesheet_is_read_too(site):
    (site / "a.css").write_text("@font-face { src: url('https://x.org/a.woff2') } p { background: url(gone.png) }")
    assert len(list(check.findings(site))) == 2


def test_an_empty_folder_is_no_site(tmp_path):
    assert "make docs" in next(check.findings(tmp_path))
