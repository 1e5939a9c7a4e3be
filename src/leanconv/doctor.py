"""What leanconv finds on this machine, and what stands in its way: `leanconv doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Of the many features of a CPU, those that decide how fast a convolution can be.
_TELLING = (
    *("sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512vl", "avx512bw", "avx512dq"),
    *("avx512vnni", "avx512bf16", "avx512fp16", "amx-tile", "amx-int8", "amx-bf16"),
    *("neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve", "sve2", "sme"),
)
_THREAD_VARIABLES = ("LEANCONV_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        machine: facts about the machine.
        threads: how many threads are used, and why.
        cache: state of the cache of compiled kernels.
        versions: name of a component -> version.
        peak_gflops: number of threads -> measured peak of fused multiply-adds, float32.
        copy_gb_per_s: measured speed of copying in memory on one thread, read and written bytes counted; None
            if it was not asked for.
        problems: what should be mended, one sentence each.
        notes: what is worth knowing.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    threads: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    peak_gflops: dict[int, float] = field(default_factory=dict)
    copy_gb_per_s: float | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def package_version() -> str:
    """Return the version of leanconv."""
    import leanconv

    return leanconv.__version__


def versions() -> dict[str, str]:
    """Return the versions of what has a part in the results."""
    from leanconv.codegen.jit import llvm_version

    found = {"leanconv": package_version(), "python": platform.python_version()}
    for name in ("numpy", "llvmlite"):
        found[name] = importlib.metadata.version(name)
    found["llvm"] = llvm_version().rpartition("LLVM ")[2]
    return found


def machine_facts() -> dict[str, Any]:
    """Return what is known about the machine without measuring."""
    from leanconv import machine
    from leanconv.codegen.jit import host_target

    target, caches = host_target(), machine.cache_sizes()
    return {
        "cpu": machine.cpu_name(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "logical_cpus": os.cpu_count(),
        "usable_cpus": machine.cpu_count(),
        "default_threads": machine.default_threads(),
        "target": target.name,
        "features": sorted(word[1:] for word in target.features.split(",") if word.startswith("+")),
        "caches": {"l1d": caches.l1d, "l2": caches.l2, "l3": caches.l3, "line": caches.line},
    }


def examine(*, bandwidth: bool = False, every: bool = False) -> Diagnosis:
    """Look at everything and measure the peak; whatever goes wrong becomes a problem in the result.

    Args:
        bandwidth: whether to measure the speed of memory, too.
        every: whether the self-test runs every algorithm, instead of those that "auto" may take.
    """
    found = Diagnosis()

    def attempt(what: str, step: Callable[[Diagnosis], None]) -> None:
        try:
            step(found)
        except Exception as error:
            # The doctor's task is to report what is broken, also in ways nobody thought of.
            found.problems.append(f"{what} failed: {type(error).__name__}: {error}")

    attempt("Looking at the machine", _machine)
    attempt("Looking up versions", _versions)
    attempt("Choosing threads", _threads)
    attempt("Looking at the cache", _cache)
    attempt("Measuring the peak", _peak)
    attempt("The self-test", lambda found: _self_test(found, every=every))
    if bandwidth:
        attempt("Measuring memory", _bandwidth)
    return found


def _machine(found: Diagnosis) -> None:
    found.machine = machine_facts()
    if found.machine["target"] == "portable":
        found.problems.append("The CPU has no vector instructions leanconv knows; kernels will be slow.")
    forced = os.environ.get("LEANCONV_TARGET")
    if forced:
        found.notes.append(f"LEANCONV_TARGET={forced} decides which instructions are used.")


def _versions(found: Diagnosis) -> None:
    found.versions = versions()


def _threads(found: Diagnosis) -> None:
    from leanconv import machine

    usable, default, logical = machine.cpu_count(), machine.default_threads(), os.cpu_count() or 1
    set_by = {name: os.environ[name] for name in _THREAD_VARIABLES if os.environ.get(name)}
    found.threads = {
        "default": default,
        "usable_cpus": usable,
        "logical_cpus": logical,
        "environment": set_by,
    }
    if usable < logical:
        found.notes.append(f"{usable} of {logical} CPUs may be used: CPU affinity or a container's quota limits it.")
    own, openmp = (set_by.get(name) for name in _THREAD_VARIABLES)
    if own and own.isdigit() and int(own) > usable:
        found.problems.append(
            f"LEANCONV_NUM_THREADS={own}, but {usable} CPUs may be used: threads will wait for each other."
        )
    elif not own and openmp and default < usable:
        found.notes.append(f"OMP_NUM_THREADS={openmp} limits leanconv too; LEANCONV_NUM_THREADS overrides it.")


def _cache(found: Diagnosis) -> None:
    from leanconv.cache import ObjectCache

    info = ObjectCache().info()
    folder = Path(info.directory)
    found.cache = {
        "directory": str(folder),
        "mode": info.mode,
        "entries": info.entries,
        "bytes": info.bytes,
        "max_bytes": info.max_bytes,
    }
    if info.mode == "off":
        found.notes.append("The cache is off (LEANCONV_CACHE=off): each process compiles its kernels anew.")
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        found.problems.append(f"The cache cannot be used: {existing} is not a folder.")
    elif info.mode == "rw" and not os.access(existing, os.W_OK | os.X_OK):
        found.problems.append(f"Compiled kernels cannot be kept: {existing} is not writable. Set LEANCONV_CACHE_DIR.")
    elif sys.platform != "win32" and folder.exists():
        status = folder.stat()
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            found.problems.append(
                f"The cache is not used: {folder} belongs to someone else or others may write to it. "
                "It must be yours, with mode 0700."
            )


def _peak(found: Diagnosis) -> None:
    from leanconv.peak import fma_peak

    counts = {1, found.threads.get("default", 1)}
    for threads in sorted(counts):
        found.peak_gflops[threads] = max(fma_peak(threads=threads, dtype="float32") for _ in range(3))
    most = max(counts)
    if most > 1 and found.peak_gflops[most] < 0.7 * most * found.peak_gflops[1]:
        times = found.peak_gflops[most] / found.peak_gflops[1]
        found.notes.append(
            f"{most} threads reach {times:.1f} times the peak of one: the "
            "machine is busy, lowers its clock, or the CPUs share a core."
        )


def _self_test(found: Diagnosis, *, every: bool) -> None:
    """Run algorithms on two small layers and compare with float64."""
    from leanconv.algorithms import REGISTRY
    from leanconv.bench.benchdnn import parse
    from leanconv.bench.run import run
    from leanconv.bench.settings import ALL, Settings

    layers = [parse("mb2ic19ih11oc23kh3ph1nodd"), parse("mb1ic32ih14oc32kh1npointwise")]
    threads = found.threads.get("default", 1)
    names = (ALL,) if every else tuple(entry.name for entry in REGISTRY if entry.automatic)
    settings = Settings(names, layouts=("NHWC", "NCHW"), threads=(threads,), time=0, rounds=1)
    report = run(layers, settings)
    for row in report.failures:
        found.problems.append(f"Self-test: {row.algorithm}, {row.layout}, {row.layer}: {row.reason}")
    done = sum(row.status == "ok" for row in report.rows)
    found.notes.append(f"Self-test: {done} of {done + len(report.failures)} results agree with float64.")


def _bandwidth(found: Diagnosis) -> None:
    import time

    import numpy as np

    source = np.ones(128 << 20, dtype=np.uint8)
    target = np.zeros_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    found.copy_gb_per_s = 2 * source.nbytes / min(times) / 1e9


def show(found: Diagnosis, console: Console) -> None:
    """Print a diagnosis."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for title, text in _lines(found):
        grid.add_row(title, Text(text))
    for note in found.notes:
        grid.add_row("note", Text(note))
    for problem in found.problems:
        grid.add_row(Text("problem", style="red"), Text(problem))
    if not found.problems:
        grid.add_row("", Text("No problems found.", style="green"))
    console.print(grid)


