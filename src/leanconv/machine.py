"""What the operating system says about the machine: CPUs that may be used, sizes of caches, the CPU's name.

Nothing here is measured, and nothing fails: where the system says nothing, a documented default is returned.
Linux is asked through /proc and /sys, macOS through sysctl, Windows through Python.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterable
from functools import lru_cache

from leanconv.classes import dataclass
from leanconv.errors import ArgumentValueError

# Text, not paths: the import of pathlib takes longer than all that is read here.
_CGROUPS, _OWN_CGROUPS = "/sys/fs/cgroup", "/proc/self/cgroup"
# What /proc/cpuinfo calls what decides which instructions a CPU runs, on x86 and then on ARM.
_TELLING = frozenset(("vendor_id", "cpu family", "model", "model name", "stepping", "flags"))
_TELLING |= {"Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"}
_CPUS, _CPUINFO = "/sys/devices/system/cpu", "/proc/cpuinfo"

# MIDR implementer and part; arm64 kernels print no name.
_ARM_CORES = {
    (0x41, 0xD03): "Arm Cortex-A53",
    (0x41, 0xD05): "Arm Cortex-A55",
    (0x41, 0xD08): "Arm Cortex-A72",
    (0x41, 0xD0B): "Arm Cortex-A76",
    (0x41, 0xD0C): "Arm Neoverse-N1",
    (0x41, 0xD40): "Arm Neoverse-V1",
    (0x41, 0xD41): "Arm Cortex-A78",
    (0x41, 0xD49): "Arm Neoverse-N2",
    (0x41, 0xD4F): "Arm Neoverse-V2",
}


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Sizes in bytes of the caches one core sees, and of their line.

    Attributes:
        l1d: first level, data.
        l2: second level, whole, also if a cluster of cores shares it.
        l3: third level, whole; the second level again if the CPU has no third.
        line: a cache line.
    """

    l1d: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 8 << 20
    line: int = 64


def cpu_count() -> int:
    """Return how many CPUs this process can keep busy, at least 1.

    That is the number of CPUs its affinity allows, or fewer if a cgroup (a container) has a quota of CPU
    time: 1.5 CPUs count as 2.
    """
    return max(1, math.ceil(min(len(_allowed_cpus()), _cgroup_quota())))


def default_threads() -> int:
    """Return how many threads to use if the caller does not say, at least 1.

    `LEANCONV_NUM_THREADS` decides if set. Else it is one thread for each physical core that may be used (two
    threads of one core share its multipliers, so the second adds next to nothing), or fewer by a cgroup's
    quota or by `OMP_NUM_THREADS`, whose first number counts.

    Raises:
        ArgumentValueError: `LEANCONV_NUM_THREADS` is not a whole number of at least 1.
    """
    own = os.environ.get("LEANCONV_NUM_THREADS", "").strip()
    if own:
        if not _is_count(own):
            raise ArgumentValueError("LEANCONV_NUM_THREADS", own, "must be a whole number of at least 1")
        return int(own)
    threads = min(cpu_count(), _physical_cores(_allowed_cpus()))
    # Not ours to complain about: other programs' spellings of it are their business.
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(threads, int(openmp)) if _is_count(openmp) else threads


@lru_cache(maxsize=1)
def cache_sizes() -> CacheSizes:
    """Return the sizes of the caches of a CPU this process may use; `CacheSizes()` where they are unknown."""
    if sys.platform == "darwin":
        # The fast cores of a CPU that has two kinds; else all are alike.
        l1d, l2 = (
            _sysctl(f"hw.perflevel0.{name}") or _sysctl(f"hw.{name}") for name in ("l1dcachesize", "l2cachesize")
        )
        return _complete(l1d, l2, _sysctl("hw.l3cachesize"), _sysctl("hw.cachelinesize"))
    return _sys_cache_sizes(f"{_CPUS}/cpu{min(_allowed_cpus())}/cache")


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Return the CPU's name as its maker or the system spells it, or the architecture if it has no name."""
    if sys.platform == "darwin":
        name = _sysctl_text("machdep.cpu.brand_string")
    else:
        name = _cpuinfo_name(_read(_CPUINFO))
    return name or platform.processor() or platform.machine() or "unknown CPU"


@lru_cache(maxsize=1)
def cpu_identity() -> str:
    """Return text that differs between CPUs that run different instructions; empty where the system describes none.

    It is of Linux' own description, and of the capabilities that it tells every process: an emulator that changes what
    a CPU can do changes those.
    """
    if not sys.platform.startswith("linux"):
        return ""
    try:
        with open(_CPUINFO, encoding="utf-8", errors="replace") as file:
            lines = _described(file)
    except OSError:
        return ""
    if not lines:
        return ""
    capabilities = ctypes.CDLL(None).getauxval
    capabilities.argtypes, capabilities.restype = (ctypes.c_ulong,), ctypes.c_ulong
    return "\n".join([platform.machine(), *lines, *(f"{capabilities(kind):x}" for kind in (16, 26))])  # AT_HWCAP, 2


