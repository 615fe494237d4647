"""What the components add to an overlay fits together: port, probes, Service, policy, monitor, settings, Secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.api_keys import load_api_keys, make_key
from service.routes import ops
from service.settings import Settings
from tests.k8s.rendered import KEYED, METERED, Object, objects, one

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
BEHIND_A_SERVICE = [folder for folder in (*KEYED, *METERED) if folder.startswith("overlays")]


def pod(folder: str) -> Object:
    """The pod, of a Deployment or of KServe's runtime."""
    if folder.startswith("kserve"):
        return dict(one(folder, "ServingRuntime")["spec"])
    return dict(one(folder, "Deployment")["spec"]["template"]["spec"])


def environment(folder: str) -> dict[str, str]:
    """The settings map that the pod's only container names."""
    ((source,),) = [container["envFrom"] for container in pod(folder)["containers"]]
    (found,) = [item["data"] for item in objects(folder) if item["metadata"]["name"] == source["configMapRef"]["name"]]
    return dict(found)


@pytest.mark.parametrize("folder", [*KEYED, *METERED])
def test_the_metrics_port_is_the_settings_and_is_probed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPVIT_METRICS_PORT", environment(folder)["SKIPVIT_METRICS_PORT"])
    (container,) = pod(folder)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": Settings().port, "metrics": Settings().metrics_port}
    assert [container[name]["httpGet"]["port"] for name in PROBES] == ["metrics"] * 3
    answered = {getattr(route, "path", None) for router in (ops.router, ops.metrics_router) for route in router.routes}
    assert {container[name]["httpGet"]["path"] for name in PROBES} | {"/metrics"} <= answered
    (rule,) = one(folder, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http", "metrics"]


@pytest.mark.parametrize("folder", BEHIND_A_SERVICE)
def test_the_service_passes_it_on_to_whoever_scrapes(folder: str) -> None:
    service = {port["name"]: port for port in one(folder, "Service")["spec"]["ports"]}
    assert service.keys() == {"http", "metrics"}
    assert service["metrics"]["targetPort"] == "metrics"
    for document in objects(folder):
        if document["kind"] == "ServiceMonitor":
            assert [endpoint["port"] for endpoint in document["spec"]["endpoints"]] == ["metrics"]


@pytest.mark.parametrize("folder", KEYED)
def test_the_keys_are_read_where_the_secret_is_mounted(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = Path(environment(folder)["SKIPVIT_API_KEYS_FILE"])
    (container,) = pod(folder)["containers"]
    volumes = {volume["name"]: volume for volume in pod(folder)["volumes"]}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == str(file.parent)]
    assert mount["readOnly"]
    assert "subPath" not in mount
    assert volumes[mount["name"]]["secret"] == {"secretName": "skipvit-api-keys"}
    key, line = make_key("alice")
    (tmp_path / file.name).write_text(f"{line}\n")
    monkeypatch.setenv("SKIPVIT_API_KEYS_FILE", str(tmp_path / file.name))
    keys = load_api_keys(Settings())
    assert keys
    assert keys.owner(key) == "alice"
