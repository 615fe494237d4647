"""The page's controls and what they say where they have little to do; what a look at two sizes costs on average."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.page.test_page import slide, visit

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_you_are_here_says_what_two_looks_cost_on_average(page: Page, service: str) -> None:
    manifest = httpx.get(f"{service}/v1/models/cifar100-vits14").raise_for_status().json()
    (row,) = (
        row
        for row in manifest["second_looks"]
        if (row["size_px"], row["again_px"], row["sure"]) == (56, 112, manifest["presets"]["balanced"]["sure"])
    )
    await visit(page, service)
    await page.get_by_role("button", name="balanced").click()
    note = page.locator("#curve-note")
    await expect(note).to_contain_text(
        f"at 56 px, and below 65 % again at 112 px; the average image (ring) {100 * row['macs_ratio']:.1f} %"
    )
    await expect(note).to_contain_text(f"Accuracy there, on held-out images: {100 * row['accuracy']:.1f} %")
    await slide(page, 0.3)  # the table of two looks is at threshold 0
    await expect(note).to_contain_text("The curve is of one look only.")
    await page.get_by_label("Look again", exact=True).select_option("0")
    await expect(note).not_to_contain_text("one look")
