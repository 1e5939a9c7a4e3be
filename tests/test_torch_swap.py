"""`leanconv.torch.swap`: models stay what they are, whatever is done to them, and give the same outputs."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leanconv

torch = pytest.importorskip("torch")
nn = torch.nn
lt = pytest.importorskip("leanconv.torch")

from leanconv.bench.models import make_model  # noqa: E402 - needs PyTorch

SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "resnet18": ({"classes": 10, "width": 16}, (2, 3, 64, 64)),
    "resnet50": ({"classes": 10, "width": 8}, (1, 3, 32, 32)),
    "mobilenet_v2": ({"classes": 10, "width": 0.25}, (1, 3, 64, 64)),
    "squeezenet": ({"classes": 10}, (1, 3, 63, 63)),
    "vgg16": ({"classes": 10, "width": 16, "hidden": 64}, (1, 3, 64, 64)),
    "unet": ({"width": 16, "depth": 2}, (1, 3, 48, 64)),
}


class Net(nn.Module):  # type: ignore[misc]
    """A block with everything that is fused, small."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.two = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=2)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Any) -> Any:
        x = self.relu(self.norm(self.one(x)))
        x = torch.sigmoid(self.two(x)) + x
        return self.last(self.drop(x.mean((2, 3))))


def net() -> Any:
    torch.manual_seed(0)
    return Net().eval()


