"Chromium, driven by Playwright. A request to another host than the test's own fails the test."

import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120_000  # ms; a machine may be busy
NAMES = ("chromium", "chromium-browser", "google-chrome")  # as distributions call it


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

    def guard(route):
        if route.request.url.startswith((live_address, "blob:", "data:")):
            route.continue_()
        else:
            wrong.append(f"a request to {route.request.url}")
            route.abort()

    def open_page(**options):
        options = dict(viewport=dict(width=1400, height=900), bypass_csp=True) | options  # tests run code of their own
        contexts.append(chromium.new_context(**options))
        contexts[-1].set_default_timeout(TIMEOUT)
        contexts[-1].route("**/*", guard)
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
