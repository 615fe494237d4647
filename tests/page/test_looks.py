"""How it looks and whether everyone can use it: three widths, light and dark, axe-core, focus, no unwanted motion."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.images import plain
from tests.page.test_page import visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

WIDTHS_PX = (360, 820, 1280)  # phone, tablet, desktop


async def test_three_widths_light_and_dark_fit_and_have_no_accessibility_violation(
    page: Page, service: str, tmp_path: Path
) -> None:
    """The screenshots stay in pytest's temporary folder: look at them after a change."""
    await visit(page, service)
    await expect(page.locator("#mark")).to_be_visible()
    backgrounds = set()
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width_px in WIDTHS_PX:
            await page.set_viewport_size({"width": width_px, "height": 900})
            assert await page.evaluate("document.documentElement.scrollWidth") == width_px
            found = await Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            file = tmp_path / f"{width_px}-{scheme}.png"
            await page.screenshot(path=file, full_page=True)
            assert file.stat().st_size > 50_000
        backgrounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


async def test_problems_and_paths_have_no_accessibility_violation_either(page: Page, service: str) -> None:
    await visit(page, service)
    await page.locator("#file").set_input_files({"name": "x.txt", "mimeType": "text/plain", "buffer": b"no image"})
    await expect(page.get_by_role("alert")).to_be_visible()
    await page.locator("#depth").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("#path")).to_contain_text("Row 1, column 1")
    found = await Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


async def test_tab_goes_through_everything_in_order_and_the_focus_shows(page: Page, service: str) -> None:
    await visit(page, service)
    focused = """() => {
      const focus = document.activeElement;
      const drawn = focus.matches("input:not([type=range])") ? focus.nextElementSibling : focus;
      const name = focus.id || focus.dataset.name || focus.className || focus.textContent;
      return [name, getComputedStyle(drawn).outlineStyle];
    }"""
    seen: list[str] = []
    while "depth" not in seen and len(seen) < 30:
        await page.keyboard.press("Tab")
        name, outline = await page.evaluate(focused)
        assert outline == "solid", name
        seen.append(name)
    order = [
        "skip",
        "API",
        "metrics",
        "file",
        "fox",
        "pickup_truck",
        "balanced",
        "size",
        "spend",
        "play",
        "tile",
        "depth",
    ]
    at = [seen.index(name) for name in order]
    assert at == sorted(at)


async def test_results_are_announced_and_motion_is_left_out_when_unwanted(page: Page, service: str) -> None:
    await page.emulate_media(reduced_motion="reduce")
    await visit(page, service)
    said = page.locator("#announce")
    assert await said.get_attribute("aria-live") == "polite"
    await expect(said).to_contain_text("fox: fox, 85 %, as at full compute. 59 % of the dense compute, 34 of 64")
    bar = page.locator("#bars .bar").first
    assert await bar.evaluate("(bar) => getComputedStyle(bar, '::before').transitionDuration") == "0s"


async def test_a_long_file_name_widens_nothing(page: Page, service: str) -> None:
    await page.set_viewport_size({"width": 390, "height": 800})
    await visit(page, service)
    name = f"{'0123456789abcdef' * 4}.png"
    await page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": plain()})
    await expect(page.locator("#name")).to_have_text(name)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    await page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": b"no image"})
    await expect(page.get_by_role("alert")).to_contain_text(name)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
