"""`python -m leanconv.bench.torch_models`: networks swapped by leanconv beside PyTorch, channels last.

Both take turns, round by round, in one process. Peak memory is measured in a process for each side: how far resident
memory rises above that of the model as it was built, over conversion or swap and three calls.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

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
    parser.add_argument("--share-threads", action="store_true", help="run leanconv on PyTorch's threads")
    given = parser.parse_args(arguments)
    unknown = set(given.models) - set(MODELS)
    if unknown:
        parser.error(f"no network is called {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    print(f"batch {given.batch}, threads {given.threads}, {given.rounds} rounds, float32; milliseconds, medians")
    print(f"{'network':<14}{'PyTorch':>9}{'leanconv':>10}{'ratio':>7}  {'95 %':<14}{'error':>8}{'memory':>11}{'':>11}")
    ratios = []
    for name in given.models or MODELS:
        theirs, ours, error = _times(name, given)
        interval = factor_interval(theirs, ours, 0.95)
        memory = [_peak(name, side, given) for side in ("pytorch", "leanconv")]
        texts = ["-" if nbytes is None else format_bytes(nbytes) for nbytes in memory]
        ratios.append(interval.ratio)
        print(
            f"{name:<14}{statistics.median(theirs) * 1e3:>9.2f}{statistics.median(ours) * 1e3:>10.2f}"
            f"{interval.ratio:>7.2f}  [{interval.low:.2f}, {interval.high:.2f}]  {error:>8.0e}"
            f"{texts[0]:>11}{texts[1]:>11}",
            flush=True,
        )
    print(f"geometric mean of the ratios: {math.exp(statistics.mean(map(math.log, ratios))):.2f}")


def _images(name: str, batch: int) -> Any:
    import torch

    return torch.randn(batch, *MODELS[name][1], generator=torch.Generator().manual_seed(1))


def _prepared(model: Any, side: str, x: Any, given: argparse.Namespace) -> Any:
    import torch

    if side == "pytorch":
        return model.to(memory_format=torch.channels_last)
    import leanconv.torch

    leanconv.torch.swap(model, memory_limit=given.memory_limit, example_input=x, measure=False)
    if given.share_threads:
        leanconv.torch.share_threads()
    return model


def _times(name: str, given: argparse.Namespace) -> tuple[list[float], list[float], float]:
    """Seconds of both sides, and the largest difference of their outputs relative to the largest output."""
    import torch

    torch.set_num_threads(given.threads)
    x = _images(name, given.batch).contiguous(memory_format=torch.channels_last)
    models = [_prepared(make_model(name), side, x, given) for side in ("pytorch", "leanconv")]
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        outputs = [model(x) for model in models]
        error = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
        for _ in range(given.rounds):
            for model, seconds in zip(models, times, strict=True):
                model(x)  # so that the other's caches and threads are not part of what is timed
                start = time.perf_counter()
                model(x)
                seconds.append(time.perf_counter() - start)
    return *times, error


def _peak(name: str, side: str, given: argparse.Namespace) -> int | None:
    """Peak memory in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, name, side, given))
    process.start()
    sender.close()
    try:
        return receiver.recv()  # type: ignore[no-any-return]
    except EOFError:
        return None
    finally:
        process.join()


def _measure_peak(sender: Any, name: str, side: str, given: argparse.Namespace) -> None:
    import torch

    import leanconv.torch

    torch.set_num_threads(given.threads)
    x = _images(name, given.batch).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        # Both libraries loaded and warm, on something small: what they take once is not the model's.
        small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)).eval()
        small(x[:, :, :16, :16]), leanconv.torch.swap(small, example_input=x[:, :, :16, :16], measure=False)
        small(x[:, :, :16, :16])
        model = make_model(name)
        memory = PeakMemory()
        model = _prepared(model, side, x, given)
        for _ in range(3):
            model(x)
    sender.send(memory.extra_bytes())
    sender.close()


if __name__ == "__main__":
    main()
