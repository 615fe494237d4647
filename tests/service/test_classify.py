from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.fakes import LAYERS, FakeEngine
from tests.images import bad_images, good_images, plain

URL = "/v1/classify"
GOOD = good_images()
BAD = bad_images()


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", ("x.png", image, "image/png")) for image in images]


def test_one_image_gets_the_contracts_answer(client: TestClient) -> None:
    response = client.post(URL, content=plain(7), headers={"content-type": "image/png"}, params={"threshold": 0.25})
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"model", "results", "timing_ms", "batch_size"}
    assert answer["model"] == {"name": "fake", "version": "1.0.0"}
    assert answer["batch_size"] == 1
    assert set(answer["timing_ms"]) == {"decode", "queue", "inference", "total"}
    (result,) = answer["results"]
    assert result.pop("predictions")[0] == {"index": 3, "label": "dog", "probability": pytest.approx(0.949, abs=1e-3)}
    assert result == {
        "threshold": 0.25,
        "size_px": 28,
        "degraded": False,
        "skipped_patches": {"mean": 4.0, "per_layer": [0, 4, 4], "patches": 16},
        "macs": {"used": 45500, "dense": 53500, "ratio": pytest.approx(45500 / 53500)},
    }


def test_timings_leave_as_a_header_too(client: TestClient) -> None:
    response = client.post(URL, content=plain())
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"]))
    assert timing.keys() == response.json()["timing_ms"].keys()
    for phase, duration in response.json()["timing_ms"].items():
        assert float(timing[phase]) == pytest.approx(duration, abs=1e-3)


@pytest.mark.parametrize(
    "content_type",
    [
        "image/png",
        "image/jpeg",
        "image/webp",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "binary/octet-stream",
        None,
    ],
)
def test_the_bytes_decide_whatever_the_client_calls_them(client: TestClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert client.post(URL, content=plain(), headers=headers).status_code == 200


def test_a_parameter_among_the_parts_is_sent_to_the_address(client: TestClient) -> None:
    response = client.post(URL, files={"image": plain()}, data={"threshold": "0.5"})
    assert response.status_code == 422
    assert "parameters go into the address" in response.json()["detail"]


def test_an_encoding_of_nothing_is_taken_however_it_is_written(client: TestClient) -> None:
    assert client.post(URL, content=plain(), headers={"content-encoding": "Identity"}).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json", "image/gif", "video/mp4", "multipart/mixed"]
)
def test_a_content_type_that_isnt_taken_is_415(client: TestClient, content_type: str) -> None:
    response = client.post(URL, content=plain(), headers={"content-type": content_type})
    assert response.status_code == 415
    assert content_type in response.json()["detail"]


