from __future__ import annotations

import subprocess
import sys

from starlette.testclient import TestClient


def test_the_service_loads_no_training_library() -> None:
    code = (
        "import sys, service.app, service.__main__\n"
        "loaded = {'torch', 'torchvision', 'timm', 'datasets', 'onnx', 'models', 'export'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_openapi_document_shows_bodies_parameters_examples_and_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    classify = document["paths"]["/v1/classify"]["post"]
    assert set(classify["requestBody"]["content"]) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data"}
    names = {parameter["name"] for parameter in classify["parameters"]}
    query = {"threshold", "compute", "preset", "top_k", "explain", "size", "model", "sure", "again", "degrade"}
    assert names == query | {"x-request-timeout-ms", "x-request-id"}
    assert set(classify["responses"]) == {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"}
    for status, response in classify["responses"].items():
        if status != "200":
            assert "example" in response["content"]["application/problem+json"]
    assert document["components"]["schemas"]["ClassifyResponse"]["examples"]
    assert document["info"]["version"] == client.get("/v2").json()["version"]
    assert client.get("/docs").status_code == 200


def test_binary_answers_are_in_the_document(client: TestClient) -> None:
    infer = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]["responses"]["200"][
        "content"
    ]
    assert set(infer) == {"application/json", "application/octet-stream"}


def test_a_path_or_method_that_isnt_there_says_where_to_go(client: TestClient) -> None:
    for method, path in (("GET", "/nope"), ("POST", "/v1/classify/")):  # no redirect, which would be to http
        response = client.request(method, path, follow_redirects=False)
        assert response.status_code == 404
        assert "POST to /v1/classify, and /docs lists" in response.json()["detail"]
    assert "Method Not Allowed; it takes POST" in client.get("/v1/classify").json()["detail"]


def test_every_reference_in_the_openapi_document_resolves(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    def walk(node: object) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str):
                assert reference.removeprefix("#/components/schemas/") in schemas
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(document)
    assert "HTTPValidationError" not in schemas  # every refusal is a Problem
