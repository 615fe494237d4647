"""What a visitor does: look, pick an image, move the slider, step through layers. Numbers are those of the API."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Any

import httpx
import pytest
from playwright.async_api import Error, Page, Route, expect

from tests.page.service_process import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLES = ROOT / "service" / "static" / "samples"
KEPT, AGAIN, GONE = range(3)

# A file as a browser hands it to a drop or a paste.
_TRANSFER = """async ([kind, url, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([await (await fetch(url)).blob()], name, { type: "image/png" }));
  const data = { dataTransfer: transfer, clipboardData: transfer, bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === "drop" ? new DragEvent("drop", data) : new ClipboardEvent("paste", data));
}"""


def answer(service: str, sample: str, **query: Any) -> dict[str, Any]:
    """What the API says of a sample."""
    image = (SAMPLES / f"{sample}.png").read_bytes()
    response = httpx.post(f"{service}/v1/classify", params={"explain": "mask", **query}, content=image)
    (result,) = response.raise_for_status().json()["results"]
    return dict(result)


async def visit(page: Page, service: str) -> None:
    """Open the page and wait for the first image's answer."""
    await page.goto(f"{service}/")
    await expect(page.locator("#answer")).to_have_text("fox")


async def slide(page: Page, value: float) -> None:
    move = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
    await page.locator("#spend").evaluate(move, value)


async def shows(page: Page, result: dict[str, Any]) -> None:
    """The page shows this answer: label, probability, compute and patches."""
    best, macs, skipped = result["predictions"][0], result["macs"], result["skipped_patches"]
    await expect(page.locator("#patches")).to_have_text(f"{skipped['mean']:.1f} of {skipped['patches']}")
    await expect(page.locator("#macs")).to_have_text(f"{100 * macs['ratio']:.1f} %")
    await expect(page.locator("#answer")).to_have_text(best["label"].replace("_", " "))
    await expect(page.locator("#answer-note")).to_contain_text(f"{100 * best['probability']:.1f} %")


def states(mask: list[list[int]], gated: int) -> list[list[int]]:
    """Of each gated layer and patch: computed; idle, computed again later; idle from here on."""

    def state(layer: int, patch: int) -> int:
        if mask[layer][patch]:
            return KEPT
        return AGAIN if any(mask[later][patch] for later in range(layer + 1, gated)) else GONE

    return [[state(layer, patch) for patch in range(len(mask[layer]))] for layer in range(gated)]


async def test_the_first_look_is_an_image_its_layers_its_answer_and_its_cost(page: Page, service: str) -> None:
    await visit(page, service)
    result, full = answer(service, "fox", threshold=0.5), answer(service, "fox", threshold=0)
    await shows(page, result)
    await expect(page.locator("#model")).to_contain_text("cifar100-vits14")
    await expect(page.locator("#status")).to_have_text("ready")
    tiles = page.get_by_role("radiogroup", name="Layers").get_by_role("radio")
    names = [await tile.get_attribute("aria-label") for tile in await tiles.all()]
    skipped = result["skipped_patches"]["per_layer"]
    assert names[:-1] == [f"Layer {layer}, {64 - skipped[layer]} of 64 patches computed" for layer in range(11)]
    assert names[-1] == "Layer 11, no gate"
    rows = page.locator("#bars tr")
    await expect(rows).to_have_count(5)
    shown = [f"{100 * one['predictions'][0]['probability']:.1f} %" for one in (result, full)]
    await expect(rows.first.locator("td")).to_have_text(shown)


async def test_the_picture_blacks_out_and_tints_the_patches_that_the_mask_names(page: Page, service: str) -> None:
    await visit(page, service)
    await page.get_by_role("radio", name="Layer 4,").click()
    await expect(page.locator("#stage-title")).to_have_text("Layer 4")
    expected = states(answer(service, "fox", threshold=0.5)["mask"], 11)[4]
    assert {KEPT, AGAIN, GONE} == set(expected)
    centres = await page.locator("#stage").evaluate(
        """(canvas) => Array.from({ length: 64 }, (_, patch) => {
          const [x, y] = [(patch % 8) * 70 + 35, Math.floor(patch / 8) * 70 + 35];
          return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
        })"""
    )
    for state, (red, green, blue, _) in zip(expected, centres, strict=True):
        assert ((red, green, blue) == (0, 0, 0)) == (state == GONE)
        if state == AGAIN:  # 0.3 of the image under purple
            assert min(red, blue) > green + 30


