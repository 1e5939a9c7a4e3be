"""`python -m leanconv.bench.torch_training`: ResNet-18 trained on handwritten digits, by PyTorch and by leanconv.

The same weights, the same batches, in turns. The images are scikit-learn's digits, 8x8, enlarged; it must be installed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

from leanconv.bench.models import make_model


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


def train(
    steps: int, batch: int, size: int, width: int, threads: int, memory_limit: Any = None, double: bool = False
) -> tuple[list[list[float]], list[list[float]]]:
    """Losses and seconds of each step, of PyTorch (channels last) and of leanconv."""
    import torch
    from torch.nn import functional

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
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), labels[chosen])
            loss.backward()
            optimizer.step()
            seconds[side].append(time.perf_counter() - start)
            losses[side].append(float(loss.detach()))
    return losses, seconds


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
