"""`python -m leanconv.bench.torch_models`: networks swapped by leanconv beside PyTorch, channels last.

Each side has a process of its own, and they take turns round by round: the threads of one library, which spin for a
while after its last call, are not to slow the other down. Memory is how far the process's resident memory rises at most
above that with the model as it was built, over conversion or swap and three calls, kernels being in the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanconv.bench.intervals import factor_interval
from leanconv.bench.models import MODELS, make_model
from leanconv.bench.process_memory import PeakMemory
from leanconv.sizes import format_bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m leanconv.bench.torch_models", description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all if none is named")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-limit", default=None, help='of each swapped model, such as "4MiB"')
    parser.add_argument("--release-weights", action="store_true", help="move plain weights to a file, see `swap`")
    parser.add_argument("--share-threads", action="store_true", help="run leanconv on PyTorch's threads")
    given = parser.parse_args(arguments)
    unknown = set(given.models) - set(MODELS)
    if unknown:
        parser.error(f"no network is called {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    print(f"batch {given.batch}, threads {given.threads}, {given.rounds} rounds, float32; milliseconds, medians")
    print(f"{'network':<14}{'PyTorch':>9}{'leanconv':>10}{'ratio':>7}  {'95 %':<14}{'error':>8}{'memory':>11}{'':>11}")
    ratios = []
    for name in given.models or MODELS:
        times, memory, error = _compare(name, given)
        interval = factor_interval(times["pytorch"], times["leanconv"], 0.95)
        texts = ["-" if nbytes is None else format_bytes(nbytes) for nbytes in memory.values()]
        medians = [statistics.median(seconds) * 1e3 for seconds in times.values()]
        ratios.append(interval.ratio)
        print(
            f"{name:<14}{medians[0]:>9.2f}{medians[1]:>10.2f}"
            f"{interval.ratio:>7.2f}  [{interval.low:.2f}, {interval.high:.2f}]  {error:>8.0e}"
            f"{texts[0]:>11}{texts[1]:>11}",
            flush=True,
        )
    print(f"geometric mean of the ratios: {math.exp(statistics.mean(map(math.log, ratios))):.2f}")


SIDES = ("pytorch", "leanconv")
CALLS = 2  # that are timed in each turn


def _compare(name: str, given: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, int | None], float]:
    """Seconds and bytes of both sides, and the largest difference of their outputs relative to the largest output."""
    with _Side(name, "leanconv", given):
        pass  # compiles kernels, for the cache
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(_Side(name, side, given)) for side in SIDES}
        theirs, ours = (side.output for side in sides.values())
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for _ in range(given.rounds):
            for side, process in sides.items():
                times[side] += process.turn()
        return times, {side: process.extra_bytes for side, process in sides.items()}, error


class _Side:
    """A model in a process, which runs it when told to.

    Attributes:
        output: of the model.
        extra_bytes: memory beyond the model as it was built; None if the system does not tell.
    """

    def __init__(self, name: str, side: str, given: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, side, given))
        self._process.start()
        theirs.close()
        self.extra_bytes, self.output = self._pipe.recv()

    def turn(self) -> list[float]:
        """Seconds of the calls of a turn."""
        self._pipe.send(True)
        found: list[float] = self._pipe.recv()
        return found

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, name: str, side: str, given: argparse.Namespace) -> None:
    """What a process does: measure memory, then take turns until nobody asks any more."""
    import torch

    import leanconv.torch

    torch.set_num_threads(given.threads)
    x = _images(name, given.batch).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        # Both libraries loaded and warm, on something small: what they take once is not the model's.
        small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)).eval()
        few = x[:, :, :16, :16].contiguous(memory_format=torch.channels_last)
        small(few), leanconv.torch.swap(small, example_input=few, measure=False), small(few)
        model = make_model(name)
        memory = PeakMemory()
        model = _prepared(model, side, x, given)
        for _ in range(3):
            output = model(x)
        pipe.send((memory.extra_bytes(), output.numpy()))
        with contextlib.suppress(EOFError):
            while pipe.recv():
                model(x)  # caches and threads are as this side leaves them, in what is timed
                seconds = []
                for _ in range(CALLS):
                    start = time.perf_counter()
                    model(x)
                    seconds.append(time.perf_counter() - start)
                pipe.send(seconds)


def _images(name: str, batch: int) -> Any:
    import torch

    return torch.randn(batch, *MODELS[name][1], generator=torch.Generator().manual_seed(1))


def _prepared(model: Any, side: str, x: Any, given: argparse.Namespace) -> Any:
    import torch

    if side == "pytorch":
        return model.to(memory_format=torch.channels_last)
    import leanconv.torch

    leanconv.torch.swap(
        model,
        memory_limit=given.memory_limit,
        example_input=x,
        measure=False,
        release_weights=given.release_weights,
    )
    if given.share_threads:
        leanconv.torch.share_threads()
    return model


if __name__ == "__main__":
    main()
