"""`python -m leanconv.bench.torch_training`: ResNet-18 trained on handwritten digits, by PyTorch and by leanconv.

The same weights, the same batches, in turns. The images are scikit-learn's digits, 8x8, enlarged; it must be installed.
Memory is measured in a process for each side: how far resident memory rises at most above that with the model as it was
built, over three steps, kernels being in the cache.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

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
    given = parser.parse_args(arguments)
    losses, seconds = train(given.steps, given.batch, given.size, given.width, given.threads, given.memory_limit)
    block = max(1, given.steps // 10)
    print(f"mean loss of {block} steps\n{'steps':>10}{'PyTorch':>10}{'leanconv':>10}")
    for start in range(0, given.steps, block):
        means = [statistics.mean(side[start : start + block]) for side in losses]
        print(f"{start + block:>10}{means[0]:>10.4f}{means[1]:>10.4f}")
    medians = [statistics.median(side) * 1e3 for side in seconds]
    print(f"a step, median: PyTorch {medians[0]:.1f} ms, leanconv {medians[1]:.1f} ms")
    memory = [_peak(side, given) for side in SIDES]
    texts = ["not known" if nbytes is None else format_bytes(nbytes) for nbytes in memory]
    print(f"memory: PyTorch {texts[0]}, leanconv {texts[1]} (limit of a layer: {given.memory_limit or 'none'})")


def train(
    steps: int, batch: int, size: int, width: int, threads: int, memory_limit: Any = None, double: bool = False
) -> tuple[list[list[float]], list[list[float]]]:
    """Losses and seconds of each step, of PyTorch (channels last) and of leanconv."""
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
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9) for model in models]
    losses: list[list[float]] = [[], []]
    seconds: list[list[float]] = [[], []]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randperm(len(images), generator=generator)[:batch]
        x = images[chosen].contiguous(memory_format=torch.channels_last)
        for side, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            start = time.perf_counter()
            losses[side].append(_step(model, optimizer, x, labels[chosen]))
            seconds[side].append(time.perf_counter() - start)
    return losses, seconds


SIDES = ("pytorch", "leanconv")


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
