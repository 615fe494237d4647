"""Whatever goes wrong is said in words, what was there stays, and the page goes on when the service does."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

import httpx
import pytest
from playwright.async_api import Error, Page, Route, expect

from service.settings import Settings
from tests.fakes import FakeEngine
from tests.images import bomb_png, encode, gradient, plain
from tests.page.test_page import visit
from tests.service.live import live_server

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def open_fake(page: Page, port: int) -> None:
    """Open the page of a service with the fake engine and wait for its first answer."""
    await page.goto(f"http://127.0.0.1:{port}/")
    await expect(page.locator("#answer")).to_have_text(re.compile("ant|bee|cat|dog"))


async def test_a_bad_file_is_named_and_explained_and_the_last_image_stays(page: Page, service: str) -> None:
    await visit(page, service)
    problem = page.get_by_role("alert")
    for name, content, words in (
        ("notes.txt", b"no image", "no JPEG, PNG or WebP image"),
        ("half.png", encode(gradient(), "PNG")[:100], "can't be decoded (truncated or corrupt)"),
        ("empty.png", b"", "the image is empty: 0 bytes"),
        ("bomb.png", bomb_png(), "100000000 pixels; the limit is 50000000"),
    ):
        await page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        await expect(problem).to_contain_text(name)
        await expect(problem).to_contain_text(words)
        await expect(problem).to_contain_text(re.compile(r"status 4\d\d, request [0-9a-f]{32}"))
        await expect(problem.get_by_role("button", name="Try again")).to_be_hidden()  # it wouldn't help
        await expect(page.locator("#answer")).to_have_text("fox")
        await expect(page.locator("#name")).to_have_text("fox")
        await problem.get_by_role("button", name="Dismiss").click()
        await expect(problem).to_be_hidden()


async def test_a_dropped_link_is_no_image(page: Page, service: str) -> None:
    await visit(page, service)
    await page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.setData("text/uri-list", "https://example.org/cat.png");
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }"""
    )
    await expect(page.get_by_role("alert")).to_contain_text("Drop an image file; this was a link or text.")


async def test_an_overloaded_service_says_when_to_try_again_and_trying_again_works(page: Page) -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(max_pending_images=1)) as live, httpx.AsyncClient() as client:
        await open_fake(page, live.port)
        await expect(page.locator("body")).to_have_attribute("data-surveyed", re.compile("fox"))
        engine.hold()
        url = f"http://127.0.0.1:{live.port}/v1/classify"

        def post() -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post(url, content=plain(), timeout=60))

        runs = post()
        assert await asyncio.to_thread(engine.entered.wait, 30)
        refused, waits = await asyncio.wait([post(), post()], return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().status_code for task in refused] == [429]  # one runs, one waits: the queue is full
        await page.get_by_role("button", name="snake").click()
        problem = page.get_by_role("alert")
        await expect(problem).to_contain_text("snake: ")
        await expect(problem).to_contain_text(re.compile(r"Try again in \d+ s\."))
        await expect(problem).to_contain_text("status 429")
        engine.release()
        assert [answer.status_code for answer in await asyncio.gather(runs, *waits)] == [200, 200]
        await problem.get_by_role("button", name="Try again").click()
        await expect(problem).to_be_hidden()
        await expect(page.locator("#name")).to_have_text("snake")


async def test_an_image_the_engine_fails_on_is_said_so(page: Page) -> None:
    engine = FakeEngine(poison=frozenset({66}))
    async with live_server(engine, Settings()) as live:
        await open_fake(page, live.port)
        await page.locator("#file").set_input_files({"name": "bad.png", "mimeType": "image/png", "buffer": plain(66)})
        await expect(page.get_by_role("alert")).to_contain_text("bad.png")
        await expect(page.get_by_role("alert")).to_contain_text("status 500")


