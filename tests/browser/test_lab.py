"JupyterLab in Chromium: chapters of the course run; their figures follow a slider, a click and one's own picture."

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import AXE, ROOT, TIMEOUT, WIDTHS, file, own_requests_alone, photograph, shown_pixels
from playwright.sync_api import expect

from wegformer.live.labels import workbench
from wegformer.live.samples import toy_album

CHAPTERS = ["01_vit", "05_soft_erase", "07_label_rule"]  # a click on the picture; a slider and an upload; the brush
SETTINGS = {  # as a user who has answered the first questions: no news is fetched
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"adaptive-theme": True},  # light or dark as the system is
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are there, too
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with nobody's settings, at copies of the chapters: its address, with the token."
    home = tmp_path_factory.mktemp("lab")
    (home / "book").mkdir()
    for name in CHAPTERS:
        shutil.copy(ROOT / f"nbs/teach/{name}.ipynb", home / "book")
    for name, values in SETTINGS.items():
        path = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    names = dict(CONFIG="config", RUNTIME="runtime", DATA="data")
    env = os.environ | {f"JUPYTER_{k}_DIR": str(home / v) for k, v in names.items()}
    env |= {f"JUPYTERLAB_{k}_DIR": str(home / k.lower()) for k in ("SETTINGS", "WORKSPACES")}
    env |= dict(OMP_NUM_THREADS="1", IPYTHONDIR=str(home / "ipython"))
    env.pop("WEGFORMER_STATIC", None)  # which would show still pictures
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={home / 'book'}", "--LabApp.news_url=None"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
    try:
        end = time.monotonic() + TIMEOUT / 1000
        about = ""  # the file may be seen half written
        while not about.rstrip().endswith("}"):
            assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()
            time.sleep(0.2)
            about = "".join(p.read_text() for p in (home / "runtime").glob("jpserver-*.json"))
        about = json.loads(about)
        yield about["url"], about["token"]
    finally:
        server.terminate()  # its kernels go with it
        server.wait(60)


@pytest.fixture(scope="module")
def run_chapter(chromium, lab):
    "run_chapter(name): a page of JupyterLab in which all cells of a chapter have run; each chapter runs once."
    (address, token), pages, contexts, wrong = lab, {}, [], []

    def run_chapter(name):
        if name not in pages:
            contexts.append(chromium.new_context(viewport=dict(zip(("width", "height"), WIDTHS["laptop"]))))
            contexts[-1].set_default_timeout(TIMEOUT)
            contexts[-1].route("**/*", own_requests_alone(address, wrong))
            page = contexts[-1].new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(f"{address}lab/workspaces/{name}/tree/{name}.ipynb?token={token}")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            page.get_by_text("| Idle").wait_for()  # the kernel is there
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            last = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
            last.filter(has_text=re.compile(r"\[\d+\]:")).wait_for()
            pages[name] = page
        assert not wrong, wrong
        return pages[name]

    yield run_chapter
    for context in contexts:
        context.close()
    assert not wrong, wrong


class Figure:
    "The first live figure of a notebook."

    def __init__(self, page):
        self.page = page
        self.box = page.locator(".jp-OutputArea-child", has=page.get_by_role("status")).first
        self.box.scroll_into_view_if_needed()
        self.picture, self.status = self.box.locator("img"), self.box.get_by_role("status")
        self.picture.wait_for()

    def now(self):
        "(pixels in short, words)"
        return shown_pixels(self.picture), self.status.inner_text()

    def changed(self, before):
        "What it shows once the words are others than they were; the picture's text is the same words."
        expect(self.status).not_to_have_text(before[1], timeout=TIMEOUT)
        self.settled()
        after = self.now()
        assert after[0] != before[0], "the words changed, the picture did not"
        return after

    def settled(self):
        "Waits until the picture is that of the words."
        expect(self.picture).to_have_attribute("alt", self.status.inner_text(), timeout=TIMEOUT)
        self.picture.evaluate("""async (img) => {  // a picture that is replaced meanwhile is not decoded
          for (let src = null; src !== img.src;) { src = img.src; await img.decode().catch(() => { src = null; }); }
        }""")

    def at_rest(self, before):
        "What it shows once it has changed, and stays so for a second: a stroke is drawn while it grows."
        expect(self.status).not_to_have_text(before[1], timeout=TIMEOUT)
        words = None
        while not words == self.status.inner_text() == self.picture.get_attribute("alt"):
            words = self.status.inner_text()
            self.page.wait_for_timeout(1000)
        self.settled()
        after = self.now()
        assert after[0] != before[0], "the words changed, the picture did not"
        return after

    def is_again(self, before):
        "Waits until it shows what it showed before."
        expect(self.status).to_have_text(before[1], timeout=TIMEOUT)
        self.settled()
        assert self.now() == before

    def knob(self, label):
        return self.box.locator(".widget-inline-hbox", has=self.page.get_by_text(label, exact=True))


def test_a_chapter_runs_without_an_error(run_chapter):
    for name in CHAPTERS:
        page = run_chapter(name)
        cells = json.loads((ROOT / f"nbs/teach/{name}.ipynb").read_text())["cells"]
        code = [c for c in cells if c["cell_type"] == "code"]
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        assert prompts == [f"[{k + 1}]:" for k in range(len(code))]
        assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
        assert page.get_by_text("Not answered yet.").count() >= 3  # its exercises wait


