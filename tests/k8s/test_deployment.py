"""The numbers in the manifests agree with what the service does with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.app import create_app
from service.cpu import usable_cpus
from service.settings import ENV_PREFIX, Settings
from tests.k8s.rendered import ROOT, one, pod, server, settings

FOLDERS = ("overlays/cpu", "overlays/gpu", "overlays/production")
LAST_ANSWERS_S = 1  # service/server.py
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def as_run(folder: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the container reads them."""
    for name, value in settings(folder).items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_variable_is_a_setting_that_takes_its_value(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_run(folder, monkeypatch)
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    assert settings(folder).keys() <= known


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_grace_period_is_longer_than_everything_that_happens_in_it(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, spec = as_run(folder, monkeypatch), pod(folder)
    sleep_s = server(folder)["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = sleep_s + running.drain_delay_s + running.drain_timeout_s + LAST_ANSWERS_S
    assert needed_s + 5 <= spec["terminationGracePeriodSeconds"]
    said = re.search(r"= (\d+) s, and some air", (ROOT / "k8s/base/deployment.yaml").read_text())
    assert said
    assert float(said[1]) == needed_s


@pytest.mark.parametrize("folder", FOLDERS)
def test_probes_ask_what_the_service_answers(folder: str) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    container = server(folder)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        asked = container[name]["httpGet"]
        assert asked == {"path": path, "port": "http"}
        assert "get" in paths[path]
    assert ports == {"http": Settings().port}
    (port,) = one(folder, "Service")["spec"]["ports"]
    assert port["targetPort"] in ports
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_cpu_limit_is_the_number_of_threads(folder: str, tmp_path: Path) -> None:
    resources = server(folder)["resources"]
    assert resources["requests"] == resources["limits"]
    cpus = int(resources["limits"]["cpu"])  # a fraction would be rounded down, and paid for
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{cpus * 100_000} 100000\n")
    assert "SKIPVIT_THREADS" not in settings(folder)
    assert usable_cpus(tmp_path, affinity=64) == cpus


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_pod_is_restricted(folder: str) -> None:
    """Pod Security's profile `restricted`, and a root file system that can't be written."""
    spec, container = pod(folder), server(folder)
    assert one(folder, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["volumes"]
    assert all(volume.keys() == {"name", "emptyDir"} for volume in spec["volumes"])
    user = f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}\n"
    assert DOCKERFILE.count(user) == DOCKERFILE.count("USER ") == 3  # cpu, gpu, loadtest


def test_a_rollout_never_has_fewer_pods_than_asked_for() -> None:
    spec = one("overlays/cpu", "Deployment")["spec"]
    assert spec["replicas"] >= 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert one("overlays/cpu", "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_a_gpu_pod_asks_for_one_gpu() -> None:
    assert server("overlays/gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod("overlays/gpu")["runtimeClassName"] == "nvidia"


def test_a_gpu_pod_has_time_and_room_to_build_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    startup = server("overlays/gpu")["startupProbe"]
    patience_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert patience_s >= 10 * 60
    assert one("overlays/gpu", "Deployment")["spec"]["progressDeadlineSeconds"] > patience_s
    cache = as_run("overlays/gpu", monkeypatch).engine_cache
    (volume,) = [item["name"] for item in server("overlays/gpu")["volumeMounts"] if item["mountPath"] == str(cache)]
    sizes = {item["name"]: mebibytes(item["emptyDir"]["sizeLimit"]) for item in pod("overlays/gpu")["volumes"]}
    assert sizes[volume] >= 512
    assert mebibytes(server("overlays/gpu")["resources"]["limits"]["ephemeral-storage"]) >= sum(sizes.values())


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def test_load_is_met_by_degrading_then_scaling_then_shedding() -> None:
    metrics = one("autoscaling/hpa", "HorizontalPodAutoscaler")["spec"]["metrics"]
    target = {item["pods"]["metric"]["name"]: item["pods"]["target"]["averageValue"] for item in metrics}
    degrade_s = float(settings("overlays/cpu")["SKIPVIT_ADAPTIVE_TARGET_S"])
    scale_s = float(target["skipvit_pending_work_seconds"])
    shed_s = float(settings("overlays/cpu")["SKIPVIT_MAX_PENDING_WORK_S"])
    assert 0 < 2 * degrade_s <= scale_s <= shed_s / 2
    triggers = one("overlays/production", "ScaledObject")["spec"]["triggers"]
    assert [trigger["metadata"]["threshold"] for trigger in triggers] == list(target.values())