async def test_a_draining_service_is_shown_as_such(page: Page) -> None:
    async with live_server(FakeEngine(), Settings()) as live:
        await open_fake(page, live.port)
        await expect(page.locator("#status")).to_have_text("ready")
        live.app.state.lifecycle.begin_drain()
        await expect(page.locator("#status")).to_have_text("the service is draining")


async def test_a_service_that_has_gone_is_said_to_be_gone(page: Page) -> None:
    async with live_server(FakeEngine(), Settings()) as live:
        await open_fake(page, live.port)
    await page.get_by_role("button", name="snake").click()
    await expect(page.get_by_role("alert")).to_contain_text("The service doesn't answer")
    await expect(page.locator("#status")).to_have_text("unreachable")


async def test_without_a_network_it_says_so_and_goes_on_by_itself_when_there_is_one(page: Page, service: str) -> None:
    await visit(page, service)
    await page.context.set_offline(True)
    await page.get_by_role("button", name="tiger").click()
    await expect(page.get_by_role("alert")).to_contain_text("The page tries again by itself")
    await expect(page.locator("#status")).to_have_text("unreachable")
    await page.context.set_offline(False)
    await expect(page.locator("#status")).to_have_text("ready")
    await expect(page.get_by_role("alert")).to_be_hidden()
    await expect(page.locator("#name")).to_have_text("tiger")


async def test_a_key_is_asked_for_and_kept_in_memory_only(page: Page, service: str) -> None:
    async def guard(route: Route) -> None:
        if await route.request.header_value("x-api-key") == "sesame":
            await route.continue_()
            return
        body = '{"title": "No key", "detail": "send one as X-API-Key", "status": 401}'
        await route.fulfill(status=401, body=body, content_type="application/problem+json")

    await page.route(re.compile("/v1/|/metrics"), guard)
    await page.goto(f"{service}/")
    await expect(page.get_by_role("alert")).to_contain_text("send one as X-API-Key")
    key = page.get_by_label("API key")
    await expect(key).to_be_focused()
    await expect(page.get_by_text("This service keeps its metrics elsewhere")).to_be_visible()
    await expect(page.get_by_role("link", name="Metrics")).to_be_hidden()
    await key.fill("sésame→")  # no header carries the arrow: the browser would refuse to ask
    await key.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("a character that a header can't carry")
    await expect(key).to_be_visible()
    await key.fill("wrong")
    await key.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("send one as X-API-Key")
    await key.fill("sesame")
    await page.get_by_role("button", name="Use it").click()
    await expect(page.locator("#answer")).to_have_text("fox")
    await expect(page.get_by_role("alert")).to_be_hidden()
    await expect(page.get_by_text("This service keeps its metrics elsewhere")).to_be_hidden()
    await expect(page.get_by_text("Two minutes of /metrics")).to_be_visible()
    await expect(page.get_by_role("link", name="Metrics")).to_be_hidden()  # a link sends no key
    kept = await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 0, ""]


