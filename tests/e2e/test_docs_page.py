"""/docs in a real browser: everything is drawn, requests can be sent from it, and none leaves this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.conftest import start_redis
from tests.stack import WebProcess, need

WITHOUT_COMPANY = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebProcess]:
    with start_redis("redis", tmp_path / "redis") as redis, WebProcess(tmp_path / "larder", redis.url) as web:
        yield web


class Visit:
    """An open page and what went on in it: addresses that were asked for, and what the browser complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def send(self, operation: str) -> str:
        """The answer's body, to a request made with the buttons of the page."""
        block = self.page.locator(f"#operations-{operation}")
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
        block.locator(".execute").click()
        answer = block.locator(".live-responses-table .response .highlight-code").first
        answer.wait_for()
        return answer.inner_text()


@pytest.fixture
def visit() -> Iterator[Visit]:
    browser_path = shutil.which("chromium")
    need("chromium", browser_path is not None, "no chromium on PATH")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=list(WITHOUT_COMPANY))
        visit = Visit(browser.new_page(viewport={"width": 1280, "height": 1400}))
        visit.page.set_default_timeout(20_000)
        yield visit
        browser.close()


def test_the_page_draws_every_route_and_sends_requests_here_alone(
    web: WebProcess, visit: Visit, tmp_path: Path
) -> None:
    page = visit.page
    paths = web.http("GET", "/openapi.json").json()["paths"]

    page.goto(f"{web.url}/docs")
    page.wait_for_selector(".opblock")
    page.screenshot(path=tmp_path / "docs.png")

    assert page.locator(".opblock").count() == sum(len(item) for item in paths.values())
    assert page.locator(".info .title").inner_text().startswith("Larder")
    assert "LMCache HTTP API" in visit.send("root-get_root_root")
    assert visit.complaints == []
    assert len(visit.asked) >= 7
    assert [address for address in visit.asked if not address.startswith((web.url + "/", "data:"))] == []


def test_the_page_cannot_be_made_to_ask_elsewhere(web: WebProcess, visit: Visit) -> None:
    """A script in the page has no way out: the browser itself refuses."""
    visit.page.goto(f"{web.url}/docs")
    visit.page.wait_for_selector(".opblock")
    refused = "address => fetch(address).then(() => 'answered', () => 'refused')"

    assert visit.page.evaluate(refused, "/version") == "answered"
    assert visit.page.evaluate(refused, f"http://localhost:{web.url.rpartition(':')[2]}/version") == "refused"
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_the_page_may_what_its_reader_may(web: WebProcess, visit: Visit) -> None:
    """It is of this machine and of our own origin: an admin route refuses for want of an engine, not of rights."""
    visit.page.goto(f"{web.url}/docs")
    visit.page.wait_for_selector(".opblock")

    assert "engine not initialized" in visit.send("cache-post_cache_clear_cache")