def _described(cpuinfo: Iterable[str]) -> list[str]:
    """Return the lines that tell what kinds of CPU there are.

    Of x86 CPUs the first is enough, and the kernel takes its time to describe many: reading stops there.
    """
    found: dict[str, None] = {}
    for line in cpuinfo:
        name, _, value = line.partition(":")
        if name.strip() in _TELLING:
            found[f"{name.strip()}: {' '.join(value.split())}"] = None
        elif not name.strip() and any(each.startswith("flags:") for each in found):
            break
    return list(found)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _read(path: str) -> str:
    """Return the text of a small file of the system, stripped; nothing if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _allowed_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs the affinity allows; never empty."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(getattr(os, "process_cpu_count", os.cpu_count)() or 1))


def _cgroup_quota(own: str = _OWN_CGROUPS, mounted: str = _CGROUPS) -> float:
    """Return the CPUs' worth of time that the cgroups of this process allow; infinity without a limit."""
    quota = math.inf
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 names no controllers; beside version 1 it is mounted one level down.
        roots = [f"{mounted}/{controllers}", f"{mounted}/cpu"] if controllers else [mounted, f"{mounted}/unified"]
        for root in roots:
            # The limits of all groups above count too. In a container the path may be the host's, of which
            # nothing exists here but the root.
            parts = [part for part in group.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                quota = min(quota, _quota_of(os.path.join(root, *parts[:depth])))
    return quota


def _quota_of(group: str) -> float:
    words = _read(f"{group}/cpu.max").split()  # "max 100000" or "150000 100000"
    if not words:
        words = [_read(f"{group}/cpu.cfs_quota_us"), _read(f"{group}/cpu.cfs_period_us")]  # "-1" for none
    if len(words) == 2 and _is_count(words[0]) and _is_count(words[1]):
        return int(words[0]) / int(words[1])
    return math.inf


@lru_cache(maxsize=8)
def _physical_cores(cpus: frozenset[int], folder: str = _CPUS) -> int:
    """Return how many cores the given CPUs belong to; as many as CPUs where the system does not say."""
    if sys.platform == "darwin":
        return _sysctl("hw.physicalcpu") or len(cpus)
    cores = set()
    for cpu in cpus:
        topology = f"{folder}/cpu{cpu}/topology"
        siblings = _read(f"{topology}/core_cpus_list") or _read(f"{topology}/thread_siblings_list")
        cores.add(siblings or str(cpu))
    return len(cores)


def _sys_cache_sizes(folder: str) -> CacheSizes:
    found: dict[str, int] = {}
    line = 0
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    for index in (f"{folder}/{entry}" for entry in entries if entry.startswith("index")):
        if _read(f"{index}/type") != "Instruction":
            found[_read(f"{index}/level")] = _size(_read(f"{index}/size"))
            line = line or _size(_read(f"{index}/coherency_line_size"))
    return _complete(found.get("1", 0), found.get("2", 0), found.get("3", 0), line)


def _complete(l1d: int, l2: int, l3: int, line: int) -> CacheSizes:
    """Fill in what the system did not say (0)."""
    default = CacheSizes()
    if l1d and l2 and not l3:
        l3 = l2  # It told all there is.
    return CacheSizes(l1d or default.l1d, l2 or default.l2, l3 or default.l3, line or default.line)


def _size(text: str) -> int:
    """Return the bytes of `32K`, `1M` or `64`; 0 for anything else."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    digits = text[:-1] if shift else text
    return int(digits) << shift if _is_count(digits) else 0


def _cpuinfo_name(text: str) -> str:
    """Return the CPU's name from the text of /proc/cpuinfo; nothing if there is none."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if fields.get("model name"):
        return fields["model name"]
    try:
        implementer, part = int(fields["CPU implementer"], 16), int(fields["CPU part"], 16)
    except (KeyError, ValueError):
        return fields.get("uarch", "")  # RISC-V
    return _ARM_CORES.get((implementer, part), f"Arm core {implementer:#x}/{part:#x}")


def _sysctl_bytes(name: str) -> bytes:
    """Return a value of macOS's sysctl; nothing if it has none of that name."""
    try:
        call = ctypes.CDLL(None).sysctlbyname
        size = ctypes.c_size_t(256)
        value = ctypes.create_string_buffer(size.value)
        if call(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)):
            return b""
        return value.raw[: size.value]
    except (AttributeError, OSError):
        return b""


def _sysctl(name: str) -> int:
    return int.from_bytes(_sysctl_bytes(name), sys.byteorder)


def _sysctl_text(name: str) -> str:
    return _sysctl_bytes(name).rstrip(b"\0").decode(errors="replace").strip()