def test_a_slider_moves_the_figure(run_chapter):
    figure = Figure(run_chapter("05_soft_erase"))
    start = figure.now()
    slider = figure.knob("S_r")
    assert slider.locator(".widget-readout").inner_text() == "0.55"
    slider.get_by_role("slider").focus()
    figure.page.keyboard.press("ArrowRight")
    moved = figure.changed(start)
    assert slider.locator(".widget-readout").inner_text() == "0.60"
    figure.knob("stretch to 1 again").locator("input").uncheck()
    figure.changed(moved)
    figure.knob("stretch to 1 again").locator("input").check()
    figure.page.keyboard.press("Tab")
    slider.get_by_role("slider").focus()
    figure.page.keyboard.press("ArrowLeft")
    figure.is_again(start)
    assert slider.locator(".widget-readout").inner_text() == "0.55"


def test_a_picture_of_ones_own_is_taken_and_a_text_file_refused(run_chapter):
    figure = Figure(run_chapter("05_soft_erase"))
    before, menu = figure.now(), figure.knob("picture").locator("select")
    options = menu.locator("option").count()

    def upload(named):
        with figure.page.expect_file_chooser() as chooser:
            figure.box.get_by_role("button", name="your own picture").click()
        chooser.value.set_files(named)

    upload(file(photograph((160, 100)), "mine.png", format="PNG"))
    own = figure.changed(before)
    assert menu.locator("option").count() == options + 1
    assert menu.locator("option:checked").inner_text() == "mine.png"
    upload(dict(name="notes.txt", mimeType="text/plain", buffer=b"no picture"))
    figure.status.filter(has_text="notes.txt").wait_for()
    assert figure.now()[0] == own[0] and menu.locator("option").count() == options + 1
    menu.select_option(index=0)
    figure.is_again(before)


def test_a_click_on_the_picture_moves_two_sliders(run_chapter):
    figure = Figure(run_chapter("01_vit"))
    before, box = figure.now(), figure.picture.bounding_box()
    places = [figure.knob(name).locator(".widget-readout") for name in ("across, %", "down, %")]
    assert [place.inner_text() for place in places] == ["40", "40"]
    found = []
    for share in (0.04, 0.08):  # of the figure's width: both are on the photograph, the first panel
        figure.page.mouse.click(box["x"] + share * box["width"], box["y"] + 0.3 * box["height"])
        before = figure.changed(before)
        found.append([int(place.inner_text()) for place in places])
    (near, down), (far, same) = found
    assert down == same and 5 <= near and abs(far - 2 * near) <= 2


def test_the_brush_paints_stroke_by_stroke_and_is_wiped_off(run_chapter):
    figure, drawn = Figure(run_chapter("07_label_rule")), workbench(toy_album(start_block=0)).drawn()
    start, box = figure.now(), figure.picture.bounding_box()
    left, top, right, bottom = drawn.target.box  # of the saliency's panel, in pixels of the page
    scale = box["width"] / drawn.page.shape[1]

    def drag(down):
        "A line across the panel, at a share of its height."
        y = box["y"] + scale * (top + down * (bottom - top))
        xs = [box["x"] + scale * (left + share * (right - left)) for share in (0.1, 0.9)]
        figure.page.mouse.move(xs[0], y)
        figure.page.mouse.down()
        figure.page.mouse.move(xs[1], y, steps=8)
        figure.page.mouse.up()

    drag(0.2)
    first = figure.at_rest(start)
    drag(0.8)
    figure.at_rest(first)
    figure.page.mouse.move(0, 0)
    figure.box.get_by_role("button", name="wipe the brush's saliency off").click()
    figure.is_again(start)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_figures_fit_and_are_accessible(run_chapter, tmp_path, width, scheme):
    page = run_chapter("05_soft_erase")
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width])))
    page.emulate_media(color_scheme=scheme)
    page.locator(f"body[data-jp-theme-light={'true' if scheme == 'light' else 'false'}]").wait_for(state="attached")
    if width == "phone":
        page.keyboard.press("Control+b")  # the list of files away
        expect(page.locator(".jp-FileBrowser")).to_be_hidden(timeout=TIMEOUT)
    figure = Figure(page)
    page.screenshot(path=tmp_path / f"lab_{width}_{scheme}.png")
    print(f"screenshot: {tmp_path}/lab_{width}_{scheme}.png")
    inside, around = figure.picture.bounding_box(), figure.box.bounding_box()
    assert inside["x"] + inside["width"] <= around["x"] + around["width"] + 1
    assert inside["width"] >= (900 if width == "laptop" else 200)  # beside the list of files; a phone has less
    if width == "phone":
        page.keyboard.press("Control+b")
    page.evaluate(AXE.read_text())
    figure.box.evaluate("(e) => e.setAttribute('data-tested', '')")
    found = page.evaluate("() => axe.run('[data-tested]').then((r) => r.violations)")
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["help"], [n["html"][:160] for n in v["nodes"]][:3]) for v in serious] == []
