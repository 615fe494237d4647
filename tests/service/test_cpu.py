from __future__ import annotations

from pathlib import Path

import pytest

from service.cpu import usable_cpus


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_the_affinity_mask_limits_where_there_are_no_cgroups(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path, affinity=6) == 6


def test_this_machine_gives_at_least_one() -> None:
    assert usable_cpus() >= 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("max 100000", 8), ("50000 100000", 1), ("390000 100000", 3), ("x", 8)],
)
def test_a_version_2_quota_limits_and_fractions_are_rounded_down(tmp_path: Path, quota: str, expected: int) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": quota})
    assert usable_cpus(tmp_path, affinity=8) == expected


def test_the_tightest_of_nested_version_2_groups_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000",
            "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
        },
    )
    assert usable_cpus(tmp_path, affinity=16) == 3


def test_a_container_that_sees_the_hosts_path_reads_the_mount_itself(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/kubepods/pod1/abc\n", "sys/fs/cgroup/cpu.max": "400000 100000"})
    assert usable_cpus(tmp_path, affinity=16) == 4


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_a_version_1_quota_limits(tmp_path: Path, folder: str) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/app\n2:cpu,cpuacct:/app\n0::/\n",
            f"sys/fs/cgroup/{folder}/app/cpu.cfs_quota_us": "250000",
            f"sys/fs/cgroup/{folder}/app/cpu.cfs_period_us": "100000",
        },
    )
    assert usable_cpus(tmp_path, affinity=16) == 2


def test_version_1_without_a_quota_doesnt_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "2:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert usable_cpus(tmp_path, affinity=5) == 5
