import shutil

import pytest


@pytest.fixture(scope="session")
def chromium():
    "Debian's browser, driven by Playwright."
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make setup)")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no browser: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
