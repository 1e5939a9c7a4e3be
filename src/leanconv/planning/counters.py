"""What the processor counts while a function runs: cycles, instructions and cache misses, where Linux offers them.

perf_event_open(2) counts in user space only, which `perf_event_paranoid` up to 2 allows; virtual machines and
containers often have no counters, which is said in words.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterator, Mapping

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ATTR_BYTES = 64  # of the first version of the structure, which every kernel takes
_DISABLED, _NO_KERNEL, _NO_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_TIMES = 1 << 0 | 1 << 1  # read with the time enabled and the time running: several events may share a counter
_ENABLE, _DISABLE = 0x2400, 0x2401

_HARDWARE, _CACHE = 0, 3
_L1D_READ_MISS = 0 | 0 << 8 | 1 << 16
EVENTS: Mapping[str, tuple[int, int]] = {
    "cycles": (_HARDWARE, 0),
    "instructions": (_HARDWARE, 1),
    "L1d misses": (_CACHE, _L1D_READ_MISS),
    "last-level misses": (_HARDWARE, 3),
}
"""Name -> type and configuration of an event, as <linux/perf_event.h> has them."""


def counted(
    call: Callable[[], object], calls: int, events: Mapping[str, tuple[int, int]] = EVENTS
) -> tuple[dict[str, float], str]:
    """Events of one call in this thread, the mean of several; and why some are missing, or "".

    Args:
        call: what is counted; only what this thread does counts.
        calls: how often it is called.
        events: what to count.
    """
    number = _SYSCALL.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return {}, f"counters are read on Linux on {' and '.join(_SYSCALL)} only"
    found: dict[str, float] = {}
    missing: dict[str, list[str]] = {}
    with contextlib.ExitStack() as stack:
        opened: dict[str, int] = {}
        for name, event in events.items():
            try:
                opened[name] = stack.enter_context(_event(number, *event))
            except OSError as error:
                missing.setdefault(error.strerror or str(error), []).append(name)
        if opened:
            _switch(opened, _ENABLE)
            for _ in range(calls):
                call()
            _switch(opened, _DISABLE)
        for name, file in opened.items():
            value, enabled, running = struct.unpack("=3Q", os.read(file, 24))
            if running:
                found[name] = value * enabled / running / calls
    return found, "; ".join(f"{', '.join(names)}: {reason}" for reason, names in missing.items())


def counters_text(found: Mapping[str, float], missing: str) -> str:
    """One line: the counts of a call, or why there are none."""
    words = [f"{name} {value:,.0f}" for name, value in found.items()]
    if found.get("cycles") and "instructions" in found:
        words.append(f"{found['instructions'] / found['cycles']:.2f} instructions a cycle")
    return "; ".join([*words, *([f"not counted here: {missing}"] if missing else [])])


@contextlib.contextmanager
def _event(number: int, kind: int, config: int) -> Iterator[int]:
    """The file of an event of this thread; it does not count yet."""
    flags = _DISABLED | _NO_KERNEL | _NO_HYPERVISOR
    attr = ctypes.create_string_buffer(struct.pack("=II5Q", kind, _ATTR_BYTES, config, 0, 0, _TIMES, flags), 128)
    library = ctypes.CDLL(None, use_errno=True)
    this_thread, any_cpu, no_group, close_on_exec = 0, -1, -1, 1 << 3
    file = library.syscall(
        ctypes.c_long(number), attr, ctypes.c_int(this_thread), any_cpu, no_group, ctypes.c_ulong(close_on_exec)
    )
    if file < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    try:
        yield file
    finally:
        os.close(file)


def _switch(opened: Mapping[str, int], request: int) -> None:
    import fcntl  # POSIX only

    for file in opened.values():
        fcntl.ioctl(file, request, 0)
