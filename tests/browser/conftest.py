"Chromium, driven by Playwright. A request to another host than the test's own fails the test."

import hashlib
import io
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "docs/site/node_modules/axe-core/axe.min.js"  # the accessibility checker
TIMEOUT = 240_000  # ms; a machine may be busy
WIDTHS = {"laptop": (1400, 900), "phone": (390, 844)}
NAMES = ("chromium", "chromium-browser", "google-chrome")  # as distributions call it


def photograph(size, mode="RGB", seed=0):
    "A picture of nothing, smooth and coloured."
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def file(picture, name, **options):
    "A picture as a file to upload."
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    kind = "image/jpeg" if name.endswith("jpg") else "image/png"
    return dict(name=name, mimeType=kind, buffer=buffer.getvalue())


def shown_pixels(picture):
    "What the pixels of a canvas or an image are, in short."
    address = picture.evaluate("""(e) => {
      if (e.toDataURL) return e.toDataURL();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [e.naturalWidth, e.naturalHeight];
      canvas.getContext("2d").drawImage(e, 0, 0);
      return canvas.toDataURL();
    }""")
    return hashlib.sha256(address.encode()).hexdigest()


def own_requests_alone(address, wrong):
    "A guard for `route`: a request to another address than that is stopped, and written down."

    def guard(route):
        if route.request.url.startswith((address, "blob:", "data:")):
            route.continue_()
        else:
            wrong.append(f"a request to {route.request.url}")
            route.abort()

    return guard


class Quiet(SimpleHTTPRequestHandler):
    "The plainest server there is: files, and no header that a page might lean on."

    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    "The address of a folder's files."
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    "One browser for all tests."
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "Chromium is not installed: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def live_address():
    "The built live page, served."
    dist = ROOT / "web/dist"
    assert (dist / "index.html").is_file(), "web/dist is not built: make web"
    with served(dist) as address:
        yield address


@pytest.fixture
def open_page(chromium, live_address):
    "open_page(**options of a browser context): the live page, ready; errors and foreign requests fail the test."
    contexts, wrong = [], []

    def open_page(**options):
        options = dict(viewport=dict(width=1400, height=900), bypass_csp=True) | options  # tests run code of their own
        contexts.append(chromium.new_context(**options))
        contexts[-1].set_default_timeout(TIMEOUT)
        contexts[-1].route("**/*", own_requests_alone(live_address, wrong))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(live_address)
        page.locator("#status", has_text="its words").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, wrong