def images(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def close(ours: Any, theirs: Any, bound: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_networks(name: str) -> None:
    options, shape = SMALL[name]
    model, x = make_model(name, **options), images(*shape)
    keys = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(x)
        report = lt.swap(model, example_input=x, measure=False)
        assert report.traced and not [n for n in report.left if "up." not in n]
        assert all(row.algorithm for row in report.layers)
        for _ in range(2):
            close(model(x), wanted)
        assert list(model.state_dict()) == list(keys)
        other = images(3, *shape[1:])
        ours = model(other)
        lt.unswap(model)
        close(ours, model(other))
    assert all(torch.equal(value, keys[key]) for key, value in model.state_dict().items())


def test_what_is_fused() -> None:
    report = lt.swap(make_model("resnet18", width=8), example_input=images(1, 3, 32, 32), measure=False)
    kinds = [row.fused for row in report.layers]
    assert kinds.count("conv+bn+relu") == 9 and kinds.count("conv+bn+add+relu") == 8 and kinds.count("conv+bn") == 3
    report = lt.swap(net(), example_input=images(1, 3, 9, 9))
    assert [row.fused for row in report.layers] == ["conv+bn+relu", "conv+sigmoid+add"]
    text = str(report)
    assert "conv+sigmoid+add" in text and "times as fast" in text and "shared by all layers" in text
    without = lt.swap(net())
    assert [row.fused for row in without.layers] == ["conv+bn+relu", "conv+sigmoid"] and "times" not in str(without)


@pytest.mark.parametrize("limit", ["200KiB"])
def test_one_limit_for_all_layers(limit: str) -> None:
    model, x = make_model("resnet18", width=16), images(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        report = lt.swap(model, memory_limit=limit, example_input=x, measure=False)
        assert report.needed_bytes <= report.memory_limit
        close(model(x), wanted)
        assert report.whole and report.activation_bytes > 0
        lt.unswap(model)
    with pytest.raises(leanconv.MemoryLimitError, match="layers needs"):
        lt.swap(model, memory_limit=0, algorithm="im2col", example_input=x, measure=False)
    assert not lt.is_swapped(model) and all(
        not type(m).__module__.startswith("leanconv.torch") for m in model.modules()
    )


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weights": lambda m: m.one.weight.mul_(1.5),
    "weights through data": lambda m: m.one.weight.data.mul_(1.5),
    "running mean": lambda m: m.norm.running_mean.neg_(),
    "running variance": lambda m: m.norm.running_var.mul_(3),
    "gain": lambda m: m.norm.weight.neg_(),
    "bias": lambda m: m.two.bias.add_(0.5),
    "state_dict": lambda m: m.load_state_dict(Net().state_dict()),
    "element type": lambda m: m.double().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_stale(change: str) -> None:
    model, x = net(), images(2, 3, 9, 8)
    lt.swap(model, example_input=x, measure=False)
    with torch.no_grad():
        for _ in range(4):
            before = model(x)
            CHANGES[change](model)
            ours = model(x)
            plain = copy.deepcopy(model)
            lt.unswap(plain)
            close(ours, plain(x))
            assert change == "element type" or not torch.equal(ours, before)


def test_training() -> None:
    """A swapped model trains as the plain one, and its evaluation sees every step."""
    plain, swapped = net().train(), net().train()
    lt.swap(swapped)
    assert swapped.training and swapped.norm.training
    x, y = images(8, 3, 9, 8), torch.arange(8) % 4
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (plain, swapped)]
    for _ in range(4):
        for model, optimizer in zip((plain, swapped), optimizers, strict=True):
            torch.manual_seed(1)  # dropout
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            close(swapped.eval()(x), plain.eval()(x), 1e-3)
        plain.train(), swapped.train()
    for a, b in zip(swapped.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_gradients_in_evaluation() -> None:
    """Where gradients are recorded the model's own code runs."""
    model, x = net(), images(2, 3, 9, 8).requires_grad_()
    wanted = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
    lt.swap(model)
    for ours, theirs in zip(torch.autograd.grad(model(x).sum(), [x, *model.parameters()]), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_part_in_training() -> None:
    """Dropout that is left on (Monte Carlo dropout) stays on."""
    model, x = net(), images(64, 3, 9, 8)
    lt.swap(model)
    model.drop.train()
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))


def test_copies() -> None:
    model, x = net(), images(2, 3, 9, 8)
    lt.swap(model, example_input=x, measure=False)
    with torch.no_grad():
        wanted = model(x)
        deep, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for other in (deep, pickled):
            close(other(x), wanted)
            assert lt.is_swapped(other)
            other.one.weight.zero_()
            assert not torch.equal(other(x), wanted)
            lt.unswap(other)
            assert type(other.one) is nn.Conv2d and "forward" not in vars(other)
        close(model(x), wanted)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        fresh = Net().eval()
        fresh.load_state_dict(torch.load(file))
        close(fresh(x), wanted)


def test_hooks_are_called() -> None:
    model, x = net(), images(2, 3, 9, 8)
    seen: list[Any] = []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with torch.no_grad():
        wanted = model(x)
        lt.swap(model, example_input=x, measure=False)
        seen.clear()
        close(model(x), wanted)
    assert len(seen) == 1 and seen[0].min() < 0


class Branching(Net):
    """Cannot be traced: what runs depends on the image."""

    def forward(self, x: Any) -> Any:
        return super().forward(x if x.sum() > 0 else -x)


def test_what_cannot_be_traced() -> None:
    torch.manual_seed(0)
    model, x = Branching().eval(), images(2, 3, 9, 8)
    with torch.no_grad():
        wanted = model(x)
        report = lt.swap(model, example_input=x)
        assert not report.traced and "TraceError" in report.reason and "not traced" in str(report)
        assert isinstance(model.one, lt.Conv2d) and "forward" not in vars(model)
        close(model(x), wanted)
        lt.unswap(model)
        assert type(model.one) is nn.Conv2d


def test_in_place_between_is_seen() -> None:
    """What is added must not be moved behind something that changes it."""

    class Model(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Any) -> Any:
            x = x.cumsum(1)  # no network has it: the model runs layer by layer
            y = self.conv(x)
            z = x.mul_(2)
            return y + z

    model, x = Model().eval(), images(1, 3, 4, 4)
    with torch.no_grad():
        wanted = model(x)
        report = lt.swap(model, example_input=x, measure=False)
        assert [row.fused for row in report.layers] == ["conv"]
        close(model(x), wanted)


def test_mistakes() -> None:
    model = net()
    with pytest.raises(leanconv.ArgumentTypeError, match="model="):
        lt.swap(lambda x: x)
    with pytest.raises(leanconv.ArgumentValueError, match="algorithm='none'"):
        lt.swap(model, algorithm="none")
    with pytest.raises(leanconv.ArgumentValueError, match="needs an example_input"):
        lt.swap(model, measure=True)
    with pytest.raises(leanconv.ArgumentValueError, match="is not swapped"):
        lt.unswap(model)
    lt.swap(model)
    with pytest.raises(leanconv.ArgumentValueError, match="is swapped already"):
        lt.swap(model)
    model.last = nn.Linear(8, 3)
    with torch.no_grad(), pytest.raises(lt.ChangedModelError, match="module 'last' of Net was exchanged"):
        model(images(1, 3, 9, 9))
    left = lt.swap(net().bfloat16()).left
    assert left["one"] == "its element type is torch.bfloat16"


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def test_serving() -> None:
    """Four callers at once, under whom weights and limits change: no output is of anything in between, nothing leaks.

    LEANCONV_SERVE_SECONDS asks for more than a glance.
    """
    least = float(os.environ.get("LEANCONV_SERVE_SECONDS", "0"))
    model, x = net(), images(2, 3, 17, 16)
    report = lt.swap(model, memory_limit="1MiB", example_input=x, measure=False)
    assert report.whole
    states = [copy.deepcopy(model.state_dict()), copy.deepcopy(Net().state_dict())]
    wanted = []
    with torch.no_grad():
        for state in states:
            model.load_state_dict(state)
            wanted.append(model(x))
    current, calls, wrong, stop = [1], [0] * 4, [], threading.Event()
    # Loading weights is no atomic act: nobody may be inside meanwhile.
    gate, queue = threading.Semaphore(4), threading.Lock()

    def serve(number: int) -> None:
        with torch.no_grad():
            while not stop.is_set():
                with queue:
                    gate.acquire()
                try:
                    result = model(x)
                    if not torch.allclose(result, wanted[current[0]], rtol=1e-4, atol=1e-5):
                        wrong.append(result)
                finally:
                    gate.release()
                calls[number] += 1

    workers = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    start, changes, before = time.monotonic(), 0, 0
    try:
        while changes < 40 or time.monotonic() - start < least:
            if changes % 3 == 0:
                with queue:
                    for _ in workers:
                        gate.acquire()
                current[0] = 1 - current[0]
                model.load_state_dict(states[current[0]])
                gate.release(4)
            leanconv.set_memory_limit("8MiB" if changes % 2 else None)
            changes += 1
            time.sleep(0.003)
            if not before and time.monotonic() - start > least / 4:
                before = resident()
    finally:
        leanconv.set_memory_limit(None)
        stop.set()
        for worker in workers:
            worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers) and not wrong and min(calls) > 10
    if least > 20:  # by then whatever is kept is there
        assert resident() - before < 16 << 20


def test_loss_curve() -> None:
    """Trained on digits, both lose the same; in double precision, for in single the rounding grows with every step."""
    pytest.importorskip("sklearn")
    from leanconv.bench.torch_training import train

    losses, _ = train(steps=5, batch=8, size=16, width=8, threads=1, memory_limit="8MiB", double=True)
    for ours, theirs in zip(losses[1], losses[0], strict=True):
        assert abs(ours - theirs) <= 1e-6 * theirs
