from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.images import plain
from tests.service.test_classify import files
from tests.service.test_ops import value

URL = "/v1/explain"


def picture(client: TestClient, query: str, pixel: int = 200) -> Image.Image:
    response = client.post(f"{URL}?{query}", content=plain(pixel))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


def test_the_answer_is_a_picture_with_a_tile_for_each_layer(client: TestClient) -> None:
    image = picture(client, "threshold=0.5")
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (236, 264))
    tiles = [np.asarray(image)[y : y + 112, x : x + 112] for y in (18, 148) for x in (4, 120)]
    assert (tiles[0] == 200).all()  # a layer without a gate
    for tile in tiles[1:3]:  # the fake engine skips the upper half in both gated layers
        assert (tile[:56] == 0).all()
        assert (tile[56:] == 200).all()


def test_each_style_is_another_picture_and_classes_is_the_default(client: TestClient) -> None:
    default, classes, overlay, depth = (
        client.post(f"{URL}?threshold=0.5{style}", content=plain(200)).content
        for style in ("", "&style=classes", "&style=overlay", "&style=depth")
    )
    assert default == classes
    assert len({classes, overlay, depth}) == 3


def test_the_size_of_the_picture_depends_on_the_model_alone(client: TestClient) -> None:
    small, large = (
        Image.open(io.BytesIO(client.post(f"{URL}?style=depth", content=plain(7, size_px)).content)).size
        for size_px in (1, 900)
    )
    assert small == large


def test_it_takes_what_classify_takes(client: TestClient) -> None:
    for query in ("threshold=0.3", "compute=0.5", "preset=economy", "size=14&threshold=0.1", "model=fake"):
        picture(client, query)
    assert client.post(URL, files=files(plain())).status_code == 200
    timing = client.post(URL, content=plain()).headers["Server-Timing"]
    assert re.findall(r"(\w+);dur=", timing) == ["decode", "queue", "inference", "total"]


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        ("style=pretty", plain(), 422),
        ("threshold=2", plain(), 422),
        ("threshold=0.1&compute=0.5", plain(), 422),
        ("top_k=3", plain(), 422),
        ("explain=mask", plain(), 422),
        ("model=other", plain(), 404),
        ("", b"no image", 415),
        ("", plain()[:40], 422),
        ("", bytes(100_001), 413),
        ("", plain(66), 500),
    ],
)
def test_errors_are_problem_documents(client: TestClient, query: str, body: bytes, status: int) -> None:
    response = client.post(f"{URL}?{query}", content=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]


def test_it_draws_one_image_and_refuses_more_before_it_decodes_them(client: TestClient) -> None:
    response = client.post(URL, files=files(plain(), plain()))
    assert response.status_code == 413
    assert value(client, "skipvit_decode_duration_seconds_count") == 0


def test_it_counts_as_a_classification(client: TestClient) -> None:
    ok, invalid = (f'skipvit_requests_total{{model="fake",outcome="{outcome}"}}' for outcome in ("ok", "invalid"))
    client.post(f"{URL}?threshold=0.5", content=plain())
    client.post(f"{URL}?threshold=0.5", content=b"no image")
    assert (value(client, ok), value(client, invalid)) == (1, 1)
    assert value(client, "skipvit_macs_ratio_count") == 1
    assert value(client, "skipvit_request_duration_seconds_count") == 2
    assert value(client, 'skipvit_skipped_patches_total{layer="1",model="fake"}') == 8


def test_the_openapi_document_shows_it(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/explain"]["post"]
    assert "image/png" in operation["responses"]["200"]["content"]
    named = {parameter["name"] for parameter in operation["parameters"]}
    assert {"threshold", "compute", "preset", "size", "model", "style", "x-request-timeout-ms"} <= named
    assert {"top_k", "explain"}.isdisjoint(named)
    assert "multipart/form-data" in operation["requestBody"]["content"]
