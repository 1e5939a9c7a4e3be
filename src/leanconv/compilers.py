"""Kernels compiled by several threads at once, and those of a whole network by several processes.

LLVM compiles on any number of threads, but a quarter of the time goes to making its text, which only one thread of a
process does at a time; and a process to compile in costs a third of a second to start.  So few new kernels are shared
among threads. Programs of many start processes, hand them one specification at a time, and compile along themselves;
what a process that dies was given is done by the others.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

    from leanconv.compiled import KernelSpec

SETTING = "LEANCONV_COMPILERS"
MANY = 12  # new kernels, of some 60 ms each, that are worth starting processes for
MOST = 8
_COMMAND = "from leanconv.compilers import serve; serve()"

Deliver = Callable[["KernelSpec", tuple[str, ...], bytes], None]


def processes() -> int:
    """How many processes compile, this one included: LEANCONV_COMPILERS, or one for each core up to eight."""
    from leanconv.errors import ArgumentValueError
    from leanconv.machine import cpu_count

    text = os.environ.get(SETTING, "").strip()
    if not text:
        return min(MOST, cpu_count())
    if not text.isdigit() or int(text) < 1:
        raise ArgumentValueError(SETTING, text, "must be a number of processes, at least 1")
    return int(text)


def side_by_side(tasks: Sequence[Callable[[], object]]) -> None:
    """Do what can be done in any order, on this thread, which begins with the last, and on others.

    What fails on another thread has to be asked for again, and then says why.
    """
    waiting = list(tasks)

    def take(index: int) -> Callable[[], object] | None:
        try:
            return waiting.pop(index)
        except IndexError:
            return None

    def help_along() -> None:
        while (task := take(0)) is not None:
            with contextlib.suppress(Exception):
                task()

    helpers = [threading.Thread(target=help_along, daemon=True) for _ in range(min(processes(), len(tasks)) - 1)]
    for helper in helpers:
        helper.start()
    try:
        while (task := take(-1)) is not None:
            task()
    finally:
        waiting.clear()
        for helper in helpers:
            helper.join()


def compile_together(specs: Sequence[KernelSpec], deliver: Deliver, here: Callable[[KernelSpec], object]) -> None:
    """Compile specifications in other processes and, by `here`, in this one.

    Args:
        specs: all different.
        deliver: takes the names of the fields and the object code of what another process compiled.
        here: compiles one and keeps it; its errors are raised.
    """
    waiting = list(reversed(specs))
    lock = threading.Lock()

    def take() -> KernelSpec | None:
        with lock:
            return waiting.pop() if waiting else None

    def give_back(spec: KernelSpec) -> None:
        with lock:
            waiting.append(spec)

    def feed(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        while (spec := take()) is not None:
            try:
                pickle.dump(spec, process.stdin)
                process.stdin.flush()
                fields, code = pickle.load(process.stdout)
            except Exception:  # the process is gone, or could not: done here, where what is wrong can be told
                give_back(spec)
                return
            deliver(spec, fields, code)

    with _started(min(processes(), len(specs)) - 1) as others:
        feeders = [threading.Thread(target=feed, args=(process,), daemon=True) for process in others]
        for feeder in feeders:
            feeder.start()
        while (spec := take()) is not None:
            here(spec)
        for feeder in feeders:
            feeder.join()
    while (spec := take()) is not None:
        here(spec)


@contextlib.contextmanager
def _started(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that serve, fewer or none where they cannot be started; ended afterwards."""
    import subprocess  # only here: most processes find their kernels in the cache

    others: list[subprocess.Popen[bytes]] = []
    # Another program that embeds Python is no interpreter to be started.
    if os.path.basename(sys.executable or "").lower().startswith(("python", "pypy")):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        for _ in range(count):
            with contextlib.suppress(OSError):
                others.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _COMMAND],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        env={**os.environ, "PYTHONPATH": path},
                    )
                )
    try:
        yield others
    finally:
        for process in others:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.terminate()
            process.wait()


def serve(source: IO[bytes] | None = None, target: IO[bytes] | None = None) -> None:
    """Compile what comes in, until nothing does: the life of a process that was started."""
    from leanconv.compiled import object_code

    source, target = source or sys.stdin.buffer, target or sys.stdout.buffer
    while True:
        try:
            spec: Any = pickle.load(source)
        except EOFError:
            return
        pickle.dump(object_code(spec), target)
        target.flush()
