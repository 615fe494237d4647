"""Every folder renders, and a cluster would take what comes out: schemas, labels that select, nothing left unnamed."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel

from tests.k8s.queries import queries
from tests.k8s.rendered import COMPONENTS, DEPLOYABLE, K8S, ROOT, Object, objects, one, server, text, values

VERSIONS = ("1.32", "1.35", "1.37")
# Custom resources: their operators' own models, and for KServe, which has none, an excerpt of its definitions.
MODELS = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
}
KSERVE: dict[str, Any] = json.loads(Path(__file__).with_name("kserve.schema.json").read_text())
KSERVE_SERVICE = ("kserve", "InferenceService")  # KServe gives the Service that it makes the labels of this
SERVER = {"app.kubernetes.io/name": "skipvit", "app.kubernetes.io/component": "server"}


def check(document: Object, version: str) -> None:
    """Raise unless a cluster of this version would take the object: no field missing, misspelt or of a wrong type."""
    kind = document["kind"]
    if kind in MODELS:
        model: type[BaseModel] = getattr(importlib.import_module(MODELS[kind]), kind)
        parsed = model.model_validate(document)
        assert unknown_fields(parsed, document) == []
    elif kind in KSERVE["definitions"]:
        jsonschema.validate(document, {**KSERVE, "$ref": f"#/definitions/{kind}"})
        if kind == "ServingRuntime":
            kubernetes_validate.validate(pod_of(document), version, strict=True)
    else:
        kubernetes_validate.validate(document, version, strict=True)


def unknown_fields(model: object, raw: object) -> list[str]:
    """Fields of the document that its model let pass without knowing them."""
    if isinstance(raw, list) and isinstance(model, list):
        return [name for inner, item in zip(model, raw, strict=True) for name in unknown_fields(inner, item)]
    if not (isinstance(raw, dict) and isinstance(model, BaseModel)):
        return []
    known = {field.alias or name: name for name, field in type(model).model_fields.items()}
    found = [key for key in raw if key not in known]
    for key in raw.keys() & known.keys():
        found += [f"{key}.{name}" for name in unknown_fields(getattr(model, known[key]), raw[key])]
    return found


def pod_of(runtime: Object) -> Object:
    """What a serving runtime says of its pods, as a pod that Kubernetes' own schema can judge."""
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes") if name in runtime["spec"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "checked"}, "spec": spec}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", DEPLOYABLE + COMPONENTS)
def test_every_folder_renders_to_what_a_cluster_takes(folder: str, version: str) -> None:
    for document in objects(folder):
        check(document, version)


