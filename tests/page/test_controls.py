"""The page's controls and what they say where they have little to do; what a look at two sizes costs on average."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.images import encode, gradient
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


async def test_an_empty_model_in_the_address_is_none(page: Page, service: str) -> None:
    await page.goto(f"{service}/?model=")
    await expect(page.locator("#answer")).to_have_text("fox")


async def test_layers_step_by_up_and_down_too_where_they_are_radios(page: Page, service: str) -> None:
    await visit(page, service)
    title = page.locator("#stage-title")
    await page.get_by_role("radio", name="Layer 7,").focus()
    await page.keyboard.press("ArrowDown")
    await expect(title).to_have_text("Layer 8")
    await expect(page.get_by_role("radio", name="Layer 8,")).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await expect(title).to_have_text("Layer 7")
    await page.get_by_role("button", name="Play").focus()
    await page.keyboard.press("ArrowDown")  # scrolls, as everywhere else
    await expect(title).to_have_text("Layer 7")


async def test_looking_again_is_offered_only_where_there_is_a_larger_size(page: Page, service: str) -> None:
    await visit(page, service)
    looks = page.get_by_label("Look again", exact=True)
    size = page.get_by_label("Input", exact=True)
    await expect(looks).to_be_disabled()
    await expect(looks).to_have_attribute("title", re.compile("^112 px is the size of a second look"))
    await page.get_by_role("button", name="balanced").click()
    await expect(looks).to_be_enabled()
    await expect(looks).to_have_value("0.65")
    await expect(looks).to_have_attribute("title", "")
    await size.select_option("126")
    await expect(looks).to_be_disabled()
    await expect(looks).to_have_value("0")
    await size.select_option("70")
    await expect(looks).to_have_value("0.65")
    await page.get_by_text("Compute", exact=True).first.click()
    await expect(looks).to_be_enabled()  # the best size may be a small one


async def test_a_small_image_of_a_type_that_the_service_refuses_is_sent_as_one_it_takes(
    page: Page, service: str
) -> None:
    await visit(page, service)
    for kind, sent in (("GIF", "png"), ("BMP", "png"), ("JPEG", "jpeg"), ("PNG", "png"), ("WebP", "webp")):
        content = encode(gradient(), kind)
        note = "" if kind.lower() == sent else ", sent as its centre square, 448 px"
        async with page.expect_request("**/v1/classify*") as request:
            await page.locator("#file").set_input_files(
                {"name": f"ramp.{kind}", "mimeType": f"image/{kind.lower()}", "buffer": content}
            )
        assert await (await request.value).header_value("Content-Type") == f"image/{sent}"
        await expect(page.locator("#name")).to_have_text(f"ramp.{kind}{note}")
        await expect(page.get_by_role("alert")).to_be_hidden()