def test_a_compressed_body_is_415(client: TestClient) -> None:
    assert client.post(URL, content=plain(), headers={"content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("multipart", [False, True])
def test_every_good_image_is_classified(client: TestClient, name: str, multipart: bool) -> None:
    body: dict[str, Any] = {"files": files(GOOD[name])} if multipart else {"content": GOOD[name]}
    assert client.post(URL, **body).status_code == 200


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("multipart", [False, True])
def test_every_bad_image_is_refused_with_a_reason(client: TestClient, name: str, multipart: bool) -> None:
    data, status = BAD[name]
    body: dict[str, Any] = {"files": files(data)} if multipart else {"content": data}
    response = client.post(URL, **body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]


def test_several_images_answer_in_their_order(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post(URL, files=files(*(plain(value) for value in (3, 1, 2)))).json()
    assert [result["predictions"][0]["index"] for result in answer["results"]] == [3, 1, 2]
    assert engine.batches[-1] == [3, 1, 2]
    assert answer["batch_size"] == 3


def test_a_bad_image_among_several_is_named_by_its_number(client: TestClient) -> None:
    response = client.post(URL, files=files(plain(), b"text"))
    assert response.status_code == 415
    assert response.json()["detail"].startswith("image 1: ")


def test_only_parts_named_image_are_taken(client: TestClient) -> None:
    response = client.post(URL, files=[("picture", ("x.png", plain(), "image/png"))])
    assert response.status_code == 422
    assert "'picture'" in response.json()["detail"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"noise"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut'),
        ("multipart/form-data; boundary=x", b"--x\r\nno colon\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"noise"),
    ],
)
def test_malformed_multipart_is_400(client: TestClient, content_type: str, body: bytes) -> None:
    response = client.post(URL, content=body, headers={"content-type": content_type})
    assert response.status_code == 400
    assert response.json()["detail"]


def test_too_many_bytes_or_images_are_413(client: TestClient) -> None:
    assert client.post(URL, content=bytes(100_001)).status_code == 413
    assert client.post(URL, content=iter([bytes(60_000)] * 2)).status_code == 413  # no content-length
    assert client.post(URL, files=files(bytes(100_001))).status_code == 413
    assert client.post(URL, files=files(*[bytes(90_000)] * 4)).status_code == 413
    assert client.post(URL, files=files(*[plain()] * 4)).status_code == 200
    assert client.post(URL, files=files(*[plain()] * 5)).status_code == 413


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("threshold=2", "threshold"),
        ("threshold=-0.1", "threshold"),
        ("threshold=nan", "threshold"),
        ("threshold=much", "threshold"),
        ("threshold=", "threshold"),
        ("compute=1.5", "compute"),
        ("preset=fast", "preset"),
        ("explain=all", "explain"),
        ("top_k=0", "top_k"),
        ("top_k=x", "top_k"),
        ("size=15", "size"),
        ("size=large", "size"),
        ("threshold=0.1&compute=0.5", "threshold and compute"),
        ("threshold=0.1&top_k=2&threshold=0.2", "threshold is given 2 times"),
        ("preset=full&size=14", "size and preset"),
        ("treshold=0.5", "'treshold'; known are threshold, compute"),
    ],
)
def test_a_bad_parameter_is_422_and_named(client: TestClient, query: str, named: str) -> None:
    response = client.post(f"{URL}?{query}", content=plain())
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert named in response.json()["detail"]


@pytest.mark.parametrize("value", ["soon", "0", "-5", "1.5", "99999999", "nan"])
def test_a_bad_timeout_header_is_422(client: TestClient, value: str) -> None:
    response = client.post(URL, content=plain(), headers={"X-Request-Timeout-Ms": value})
    assert response.status_code == 422
    assert "x-request-timeout-ms" in response.json()["detail"]


def test_a_model_that_isnt_served_is_404(client: TestClient) -> None:
    response = client.post(f"{URL}?model=other", content=plain())
    assert response.status_code == 404
    assert "'other'" in response.json()["detail"]
    assert client.post(f"{URL}?model=fake", content=plain()).status_code == 200


def test_threshold_compute_preset_and_size_choose_what_runs(client: TestClient) -> None:
    def ran(query: str) -> tuple[int, float]:
        (result,) = client.post(f"{URL}?{query}", content=plain()).json()["results"]
        return result["size_px"], result["threshold"]

    assert ran("") == (28, 0.5)
    assert ran("threshold=0.75&size=14") == (14, 0.75)
    assert ran("preset=economy") == (14, 0.5)
    assert ran("compute=1") == (28, 0.0)
    assert ran("compute=0.4") == (14, 0.0)
    size_px, threshold = ran("compute=0.4&size=28")
    assert size_px == 28
    assert threshold == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_top_k_limits_predictions_and_there_are_no_more_than_labels(client: TestClient) -> None:
    def count(query: str) -> int:
        return len(client.post(f"{URL}?{query}", content=plain()).json()["results"][0]["predictions"])

    assert [count(query) for query in ("top_k=1", "top_k=3", "top_k=1000", "")] == [1, 3, 4, 4]


def test_the_mask_comes_only_when_asked_for(client: TestClient) -> None:
    (result,) = client.post(f"{URL}?explain=mask&threshold=0.5", content=plain()).json()["results"]
    assert len(result["mask"]) == LAYERS
    assert result["mask"][0] == [1] * 16
    assert result["mask"][1] == [0] * 8 + [1] * 8
    assert "overlay" not in result
    (result,) = client.post(URL, content=plain()).json()["results"]
    assert "mask" not in result
    assert "overlay" not in result


def test_the_overlay_comes_only_when_asked_for(client: TestClient) -> None:
    answer = client.post(f"{URL}?explain=overlay", files=files(plain(), plain())).json()
    for result in answer["results"]:
        assert result["overlay"].startswith("data:image/png;base64,")
        assert "mask" not in result


def test_the_request_id_is_echoed_or_made(client: TestClient) -> None:
    assert client.post(URL, content=plain(), headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    made = client.post(URL, content=b"").headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


@pytest.mark.parametrize("sent", ["", "x" * 129, "two words", 'quote"', "caf\u00e9"])
def test_an_unfit_request_id_is_replaced(client: TestClient, sent: str) -> None:
    response = client.post(URL, content=b"", headers={b"X-Request-Id": sent.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])
    assert response.json()["request_id"] == response.headers["X-Request-Id"]


def test_an_image_the_engine_fails_on_is_500_and_harms_nobody(client: TestClient) -> None:
    assert client.post(URL, content=plain(66)).status_code == 500
    assert client.post(URL, content=plain(65)).status_code == 200