@pytest.mark.parametrize(
    ("folder", "kind", "path"),
    [
        ("overlays/cpu", "Deployment", "spec.template.spec.containers.0.readinessProb"),
        ("overlays/cpu", "Service", "spec.ports.0.targetport"),
        ("overlays/production", "ScaledObject", "spec.triggers.0.metdata"),
        ("overlays/production", "PrometheusRule", "spec.groups.0.rules.0.annotation"),
        ("overlays/production", "ServiceMonitor", "spec.endpoints.0.intervall"),
        ("kserve", "InferenceService", "spec.predictor.model.protocolversion"),
        ("kserve", "ServingRuntime", "spec.containers.0.livenessprobe"),
    ],
)
def test_a_misspelt_field_is_found(folder: str, kind: str, path: str) -> None:
    """The check above can fail, for every source of schemas that it uses."""
    document = one(folder, kind)
    node: Any = document
    check(document, VERSIONS[-1])
    *parents, last = path.split(".")
    for step in parents:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[last] = {}
    with pytest.raises((AssertionError, jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document, VERSIONS[-1])


@pytest.mark.parametrize("folder", DEPLOYABLE)
def test_everything_has_our_name_and_namespace(folder: str) -> None:
    for document in objects(folder):
        metadata = document["metadata"]
        assert metadata["labels"]["app.kubernetes.io/name"] == "skipvit", document["kind"]
        if document["kind"] != "Namespace":
            assert metadata["namespace"] == "skipvit", document["kind"]


def test_labels_and_namespace_are_written_once() -> None:
    hand_written = [file for file in K8S.rglob("*.yaml") if "identity" not in file.parts]
    for file in hand_written:
        for document in yaml.safe_load_all(file.read_text()):
            assert list(values(document, "app.kubernetes.io/name")) == [], file
            assert "skipvit" not in values(document, "namespace"), file


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "overlays/production"])
def test_every_selector_selects_the_pods_and_only_them(folder: str) -> None:
    deployment = one(folder, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == SERVER
    assert deployment["spec"]["selector"]["matchLabels"] == SERVER
    assert one(folder, "Service")["spec"]["selector"] == SERVER
    assert one(folder, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == SERVER
    assert one(folder, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == SERVER
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [constraint["labelSelector"]["matchLabels"] for constraint in spread] == [SERVER] * 2


def test_the_load_test_is_another_pod_that_may_reach_the_server() -> None:
    load = one("loadtest", "Job")["spec"]["template"]["metadata"]["labels"]
    assert not SERVER.items() <= load.items(), "the Service would send requests to the load test"
    policy = one("loadtest", "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == load
    (peer,) = policy["egress"][0]["to"]
    assert peer["podSelector"]["matchLabels"] == SERVER


def test_the_monitor_finds_the_service_and_its_port() -> None:
    service = one("overlays/production", "Service")
    monitor = one("overlays/production", "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"]
    assert wanted
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }


def test_queries_by_job_select_what_the_monitor_scrapes() -> None:
    """Under KServe too, whose Service has another name, and the labels of the InferenceService."""
    label = one("monitoring", "ServiceMonitor")["spec"]["jobLabel"]
    named = {one(*which)["metadata"]["labels"][label] for which in (("overlays/cpu", "Service"), KSERVE_SERVICE)}
    jobs = {job for query in queries() for job in re.findall(r'job="([^"]*)"', query.text)}
    assert jobs == named == {"skipvit"}


@pytest.mark.parametrize("folder", ["overlays/production", "autoscaling/hpa"])
def test_the_autoscaler_alone_says_how_many_pods(folder: str) -> None:
    for document in objects(folder):
        if document["kind"] == "Deployment":
            assert "replicas" not in document["spec"]
        if document["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            assert document["spec"]["scaleTargetRef"]["name"] == one("overlays/cpu", "Deployment")["metadata"]["name"]


def test_no_answer_for_keda_is_not_the_answer_that_there_is_no_load() -> None:
    triggers = one("overlays/production", "ScaledObject")["spec"]["triggers"]
    assert [trigger["metadata"].get("ignoreNullValues") for trigger in triggers] == ["false"] * 3
    assert "fallback" not in one("overlays/production", "ScaledObject")["spec"]


def test_images_carry_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert server("overlays/cpu")["image"].endswith(f"/skipvit:{version}")
    assert server("overlays/gpu")["image"].endswith(f"/skipvit:{version}-gpu")


def test_every_worker_of_the_load_test_knows_how_many_there_are() -> None:
    job = one("loadtest", "Job")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    workers = {item["name"]: item["value"] for item in container["env"]}["WORKERS"]
    assert job["completions"] == job["parallelism"] == int(workers)


def test_a_changed_setting_is_a_new_revision() -> None:
    names = re.findall(r"skipvit-settings-[a-z0-9]{10}", text("overlays/cpu"))
    assert len(names) == 2
    assert len(set(names)) == 1


def test_kserve_runs_the_same_pod() -> None:
    ours, theirs = server("overlays/cpu"), one("kserve", "ServingRuntime")["spec"]["containers"][0]
    assert theirs.pop("name") == "kserve-container"
    assert ours.pop("name") == "server"
    assert theirs == ours
    names = {item["metadata"]["name"] for item in objects("kserve") if item["kind"] == "ConfigMap"}
    assert {theirs["envFrom"][0]["configMapRef"]["name"]} == names
    kinds = {document["kind"] for document in objects("kserve")}
    guards = {"PodDisruptionBudget", "NetworkPolicy"}
    assert kinds == {"Namespace", "ServiceAccount", "ConfigMap", "ServingRuntime", "InferenceService"} | guards


def test_kserves_pods_are_guarded_and_scaled_as_ours() -> None:
    pods = {"app": f"isvc.{one('kserve', 'InferenceService')['metadata']['name']}-predictor"}
    assert one("kserve", "PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": pods}
    assert one("kserve", "NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": pods}
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        ours, theirs = one("overlays/cpu", kind)["spec"], one("kserve", kind)["spec"]
        assert ours | {field: None} == theirs | {field: None}
    annotations = one("kserve", "InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "external"
