"""The workflow runs the make targets that there are, and the README of `k8s/` names what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.k8s.rendered import K8S, ROOT, one

WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()
README = (K8S / "README.md").read_text()


def make_targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    return set(phony[1].split())


def test_the_workflow_calls_make_and_nothing_else() -> None:
    jobs = yaml.safe_load(WORKFLOW)["jobs"]
    called = jobs["check"]["strategy"]["matrix"]["target"]
    assert set(called) == {"lint", "test", "image-test", "k8s-test"}
    assert set(called) <= make_targets()
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for run in steps:
        assert "make " in run or run == "sudo k8s/tools.sh cluster"
    targets = {item["target"] for item in jobs["publish"]["strategy"]["matrix"]["include"]}
    assert targets == {"cpu", "gpu", "loadtest"}


def test_the_readme_names_targets_files_and_settings_that_exist() -> None:
    targets = set(re.findall(r"make ([a-z0-9]+(?:-[a-z]+)*)", README.replace("make\n", "make ")))
    assert targets <= make_targets()
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (K8S / link).exists(), link
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        headings = [heading.lower() for heading in re.findall(r"^#+ (.+)$", README, re.M)]
        assert anchor in headings, anchor
    for file in re.findall(r"`((?:tests|models|k8s|identity|autoscaling|monitoring)/[\w./-]+\.\w+)`", README):
        assert (ROOT / file).exists() or (K8S / file).exists(), file


def test_the_capacity_table_is_what_the_command_prints() -> None:
    command = re.search(r"^python3 (k8s/capacity\.py .*)$", README, re.M)
    assert command
    printed = subprocess.run(
        [sys.executable, *command[1].split()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() in README


def test_capacity_is_counted_for_other_machines_too() -> None:
    command = [sys.executable, str(K8S / "capacity.py")]
    tables = [
        subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for options in ((), ("--benchmark", "models/zoo/cifar100-vits14/benchmark-avx2.json"))
    ]
    ours, theirs = (re.findall(r"\| int8 \| [\d.]+% \| ([\d.]+)", table) for table in tables)
    assert len(ours) == len(theirs) == 3
    assert all(float(slow) < 0.5 * float(fast) for fast, slow in zip(ours, theirs, strict=True))  # as the README says


def test_the_times_in_the_upgrade_runbook_are_the_manifests() -> None:
    spec = one("overlays/cpu", "Deployment")["spec"]
    assert f"ready for {spec['minReadySeconds']} s before" in " ".join(README.split())
    assert spec["progressDeadlineSeconds"] == 180  # "after three minutes"
    assert spec["revisionHistoryLimit"] == 5  # "the last five revisions"


def test_shell_scripts_parse() -> None:
    for script in [*K8S.rglob("*.sh"), *Path(ROOT / ".ci").iterdir()]:
        subprocess.run(["bash", "-n", str(script)], check=True)