async def test_an_answer_that_is_no_problem_document_is_said_too(page: Page, service: str) -> None:
    await visit(page, service)
    await page.route("**/v1/classify*", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    await page.get_by_role("button", name="ray").click()
    await expect(page.get_by_role("alert")).to_contain_text("ray: The service answered 502")


async def test_what_the_page_finds_out_by_itself_ends_with_its_image(page: Page, service: str) -> None:
    """Else a late failure of the image before is taken for the new one's."""
    await page.clock.install()
    await visit(page, service)
    asked = list[str]()

    async def refuse(route: Route) -> None:
        asked.append(route.request.url)
        await route.fulfill(status=502, body="<html>Bad Gateway</html>")

    await page.route("**/v1/classify*", refuse)
    await page.get_by_role("button", name="ray").click()
    await expect(page.get_by_role("alert")).to_contain_text("ray: The service answered 502")
    del asked[:]
    await page.clock.run_for(10_000)
    await expect(page.get_by_role("alert")).to_contain_text("ray: The service answered 502")
    assert not asked


async def test_metrics_kept_elsewhere_are_said_to_be_and_the_rest_works(page: Page, service: str) -> None:
    await page.route("**/metrics", lambda route: route.fulfill(status=404, body="{}"))
    await visit(page, service)
    await expect(page.get_by_text("This service keeps its metrics elsewhere")).to_be_visible()
    await expect(page.get_by_role("link", name="Metrics")).to_be_hidden()
    await expect(page.locator("#status")).to_have_text("ready")


async def test_a_degraded_answer_is_called_so_and_full_compute_is_never_degraded(page: Page, service: str) -> None:
    exact: list[str] = []

    async def degrade(route: Route) -> None:
        url = route.request.url
        if "degrade=false" in url:
            exact.append(url)
            await route.continue_(url=url.replace("&degrade=false", ""))
            return
        answer = await (response := await route.fetch()).json()
        answer["results"][0] |= {"degraded": True, "threshold": 0.62}
        await route.fulfill(response=response, json=answer)

    await page.route("**/v1/classify*", degrade)
    await visit(page, service)
    await expect(page.locator("#degraded")).to_contain_text(
        "computed less than asked for this answer: 112 px at threshold 0.62"
    )
    assert "threshold=0.000" in exact[0]


async def test_a_new_image_whose_setting_is_refused_leaves_the_old_one_as_a_whole(page: Page, service: str) -> None:
    """Else the old image's answer and mask would be shown under the new image's name."""
    await visit(page, service)

    async def refuse_the_setting(route: Route) -> None:
        if "threshold=0.500" in route.request.url:
            body = '{"title": "Overloaded", "detail": "busy", "status": 429}'
            await route.fulfill(status=429, body=body, content_type="application/problem+json")
        else:
            await route.continue_()

    await page.route(re.compile("/v1/classify"), refuse_the_setting)
    pixels = "(canvas) => canvas.toDataURL()"
    stage = page.locator("#stage")
    before = await stage.evaluate(pixels)
    await page.get_by_role("button", name="snake").click()
    problem = page.get_by_role("alert")
    await expect(problem).to_contain_text("snake: Overloaded")
    await expect(page.locator("#name")).to_have_text("fox")
    await expect(page.locator("#answer")).to_have_text("fox")
    await expect(page.get_by_role("button", name="fox")).to_have_attribute("aria-pressed", "true")
    await page.locator("#depth").focus()
    await page.keyboard.press("ArrowRight")  # draws the stage anew, with a patch marked and without
    await expect(page.locator("#path")).to_contain_text("Row 1, column 1")
    await page.locator("#spend").focus()
    await expect(page.locator("#path")).to_contain_text("Point at a patch")
    assert await stage.evaluate(pixels) == before
    await page.unroute(re.compile("/v1/classify"))
    await problem.get_by_role("button", name="Try again").click()
    await expect(page.locator("#name")).to_have_text("snake")
    await expect(page.locator("#answer")).to_have_text("snake")
    await expect(problem).to_be_hidden()


async def test_what_an_image_that_could_not_be_opened_interrupts_is_not_said_to_go_on(page: Page, service: str) -> None:
    answered, refusing, end = 0, False, asyncio.Event()

    async def hold_the_survey(route: Route) -> None:
        nonlocal answered
        answered += 1
        if refusing:
            await route.fulfill(status=502, body="<html>Bad Gateway</html>")
            return
        if answered > 2:  # full compute and the setting; what follows, the page finds out by itself
            await end.wait()
        with suppress(Error):  # nobody waits for it any more
            await route.continue_()

    await page.route("**/v1/classify*", hold_the_survey)
    await visit(page, service)
    await expect(page.locator("#time-note")).to_have_text("measuring")
    refusing = True
    await page.get_by_role("button", name="ray").click()
    await expect(page.get_by_role("alert")).to_contain_text("ray: The service answered 502")
    await expect(page.locator("#time-note")).to_have_text("not measured")
    end.set()