async def test_an_image_comes_by_file_drop_paste_and_sample(page: Page, service: str) -> None:
    await visit(page, service)
    await page.get_by_label("Choose an image").set_input_files(SAMPLES / "snake.png")
    await shows(page, answer(service, "snake", threshold=0.5))
    await expect(page.locator("#name")).to_have_text("snake.png")
    await page.get_by_role("button", name="sunflower").click()
    await shows(page, answer(service, "sunflower", threshold=0.5))
    await expect(page.locator("#name")).to_have_text("sunflower")
    for way, sample in (("drop", "tiger"), ("paste", "maple_tree")):
        await page.evaluate(_TRANSFER, [way, f"static/samples/{sample}.png", f"{sample}.png"])
        await shows(page, answer(service, sample, threshold=0.5))
        await expect(page.locator("#name")).to_have_text(f"{sample}.png".replace("_", " "))


async def test_what_was_chosen_last_is_shown_whichever_answer_comes_last(page: Page, service: str) -> None:
    await visit(page, service)
    held, let_go = asyncio.Event(), asyncio.Event()

    async def hold_the_first(route: Route) -> None:
        if not held.is_set():
            held.set()
            await let_go.wait()
        with suppress(Error):  # nobody waits for it any more
            await route.continue_()

    await page.route(re.compile("/v1/classify"), hold_the_first)
    await page.get_by_role("button", name="snake").click()
    await held.wait()
    await page.get_by_role("button", name="tiger").click()
    await shows(page, answer(service, "tiger", threshold=0.5))
    let_go.set()
    await expect(page.locator("body")).to_have_attribute("data-surveyed", re.compile("tiger"))
    await expect(page.locator("#name")).to_have_text("tiger")
    await expect(page.get_by_role("button", name="tiger")).to_have_attribute("aria-pressed", "true")
    await expect(page.get_by_role("alert")).to_be_hidden()


async def test_a_large_photo_is_sent_as_its_centre_square(page: Page, service: str) -> None:
    await visit(page, service)
    sent = await page.evaluate(
        """async () => {
          const noise = Uint8ClampedArray.from({ length: 4 * 1200 * 800 }, () => 256 * Math.random());
          const canvas = new OffscreenCanvas(1200, 800);
          canvas.getContext("2d").putImageData(new ImageData(noise, 1200, 800), 0, 0);
          const file = new File([await canvas.convertToBlob()], "noise.png", { type: "image/png" });
          const transfer = new DataTransfer();
          transfer.items.add(file);
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
          const { blob } = await (await import("/static/picture.js")).prepare(file);
          return { size: (await createImageBitmap(blob)).width, type: blob.type, share: blob.size / file.size };
        }"""
    )
    assert (sent["size"], sent["type"]) == (448, "image/png")
    assert sent["share"] < 0.4
    note = re.compile(r"noise\.png, sent as its centre square, 448 px, \d+ of \d+ kB")
    await expect(page.locator("#name")).to_have_text(note)


async def test_the_slider_moves_the_answer_by_mouse_and_by_keyboard(page: Page, service: str) -> None:
    await visit(page, service)
    await slide(page, 0.8)
    await shows(page, answer(service, "fox", threshold=0.8))
    await page.locator("#spend").press("Home")
    await shows(page, full := answer(service, "fox", threshold=0))
    assert full["skipped_patches"]["mean"] == 0
    await expect(page.locator("#answer-note")).to_contain_text("same as at full compute")
    await page.locator("#spend").press("End")
    await shows(page, least := answer(service, "fox", threshold=1))
    assert least["predictions"][0]["label"] != "fox"
    await expect(page.locator("#answer-note")).to_contain_text("full compute says fox")
    await page.locator("#spend").press("ArrowLeft")
    await shows(page, answer(service, "fox", threshold=0.99))


async def test_compute_sizes_and_presets_steer_too(page: Page, service: str) -> None:
    await visit(page, service)
    await page.get_by_text("Compute", exact=True).first.click()
    await shows(page, answer(service, "fox", compute=0.5))
    await page.get_by_label("Input", exact=True).select_option("84")
    await shows(page, answer(service, "fox", compute=0.5, size=84))
    await slide(page, 0.3)
    await shows(page, answer(service, "fox", compute=0.3, size=84))
    await page.get_by_role("button", name="economy").click()
    await shows(page, answer(service, "fox", preset="economy"))
    await expect(page.get_by_role("button", name="economy")).to_have_attribute("aria-pressed", "true")
    looks = page.get_by_label("Look again", exact=True)
    assert await looks.input_value() == "0.5"
    await page.get_by_label("Input", exact=True).select_option("70")
    await shows(page, answer(service, "fox", threshold=0, size=70, sure=0.5))
    await expect(page.get_by_role("button", name="economy")).to_have_attribute("aria-pressed", "false")
    await looks.select_option("0")
    await shows(page, answer(service, "fox", threshold=0, size=70))
    await page.get_by_label("Input", exact=True).select_option("126")
    await shows(page, answer(service, "fox", threshold=0, size=126))
    await expect(page.locator("#macs-note")).to_contain_text("27.0 % more, for the larger input")


