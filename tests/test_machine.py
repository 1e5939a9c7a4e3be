"""What the system says about CPUs and caches, on made-up trees of /sys and /proc."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from leanconv import machine
from leanconv.errors import ArgumentValueError
from leanconv.machine import CacheSizes, cache_sizes, cpu_count, cpu_name, default_threads

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /sys and /proc")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 CPUs, two a core, without limits."""
    for name in ("LEANCONV_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: frozenset(range(8)))
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: math.inf)
    monkeypatch.setattr(machine, "_physical_cores", lambda cpus: len(cpus) // 2)


def test_this_machine() -> None:
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)
    if "LEANCONV_NUM_THREADS" not in os.environ:
        assert 1 <= default_threads() <= cpu_count()
    sizes = cache_sizes()
    assert 4096 <= sizes.l1d < sizes.l2 <= sizes.l3
    assert sizes.line in (32, 64, 128, 256)
    assert cpu_name().strip() == cpu_name() != ""


@linux
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quota", "count"), [(math.inf, 8), (16.0, 8), (8.0, 8), (3.2, 4), (1.5, 2), (1.0, 1), (0.1, 1)]
)
def test_quota_is_rounded_up(roomy: None, monkeypatch: pytest.MonkeyPatch, quota: float, count: int) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    assert cpu_count() == count
    assert default_threads() == min(count, 4)


@pytest.mark.parametrize(
    ("own", "openmp", "threads"),
    [
        ("", "", 4),
        ("1", "", 1),
        (" 12 ", "2", 12),
        ("", "2", 2),
        ("", "3,2,1", 3),
        ("", " 3 , 2", 3),
        ("", "64", 4),
        ("", "0", 4),
        ("", "-1", 4),
        ("", "many", 4),
        ("", "²", 4),
    ],
)
def test_environment(roomy: None, monkeypatch: pytest.MonkeyPatch, own: str, openmp: str, threads: int) -> None:
    monkeypatch.setenv("LEANCONV_NUM_THREADS", own)
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert default_threads() == threads


@pytest.mark.parametrize("value", ["0", "-2", "2.0", "two", "1,2", "²"])
def test_bad_number_of_threads(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LEANCONV_NUM_THREADS", value)
    with pytest.raises(ArgumentValueError, match="must be a whole number of at least 1"):
        default_threads()


V1 = "4:cpuset:/\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "250000 100000"}, 2.5),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        # The host's path; what is mounted is the container's own group.
        ("0::/docker/abc", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/../other", {"cpu.max": "300000 100000"}, 3.0),
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000"}, math.inf),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "25000"}, 2.0),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, math.inf),
        (V1, {"unified/cpu.max": "100000 100000"}, 1.0),
        (V1, {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, math.inf),
        ("garbage\n\n0::", {"cpu.max": "0 0"}, math.inf),
        ("0::/", {"cpu.max": "x y"}, math.inf),
    ],
)
def test_cgroups(tmp_path: Path, own: str, files: dict[str, str], quota: float) -> None:
    write(tmp_path, {"self": own})
    write(tmp_path / "mounted", files)
    assert machine._cgroup_quota(tmp_path / "self", tmp_path / "mounted") == quota


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert machine._cgroup_quota(tmp_path / "none", tmp_path / "none") == math.inf


@linux
def test_physical_cores(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "cpu0/topology/thread_siblings_list": "0,4",
            "cpu1/topology/core_cpus_list": "1,5",
            "cpu1/topology/thread_siblings_list": "1,5",
            "cpu4/topology/thread_siblings_list": "0,4",
            "cpu5/topology/core_cpus_list": "1,5",
        },
    )
    for cpus, cores in (({0, 1, 4, 5}, 2), ({0, 4}, 1), ({0, 1}, 2), ({4}, 1), ({0, 4, 8, 9}, 3)):
        assert machine._physical_cores(frozenset(cpus), tmp_path) == cores
    assert machine._physical_cores(frozenset({0, 1}), tmp_path / "none") == 2


def index(number: int, level: int, kind: str, size: str, line: str = "64") -> dict[str, str]:
    parts = {"level": str(level), "type": kind, "size": size, "coherency_line_size": line}
    return {f"index{number}/{name}": text for name, text in parts.items()}


@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        ({}, CacheSizes(32 << 10, 512 << 10, 8 << 20, 64)),
        (
            index(0, 1, "Data", "48K")
            | index(1, 1, "Instruction", "64K", "32")
            | index(2, 2, "Unified", "1024K")
            | index(3, 3, "Unified", "32768K"),
            CacheSizes(48 << 10, 1 << 20, 32 << 20, 64),
        ),
        # A CPU without a third level.
        (
            index(0, 1, "Data", "64K", "128") | index(1, 2, "Unified", "1M", "128"),
            CacheSizes(64 << 10, 1 << 20, 1 << 20, 128),
        ),
        # A system that says little, or nonsense.
        (index(0, 1, "Data", "64K"), CacheSizes(64 << 10, 512 << 10, 8 << 20, 64)),
        (index(0, 1, "Data", "unknown", "?"), CacheSizes()),
        ({"index0/level": "1"}, CacheSizes()),
    ],
)
def test_cache_sizes(tmp_path: Path, files: dict[str, str], sizes: CacheSizes) -> None:
    write(tmp_path, files)
    assert machine._sys_cache_sizes(tmp_path) == sizes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC 9654\n\nprocessor\t: 1\nmodel name\t: other",
            "AMD EPYC 9654",
        ),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0b", "Arm Cortex-A76"),
        ("CPU implementer\t: 0x48\nCPU part\t: 0xd01", "Arm core 0x48/0xd01"),
        ("CPU implementer\t: 0x41\nCPU part\t: odd", ""),
        ("hart : 0\nuarch : sifive,u74-mc", "sifive,u74-mc"),
        ("", ""),
    ],
)
def test_names(text: str, name: str) -> None:
    assert machine._cpuinfo_name(text) == name


def test_sysctl_without_sysctl() -> None:
    assert machine._sysctl("no.such.name") == 0
    assert machine._sysctl_text("no.such.name") == ""
