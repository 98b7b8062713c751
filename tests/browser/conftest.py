"""A headless Chromium, and the demo as its own process."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "support"))

from demo_process import DemoProcess  # noqa: E402

WAIT = 180_000  # ms; generous, for machines that have much else to do


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="also write the pictures of the README and the docs there")


@pytest.fixture(scope="session")
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    """Where pictures go, None where none were asked for."""
    folder = request.config.getoption("--screenshots")
    return None if folder is None else Path(folder).resolve()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("These tests need Chromium: `apt-get install chromium`, or set CHROMIUM to its path.")
    graphics = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *graphics, *camera])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    """What `depthvlm demo` serves."""
    command = [sys.executable, "-m", "depthvlm", "demo"]
    process = DemoProcess(tmp_path_factory.mktemp("served"), command)
    yield process
    process.stop()


@pytest.fixture
def page(browser: Browser, server: DemoProcess) -> Iterator[Page]:
    """The page of a new visitor. Fails if it asks another host for anything, or if a script of an upload runs."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme="light")
    context.set_default_timeout(WAIT)
    page = context.new_page()
    wrong: list[str] = []
    page.on("request", lambda request: None if _is_local(request.url, server.url) else wrong.append(request.url))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.goto(server.url)
    page.wait_for_selector("#measure")
    yield page
    context.close()
    assert wrong == []


def _is_local(url: str, own: str) -> bool:
    return url.startswith((own, "data:", "blob:"))
