"""One browser and one service for all tests here; a page of its own for each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from tests.page.chromium import ARGUMENTS, find_chromium
from tests.page.service_process import real_service

TIMEOUT_MS = 30_000  # of everything the browser waits for; other work may share the machine


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """The origin of the real service with the bundled model."""
    with real_service() as origin:
        yield origin


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = find_chromium()
    if path is None:
        missing = "NO CHROMIUM: THE WEB PAGE IS NOT TESTED. Run tests/tools.sh as root, or install chromium."
        assert os.environ.get("TEST_REQUIRE_TOOLS") != "1", missing
        pytest.skip(missing)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page in a fresh context, 1280 px wide; at its end no script failed and nothing was asked of another origin."""
    context = await browser.new_context(viewport=ViewportSize(width=1280, height=900), color_scheme="light")
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    page = await context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    origin = page.url.partition("?")[0].split("/static")[0].rstrip("/")
    await context.close()
    assert not errors
    assert asked
    assert [url for url in asked if not url.startswith((f"{origin}/", "data:", f"blob:{origin}/"))] == []
