"""`python -m tests.page.screenshot` (`make screenshot`): the README's picture, of the real page with the real model.

python -m tests.page.screenshot --sample fox --threshold 0.5 --out docs/page.png
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page, expect, sync_playwright

from tests.page.chromium import ARGUMENTS, find_chromium
from tests.page.service_process import real_service

WIDTH_PX = 1280
TIMEOUT_MS = 60_000


def main(argv: list[str] | None = None) -> int:
    """Take the picture; returns the exit code."""
    arguments = _parser().parse_args(argv)
    path = find_chromium()
    if path is None:
        print("no Chromium here: run tests/tools.sh as root, or install chromium", file=sys.stderr)
        return 2
    with real_service() as origin, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page(
            viewport={"width": WIDTH_PX, "height": 1200}, color_scheme="dark" if arguments.dark else "light"
        )
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        _show(page, origin, arguments.sample, arguments.threshold)
        shown = page.locator(".three").bounding_box()  # the last row in the picture
        assert shown is not None
        clip: FloatRect = {"x": 0, "y": 0, "width": WIDTH_PX, "height": shown["y"] + shown["height"] + 10}
        picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        browser.close()
    picture.save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    return 0


def _show(page: Page, origin: str, sample: str, threshold: float) -> None:
    """Choose the image and the threshold, and wait until the page has found everything out."""
    page.goto(f"{origin}/")
    expect(page.locator("#answer")).not_to_have_text("–")
    page.locator(f"[data-name={sample}]").click()
    move = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    page.locator("#spend").evaluate(move, threshold)
    settled = f"{sample} threshold {threshold:g} "
    page.locator(f"body[data-surveyed^='{settled}']").wait_for()
    expect(page.locator("#name")).to_have_text(sample.replace("_", " "))
    page.locator("#depth").hover(position={"x": 180, "y": 60})  # a patch's path, outlined in every layer


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser("python -m tests.page.screenshot", description=summary, epilog=rest)
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"), help="the PNG file to write")
    parser.add_argument("--sample", default="fox", help="one of the page's samples")
    parser.add_argument("--threshold", type=float, default=0.5, help="score threshold, 0 to 1 in steps of 0.01")
    parser.add_argument("--dark", action="store_true", help="in the dark colours")
    return parser


if __name__ == "__main__":
    sys.exit(main())
