"""The alerts by their own unit tests, `k8s/monitoring/alerts_test.yaml`, run by promtool on the rendered rules."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.queries import rules
from tests.k8s.rendered import K8S, one
from tests.k8s.tools import tool

TESTS = K8S / "monitoring/alerts_test.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groups = one("monitoring", "PrometheusRule")["spec"]["groups"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}, width=1000))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    return tmp_path


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [tool("promtool"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_rules_are_rules(folder: Path) -> None:
    done = promtool(folder, "check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(folder: Path) -> None:
    done = promtool(folder, "test", "rules", TESTS.name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_threshold_fails_the_tests(folder: Path) -> None:
    text = (folder / "rules.yaml").read_text()
    assert "> 0.01" in text
    (folder / "rules.yaml").write_text(text.replace("> 0.01", "> 0.5"))
    assert promtool(folder, "test", "rules", TESTS.name).returncode != 0


def test_each_alert_is_seen_to_fire_and_to_stay_silent() -> None:
    seen: dict[str, set[bool]] = {}
    document: dict[str, Any] = yaml.safe_load(TESTS.read_text())
    for test in document["tests"]:
        for case in test["alert_rule_test"]:
            seen.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert seen == {rule["alert"]: {True, False} for rule in rules()}
