"""`python -m leanconv.bench.torch_training`: ResNet-18 trained on handwritten digits, by PyTorch and by leanconv.

The same weights, the same batches, in turns. How far losses differ by rounding alone is shown by PyTorch itself, in its
other memory format. The images are scikit-learn's digits, 8x8, enlarged; it must be installed.

Memory is measured in a process for each side: how far resident memory rises at most above that with the model as it was
built, over three steps, kernels being in the cache.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.bench.command import progress_bar
from leanconv.bench.intervals import factor_interval
from leanconv.bench.models import make_model
from leanconv.bench.process_memory import PeakMemory
from leanconv.sizes import format_bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both and print losses and times."""
    parser = argparse.ArgumentParser(prog="python -m leanconv.bench.torch_training", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="extent of the enlarged images")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-limit", default=None)
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    given = parser.parse_args(arguments)
    losses, seconds = train(given.steps, given.batch, given.size, given.width, given.threads, given.memory_limit, True)
    _show_losses(losses, max(1, given.steps // 10))
    for side, times in zip(SIDES, seconds, strict=False):
        low, middle, high = (float(np.quantile(times, part)) * 1e3 for part in (0.25, 0.5, 0.75))
        print(f"a step, {NAMES[side]}: median {middle:.1f} ms, quartiles {low:.1f} to {high:.1f} ms")
    interval = factor_interval(seconds[0], seconds[1], 0.95)
    print(f"PyTorch's time over leanconv's: {interval.ratio:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
    memory = {side: _peak(side, given) for side in SIDES}
    texts = ["not known" if nbytes is None else format_bytes(nbytes) for nbytes in memory.values()]
    print(f"memory: PyTorch {texts[0]}, leanconv {texts[1]} (limit of a layer: {given.memory_limit or 'none'})")
    if given.json:
        found = {"settings": vars(given), "losses": losses, "seconds": seconds, "peak_bytes": memory}
        Path(given.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _show_losses(losses: Sequence[Sequence[float]], block: int) -> None:
    """Print curves, and how far they lie from one another."""
    theirs, ours, other = (np.asarray(side) for side in losses)
    print(f"mean loss of {block} steps\n{'steps':>8}{'PyTorch':>10}{'leanconv':>10}{'PyTorch, contiguous':>21}")
    for start in range(0, len(theirs), block):
        means = [float(side[start : start + block].mean()) for side in (theirs, ours, other)]
        print(f"{min(start + block, len(theirs)):>8}{means[0]:>10.4f}{means[1]:>10.4f}{means[2]:>21.4f}")
    for name, side in (("leanconv's", ours), ("PyTorch's contiguous", other)):
        apart = np.abs(side - theirs)
        print(
            f"{name} losses from PyTorch's: mean difference {float((side - theirs).mean()):+.1e}, "
            f"mean distance {float(apart.mean()):.1e}, largest {float(apart.max()):.1e}"
        )


def train(
    steps: int,
    batch: int,
    size: int,
    width: int,
    threads: int,
    memory_limit: Any = None,
    contiguous: bool = False,
    double: bool = False,
) -> tuple[list[list[float]], list[list[float]]]:
    """Losses and seconds of each step, of PyTorch (channels last), of leanconv, and if asked of PyTorch, contiguous."""
    import torch

    import leanconv.torch

    torch.set_num_threads(threads)
    images, labels = digits(size)
    plain = make_model("resnet18", classes=10, width=width).train()
    if double:
        images, plain = images.double(), plain.double()
    swapped = copy.deepcopy(plain)
    leanconv.torch.swap(swapped, memory_limit=memory_limit)
    models = [model.to(memory_format=torch.channels_last) for model in (plain, swapped)]
    formats = [torch.channels_last] * 2
    if contiguous:
        formats.append(torch.contiguous_format)
        models.append(copy.deepcopy(plain).to(memory_format=torch.contiguous_format))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9) for model in models]
    losses: list[list[float]] = [[] for _ in models]
    seconds: list[list[float]] = [[] for _ in models]
    generator = torch.Generator().manual_seed(0)
    with progress_bar() as progress:
        for step in range(steps):
            if progress is not None:
                progress("training", step, steps)
            chosen = torch.randperm(len(images), generator=generator)[:batch]
            for side, (model, optimizer, form) in enumerate(zip(models, optimizers, formats, strict=True)):
                x = images[chosen].contiguous(memory_format=form)
                start = time.perf_counter()
                losses[side].append(_step(model, optimizer, x, labels[chosen]))
                seconds[side].append(time.perf_counter() - start)
    return losses, seconds


NAMES = {"pytorch": "PyTorch", "leanconv": "leanconv"}
SIDES = tuple(NAMES)


def _peak(side: str, given: argparse.Namespace) -> int | None:
    """Peak memory in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, side, given))
    process.start()
    sender.close()
    try:
        found: int | None = receiver.recv()
        return found
    except EOFError:
        return None
    finally:
        process.join()


def _measure_peak(sender: Any, side: str, given: argparse.Namespace) -> None:
    import torch

    import leanconv.torch

    torch.set_num_threads(given.threads)
    images, labels = digits(given.size)
    # Both libraries loaded and warm, on something small: what they take once is not the model's.
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
    for _ in range(2):
        _step(small, torch.optim.SGD(small.parameters(), lr=0.0), images[:2, :, :8, :8].contiguous(), None)
        if not leanconv.torch.is_swapped(small):
            leanconv.torch.swap(small)
    model = make_model("resnet18", classes=10, width=given.width).train()
    memory = PeakMemory()
    if side == "leanconv":
        leanconv.torch.swap(model, memory_limit=given.memory_limit)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    for step in range(3):
        chosen = slice(step * given.batch, (step + 1) * given.batch)
        _step(model, optimizer, images[chosen].contiguous(memory_format=torch.channels_last), labels[chosen])
    sender.send(memory.extra_bytes())
    sender.close()


def _step(model: Any, optimizer: Any, x: Any, labels: Any) -> float:
    """A step of training; the loss, of the sum where there are no labels."""
    from torch.nn import functional

    optimizer.zero_grad()
    y = model(x)
    loss = y.sum() if labels is None else functional.cross_entropy(y, labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def digits(size: int) -> tuple[Any, Any]:
    """Images (1797, 3, size, size) between -1 and 1, and labels."""
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    larger = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return larger.expand(-1, 3, -1, -1), torch.from_numpy(data.target)


if __name__ == "__main__":
    main()
