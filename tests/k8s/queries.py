"""Every PromQL expression under `k8s/`, where it stands, and the metrics that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser as promql
import yaml

from tests.k8s.rendered import K8S, one

NAMESPACE = "skipvit"
_PARTS = ("expr", "lhs", "rhs", "vector_selector", "param")


class Query(NamedTuple):
    """An expression and where it comes from; `rate_window` fills Grafana's variable."""

    where: str
    text: str

    def filled(self, rate_window: str = "1m") -> str:
        """The expression with Grafana's variables filled in."""
        return self.text.replace("$__rate_interval", rate_window).replace("$namespace", NAMESPACE)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's sidecar would find it in the cluster."""
    maps = one("monitoring", "ConfigMap")
    assert maps["metadata"]["labels"]["grafana_dashboard"] == "1"
    (content,) = maps["data"].values()
    found: dict[str, Any] = json.loads(content)
    return found


def rules() -> list[dict[str, Any]]:
    """The alerts, as rendered."""
    return [rule for group in one("monitoring", "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


def queries() -> list[Query]:
    """All of them: panels, alerts, both autoscalers."""
    panels = [
        Query(f"panel {panel['title']}", target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]
    alerts = [Query(f"alert {rule['alert']}", rule["expr"]) for rule in rules()]
    triggers = one("overlays/production", "ScaledObject")["spec"]["triggers"]
    keda = [Query(f"trigger {trigger['name']}", trigger["metadata"]["query"]) for trigger in triggers]
    return [*panels, *alerts, *keda, *adapter_queries()]


def adapter_queries() -> list[Query]:
    """The adapter's rules as it would ask Prometheus for the pods of our namespace."""
    values = yaml.safe_load((K8S / "autoscaling/hpa/prometheus-adapter-values.yaml").read_text())
    found = []
    for rule in values["rules"]["custom"]:
        series = rule["seriesQuery"].partition("{")[0]
        filled = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        name = rule["name"]["as"]
        found.append(Query(f"adapter {name}", filled.replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}"')))
    return found


def metrics_of(query: Query) -> set[str]:
    """Names of the time series that the expression selects; a ValueError if it isn't PromQL."""
    return set(_names(promql.parse(query.filled())))


def _names(node: object) -> Iterator[str]:
    if isinstance(node, promql.VectorSelector):
        assert node.name, "a selector without a name reads every series"
        yield node.name
    for part in _PARTS:
        inner = getattr(node, part, None)
        if inner is not None:
            yield from _names(inner)
    for inner in getattr(node, "args", None) or ():
        yield from _names(inner)