async def test_a_second_look_is_shown_with_the_first_and_its_cost(page: Page, service: str) -> None:
    sure = {name: answer(service, name, preset="balanced") for name in ("snake", "ray", "tiger", "plate", "sunflower")}
    name, twice = next((name, result) for name, result in sure.items() if "first_look" in result)
    await visit(page, service)
    await page.get_by_role("button", name=name, exact=True).click()
    await page.get_by_role("button", name="balanced").click()
    await shows(page, twice)
    first = twice["first_look"]["prediction"]
    note = page.locator("#macs-note")
    await expect(note).to_contain_text("more, for the first look")
    await expect(note).to_contain_text(f"; 56 px came first: {first['label'].replace('_', ' ')}")


async def test_the_least_compute_with_the_same_answer_is_marked_and_true(page: Page, service: str) -> None:
    await visit(page, service)
    await expect(page.locator("#mark")).to_be_visible()
    text = await page.locator("#mark-text").inner_text()
    found = re.fullmatch(r"◆ least compute found with full compute's answer: ([\d.]+) %, at threshold ([\d.]+)", text)
    assert found is not None
    at = await page.locator("#mark").evaluate("(mark) => Number(mark.style.getPropertyValue('--at'))")
    assert at == pytest.approx(float(found[2]), abs=0.006)
    marked = answer(service, "fox", threshold=f"{at:.3f}")
    assert marked["predictions"][0]["label"] == "fox"
    assert 100 * marked["macs"]["ratio"] == pytest.approx(float(found[1]), abs=0.051)
    beyond = answer(service, "fox", threshold=f"{at + 0.1 / 2**5:.3f}")
    assert beyond["predictions"][0]["label"] != "fox"


async def test_the_time_saved_is_the_median_of_alternating_runs(page: Page, service: str) -> None:
    await visit(page, service)
    note = re.compile(r"\d+ % (less|more) than full compute's [\d.]+ ms")
    await expect(page.locator("#time-note")).to_have_text(note)
    await expect(page.locator("#time")).to_have_text(re.compile(r"[\d.]+ ms"))
    times = await page.evaluate(
        """async () => {
          const { compareTimes } = await import("/static/survey.js");
          const asked = [];
          const ask = (name, batchSize, ...times) => async () => {
            asked.push(name);
            return { timing: { inference: times.shift() }, batchSize };
          };
          const found = await compareTimes(ask("full", 1, 9, 1, 5), ask("here", 1, 2, 8, 4), 3);
          return { found, busy: await compareTimes(ask("full", 1, 1), ask("here", 2, 1), 3), asked: asked.join(" ") };
        }"""
    )
    assert times["asked"] == "full here full here full here full here"
    assert times["found"] == {"fullMs": 5, "hereMs": 4, "pairs": 3}
    assert times["busy"] is None


async def test_bisection_finds_the_edge_and_says_when_there_is_none(page: Page, service: str) -> None:
    await page.goto(f"{service}/")
    edge, everywhere, nowhere, island, end = await page.evaluate(
        """async () => {
          const { cheapest } = await import("/static/survey.js");
          const at = (holds) => cheapest([0, 0.25, 0.5, 0.75, 1], async (value) => holds(value), () => {}, 10);
          return Promise.all([
            at((value) => value < 0.6), at(() => true), at(() => false),
            at((value) => value < 0.1 || (value > 0.4 && value < 0.6)), at((value) => value > 0.9),
          ]);
        }"""
    )
    assert edge == pytest.approx(0.6, abs=0.25 / 2**10)
    assert (everywhere, nowhere, end) == (1, None, 1)
    assert island == pytest.approx(0.6, abs=0.25 / 2**10)  # not monotone: the cheapest that holds counts


async def test_layers_step_by_arrow_keys_and_play_by_space(page: Page, service: str) -> None:
    await visit(page, service)
    title = page.locator("#stage-title")
    await expect(title).to_have_text("Layer 7")
    await page.keyboard.press("ArrowRight")  # with the focus nowhere
    await expect(title).to_have_text("Layer 8")
    await page.get_by_role("radio", name="Layer 8,").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.get_by_role("radio", name="Layer 7,")).to_be_focused()
    await expect(page.get_by_role("radio", name="Layer 7,")).to_be_checked()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()
    await expect(title).to_have_text("Layer 11")
    await expect(page.get_by_role("button", name="Play")).to_be_visible()  # it ends with the last layer
    await page.get_by_role("button", name="Play").click()
    await expect(title).to_have_text("Layer 1")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("button", name="Play")).to_be_visible()


