"""Dashboard, alerts and autoscaling name metrics that the service has, and what is written twice says the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine, fake_bundle
from tests.images import plain
from tests.k8s.queries import Query, dashboard, metrics_of, queries, rules
from tests.k8s.rendered import K8S, one, settings
from tests.k8s.tools import tool

PROMETHEUS_OWN = {"up"}  # it writes one for each target, whatever that answers


@pytest.fixture(scope="module")
def scrape() -> Iterator[str]:
    """What Prometheus gets from a service that has answered one request."""
    with TestClient(create_app(Settings(), bundle=fake_bundle(), engine=FakeEngine())) as client:
        assert client.post("/v1/classify", content=plain()).status_code == 200
        yield client.get("/metrics").text


def series(scrape: str) -> set[str]:
    return {re.split(r"[{ ]", line)[0] for line in scrape.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where.replace(" ", "-"))
def test_every_metric_named_exists_in_a_scrape(query: Query, scrape: str) -> None:
    named = metrics_of(query)
    assert named
    assert named <= series(scrape) | PROMETHEUS_OWN


def test_a_wrong_name_is_found(scrape: str) -> None:
    query = Query(
        "here", "sum by (pod) (rate(skipvit_request_total[5m])) / on (pod) group_left () absent(-up offset 5m)"
    )
    assert metrics_of(query) == {"skipvit_request_total", "up"}
    assert not metrics_of(query) & series(scrape)


def test_promtool_finds_nothing_wrong_with_the_metrics(scrape: str) -> None:
    command = [tool("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=scrape, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_dashboard_is_what_its_script_writes() -> None:
    script = K8S / "monitoring/dashboard.py"
    code = f"import runpy, json; print(json.dumps(runpy.run_path({str(script)!r})['dashboard']()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == dashboard(), "write it anew: python3 k8s/monitoring/dashboard.py"


def test_the_lines_in_the_panels_are_the_numbers_in_force() -> None:
    drawn = {
        panel["title"]: [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]]
        for panel in dashboard()["panels"]
        if panel["type"] != "row"
    }
    metrics = one("autoscaling/hpa", "HorizontalPodAutoscaler")["spec"]["metrics"]
    pending, busy, decoding = (float(item["pods"]["target"]["averageValue"]) for item in metrics)
    chosen = settings("overlays/production")
    degrade, shed = float(chosen["SKIPVIT_ADAPTIVE_TARGET_S"]), float(chosen["SKIPVIT_MAX_PENDING_WORK_S"])
    assert drawn["Pending work a pod"] == [degrade, pending, shed]
    assert drawn["Engine busy"] == [busy]
    assert drawn["Decoding busy"] == [decoding]
    (guard,) = [rule["expr"] for rule in rules() if rule["alert"] == "SkipvitAccuracyGuard"]
    assert drawn["Agreement with full compute"] == [float(guard.rpartition("<")[2])]


def test_every_alert_has_its_part_of_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", (K8S / "README.md").read_text(), re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for rule in rules():
        url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert url.endswith("/k8s/README.md")
        assert anchor == rule["alert"].lower()
        assert anchor in anchors, rule["alert"]
