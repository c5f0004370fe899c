"The built site in a browser without a network: it is complete, legible on a laptop and a phone, and accessible."

import pytest
from conftest import AXE, ROOT, TIMEOUT, WIDTHS

SITE = ROOT / "site"
PAGES = ["index.html", "nbs/index.html", "nbs/method/02_rules.html", "nbs/tables/table2.html"]
PAGES += ["api/wegformer.relevance.html", "docs/glossary.html"]

pytestmark = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="site/ is not built: run make docs")


def show(page, path):
    "Go to a page, and wait until its equations are drawn."
    page.goto((SITE / path).as_uri())
    page.wait_for_function("document.querySelectorAll('.arithmatex:not(:has(.katex, .katex-error))').length == 0")


@pytest.fixture
def open_page(chromium):
    "open_page(path, width, scheme): a page of the site; what it asked of a host, or complained of, is in its lists."
    opened = []

    def open_page(path, width="laptop", scheme="light"):
        size = dict(zip(("width", "height"), WIDTHS[width]))
        context = chromium.new_context(viewport=size, color_scheme=scheme, offline=True, reduced_motion="reduce")
        context.set_default_timeout(TIMEOUT)
        opened.append(context)
        page = context.new_page()
        page.fetched, page.errors = [], []
        page.on("request", lambda r: page.fetched.append(r.url))
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        show(page, path)
        return page

    yield open_page
    for context in opened:
        context.close()


@pytest.mark.parametrize("width, scheme", [("laptop", "light"), ("phone", "dark")])
@pytest.mark.parametrize("path", PAGES)
def test_page_is_complete_and_fits(open_page, path, width, scheme):
    page = open_page(path, width, scheme)
    assert page.errors == []
    assert [url for url in page.fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0  # nothing sticks out at the side
    missing = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(missing) == []


def test_every_equation_is_drawn(open_page):
    "On every page: what KaTeX cannot read, it leaves in red."
    written = {p: p.read_text(encoding="utf-8").count('class="arithmatex"') for p in sorted(SITE.rglob("*.html"))}
    page = open_page("index.html")
    assert sum(written.values()) > 0
    for path in filter(written.get, written):
        show(page, path.relative_to(SITE))
        drawn = page.locator(".katex").count(), page.locator(".katex-error").count()
        assert drawn == (written[path], 0), path


@pytest.mark.parametrize("width", WIDTHS)
def test_search_finds_a_page(open_page, width):
    page = open_page("index.html", width)
    if width == "phone":
        page.click("label[for=__search]")
    page.locator(".md-search__input").press_sequentially("soft erase")  # the theme listens to keys
    first = page.locator(".md-search-result__link").first
    first.wait_for(state="visible")
    assert "_soft_erase.html" in first.get_attribute("href")  # the method's page, or the course's
    first.click()
    assert "Soft erase" in page.locator("h1").inner_text()


def test_dark_mode_stays_from_page_to_page(open_page):
    page = open_page("nbs/method/02_rules.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("label[title='Switch to dark mode']")
    dark = page.evaluate(ground)
    assert dark != light
    page.click(".md-footer__link--next")
    page.wait_for_url("**/03_last_block.html")
    assert page.evaluate(ground) == dark


def test_previous_and_next_walk_through_the_method(open_page):
    page = open_page("nbs/method/00_data.html")
    walked = [page.url.rpartition("/")[2]]
    while len(walked) < 11:
        page.click(".md-footer__link--next")
        page.wait_for_url(lambda url: not url.endswith(walked[-1]))
        walked.append(page.url.rpartition("/")[2])
    assert walked == [p.stem + ".html" for p in sorted((ROOT / "nbs/method").glob("*.ipynb"))]


def test_source_link_leads_to_the_cell(open_page):
    page = open_page("api/wegformer.soft_erase.html")
    page.click(".source a")
    page.wait_for_url("**/06_soft_erase.html#*")
    cell = page.url.partition("#")[2]
    assert "def soft_erase" in page.locator(f"[id='{cell}']").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["index.html", "nbs/method/06_soft_erase.html"])
def test_no_serious_finding_of_axe(open_page, path, scheme):
    if not AXE.is_file():
        pytest.skip("axe-core is not there: run make docs")
    page = open_page(path, "laptop", scheme)
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run().then(r => r.violations)")
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["help"], [n["html"][:120] for n in v["nodes"]][:3]) for v in serious] == []
