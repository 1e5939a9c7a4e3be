"""Processes in which a network runs, as it is in PyTorch or swapped: to time both in turns, to see how much each takes.

Every process is new, and has both libraries loaded and warm before anything is measured. It comes from a server that
has imported them and has done nothing else (where the system can fork), so that this is not waited for again.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from leanconv.arrays import Array
from leanconv.bench.models import MODELS, make_model
from leanconv.bench.process_memory import PeakMemory
from leanconv.bench.processes import process

SIDES = ("pytorch", "leanconv")
SETTLE = 0.05  # seconds in which the threads of the side before come to rest
LONG = 0.5  # seconds; a call that takes longer is timed once in a turn, and without one to warm up
CALLS = 2  # that are timed in each turn, if they are short
MEASURED_CALLS = 2  # whose memory is measured
_PRELOAD = ("leanconv.torch", "leanconv.bench.torch_sides")


@dataclass(frozen=True, slots=True)
class Work:
    """What a process runs.

    Attributes:
        network: a name of `MODELS`.
        side: one of `SIDES`.
        batch: images.
        swap: keywords of `leanconv.torch.swap`.
        share_threads: whether leanconv is to run on PyTorch's threads.
    """

    network: str
    side: str
    batch: int
    swap: dict[str, Any]
    share_threads: bool = False


class Timed:
    """A model in a process, which runs it when told to.

    Attributes:
        output: of the model.
    """

    def __init__(self, work: Work, threads: int) -> None:
        """Start the process and wait for its first output."""
        self._stack = contextlib.ExitStack()
        self._pipe = self._stack.enter_context(process(_serve, work, threads, preload=_PRELOAD))
        self.output: Array = self._pipe.recv()

    def turn(self, threads: int) -> list[float]:
        """Seconds of the calls of a turn."""
        self._pipe.send(threads)
        found: list[float] = self._pipe.recv()
        return found

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def peak_bytes(work: Work, threads: int) -> int | None:
    """Memory beyond the model as it was built, in a process of its own; None if the system does not tell.

    That is how far resident memory rises at most, over conversion or swap and two calls. For leanconv's kernels to be
    in the cache, the same work must have run before.
    """
    with process(_measure, work, threads, preload=_PRELOAD) as pipe:
        found: int | None = pipe.recv()
    return found


def _serve(pipe: Any, work: Work, threads: int) -> None:
    """What a process does that is timed, until nobody asks any more."""
    import torch

    x = _warm(work, threads)
    with torch.no_grad(), contextlib.suppress(EOFError, KeyboardInterrupt):
        model = _prepared(make_model(work.network), work, x)
        start = time.perf_counter()
        output = model(x)
        last = time.perf_counter() - start
        pipe.send(output.numpy())
        seen = {threads}
        while True:
            threads = pipe.recv()
            torch.set_num_threads(threads)
            time.sleep(SETTLE)
            # Swapped models are compiled for a number of threads; and caches and threads are to be as this side leaves
            # them in what is timed, which a long call sees to.
            if last < LONG or (work.side == "leanconv" and threads not in seen):
                model(x)
            seen.add(threads)
            seconds: list[float] = []
            while len(seconds) < (1 if sum(seconds) > LONG else CALLS):
                start = time.perf_counter()
                model(x)
                seconds.append(time.perf_counter() - start)
            last = seconds[-1]
            pipe.send(seconds)


def _measure(pipe: Any, work: Work, threads: int) -> None:
    """What a process does whose memory is measured."""
    import torch

    x = _warm(work, threads)
    with torch.no_grad():
        model = make_model(work.network)
        memory = PeakMemory()
        model = _prepared(model, work, x)
        for _ in range(MEASURED_CALLS):
            model(x)
        pipe.send(memory.extra_bytes())


def _warm(work: Work, threads: int) -> Any:
    """Images, after both libraries have run something small: what they take once is not the model's."""
    import torch

    import leanconv.torch

    torch.set_num_threads(threads)
    x = torch.randn(work.batch, *MODELS[work.network][1], generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)).eval()
        few = x[:, :, :16, :16].contiguous(memory_format=torch.channels_last)
        small(few), leanconv.torch.swap(small, example_input=few, measure=False), small(few)
    return x


def _prepared(model: Any, work: Work, x: Any) -> Any:
    """The model as its side runs it."""
    import torch

    import leanconv.torch

    if work.side == "pytorch":
        return model.to(memory_format=torch.channels_last)
    leanconv.torch.swap(model, example_input=x, measure=False, **work.swap)
    if work.share_threads:
        leanconv.torch.share_threads()
    return model