async def test_a_patchs_path_shows_by_keyboard_and_by_pointer(page: Page, service: str) -> None:
    await visit(page, service)
    mask = answer(service, "fox", threshold=0.5)["mask"]

    def depth(patch: int) -> int:
        return sum(mask[layer][patch] for layer in range(11))

    await page.locator("#depth").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):  # the first shows patch 0
        await page.keyboard.press(key)
    await expect(page.locator("#path")).to_contain_text(f"Row 2, column 2: computed in {depth(9)} of 11 gated layers")
    cells = [await cell.get_attribute("class") for cell in await page.locator("#cells i").all()]
    names = ["kept", "again", "gone"]
    assert cells == [names[row[9]] for row in states(mask, 11)] + ["none"]
    await page.locator("#spend").focus()
    await expect(page.locator("#path")).to_contain_text("Point at a patch")
    box = await page.locator("#stage").bounding_box()
    assert box is not None
    await page.mouse.move(box["x"] + box["width"] * 5.5 / 8, box["y"] + box["height"] * 3.5 / 8)
    await expect(page.locator("#path")).to_contain_text(f"Row 4, column 6: computed in {depth(29)} of 11 gated layers")


async def test_the_live_view_counts_this_pages_own_requests(page: Page, service: str) -> None:
    await visit(page, service)
    await expect(page.locator("#live-rate b")).to_have_text(re.compile(r"^[1-9]\d*\.\d /s|^0\.[1-9] /s"))
    await expect(page.locator("#live-batch b")).to_have_text(re.compile(r"^1\.\d images"))
    await expect(page.locator("#live-latency b")).to_have_text(re.compile(r"^[\d.]+, [\d.]+ ms"))
    await expect(page.locator("#live-queue b")).to_have_text(re.compile(r"^[\d.]+ ms"))
    await expect(page.locator("#live-skip b")).to_have_text(re.compile(r"^\d+ %"))
    await expect(page.locator("#live-degradation b")).to_have_text("0.00 of 1")
    assert await page.locator("#live-rate svg path").count() == 2


async def test_quantiles_means_and_rates_come_from_the_difference_of_two_scrapes(page: Page, service: str) -> None:
    before, after = scrape([10, 10, 10, 10], 10, 0), scrape([10, 18, 20, 20], 30, 600)
    seen = await observe(page, service, before, after)
    assert seen["rate"] == [10]
    assert seen["latency"] == [pytest.approx(0.1 + 0.4 * 5 / 8), pytest.approx(0.5 + 0.5 * 1.9 / 2)]
    assert seen["skip"] == [pytest.approx(600 / 4000)]  # two of the three layers have gates
    assert seen["degradation"] == [0.25]
    assert seen["queue"] == seen["batch"] == [None]
    restarted = await observe(page, service, after, before)
    assert restarted["rate"] == [6]
    assert restarted["latency"][0] == pytest.approx(0.05)


def scrape(counts: list[int], requests: int, skipped: int) -> str:
    """What /metrics says, in part."""
    buckets = zip(("0.1", "0.5", "1.0", "+Inf"), counts, strict=True)
    lines = [
        "# HELP skipvit_requests_total Requests.",
        f'skipvit_requests_total{{model="a\\"b",outcome="ok"}} {requests}.0',
        'skipvit_requests_total{model="c",outcome="error"} 2.0 1700000000000',
        *(f'skipvit_request_duration_seconds_bucket{{le="{bound}"}} {count}' for bound, count in buckets),
        f"skipvit_request_duration_seconds_count {counts[-1]}",
        f"skipvit_request_duration_seconds_sum {counts[-1]}",
        *(f'skipvit_patches_total{{layer="{layer}",model="c"}} {100 * requests}' for layer in range(3)),
        f'skipvit_skipped_patches_total{{layer="1",model="c"}} {skipped}',
        "skipvit_degradation_level 2.5e-1",
    ]
    return "\n".join(lines)


async def observe(page: Page, service: str, before: str, after: str) -> dict[str, Any]:
    await page.goto(f"{service}/")
    seen = await page.evaluate(
        """async ([before, after]) => {
          const { observe } = await import("/static/live.js"), { parse } = await import("/static/prometheus.js");
          return observe(parse(before), parse(after), 2, [1, 2]);
        }""",
        [before, after],
    )
    return dict(seen)