def _lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    """Yield the facts, each with its title."""
    from leanconv.sizes import format_bytes

    facts = found.machine
    if facts:
        yield "cpu", f"{facts['cpu']}, {facts['architecture']}, {facts['system']}"
        telling = [feature for feature in _TELLING if feature in facts["features"]]
        yield "target", f"{facts['target']}: {' '.join(telling)}"
        caches = {name.upper(): size for name, size in facts["caches"].items() if name != "line"}
        sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in caches.items())
        yield "caches", f"{sizes}, lines of {facts['caches']['line']} B"
    if found.threads:
        where = [f"{name}={value}" for name, value in found.threads["environment"].items()]
        cpus = f"{found.threads['usable_cpus']} usable of {found.threads['logical_cpus']} logical CPUs"
        yield "threads", f"{found.threads['default']} by default, from {', '.join([*where, cpus])}"
    for threads, peak in found.peak_gflops.items():
        yield "peak", f"{peak:.1f} GFLOP/s float32, {threads} thread{'s' if threads > 1 else ''}"
    if found.copy_gb_per_s is not None:
        yield "memory", f"{found.copy_gb_per_s:.1f} GB/s copied (read and written) on one thread"
    if found.cache:
        held = f"{found.cache['entries']} kernels, {format_bytes(found.cache['bytes'])}"
        yield "cache", f"{found.cache['directory']} ({found.cache['mode']}): {held}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield "platform", f"{sys.platform}, {platform.python_implementation()}"
