"""Swapped models compiled as one network: every operation that is lowered, and all that must stay PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

import leanconv

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
lt = pytest.importorskip("leanconv.torch")


class Model(nn.Module):  # type: ignore[misc]
    """A convolution, an operation, and what the operation needs."""

    def __init__(self, after: Callable[[Any, Any], Any], **modules: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.after = after
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Any) -> Any:
        return self.after(self, self.conv(x))


def images(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def flat(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in (value.values() if isinstance(value, dict) else value) for t in flat(each)]


def check(model: Any, *inputs: Any, bound: float = 1e-5) -> Any:
    """Swap, compare structure, memory format and numbers; the report."""
    model = model.eval()
    with torch.no_grad():
        wanted = model(*copy.deepcopy(inputs))
        report = lt.swap(model, example_input=inputs, measure=False)
        found = model(*copy.deepcopy(inputs))
    assert type(found) is type(wanted)
    for ours, theirs in zip(flat(found), flat(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    return report


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    **{
        f.__name__: (lambda m, x, f=f: f(x) * 0.5)
        for f in (torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.neg, F.relu6, F.silu)
    },
    **{f.__name__: (lambda m, x, f=f: f(x) + 1) for f in (F.gelu, F.elu, F.mish, F.hardswish, F.hardsigmoid)},
    "leaky": lambda m, x: F.leaky_relu(x, 0.2) - 1,
    "clamp": lambda m, x: x.clamp(-0.5, max=0.25) / 2,
    "reversed": lambda m, x: 1 / (2 - x.sigmoid()) + 3 * x,
    "softmax": lambda m, x: F.softmax(x, 1) + x.softmax(dim=-1),
    "max pool": lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool, dilated": lambda m, x: F.max_pool2d(x, (2, 3), dilation=2),
    "average pool": lambda m, x: F.avg_pool2d(x, 3, 2, 1),
    "average pool, of the image": lambda m, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)) + F.adaptive_max_pool2d(x, 1),
    "nearest": lambda m, x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda m, x: F.interpolate(x, (7, 20), mode="bilinear", align_corners=True),
    "bicubic": lambda m, x: F.interpolate(x, size=(13, 9), mode="bicubic"),
    "sizes of another": lambda m, x: F.interpolate(F.max_pool2d(x, 2), x.shape[2:]) + x,
    "pad": lambda m, x: F.pad(x, (1, 2, 0, 3)) * 2,
    "pad by reflection": lambda m, x: F.pad(x, (1, 2, 2, 1), mode="reflect") * 2,
    "mean": lambda m, x: x.mean((2, 3)),
    "mean, kept": lambda m, x: x * torch.mean(x, dim=[2, 3], keepdim=True),
    "flatten": lambda m, x: m.rows(torch.flatten(x, 1)),
    "rows": lambda m, x: m.columns(x.flatten(2).transpose(1, 2)),
    "view": lambda m, x: m.rows(x.view(x.size(0), -1)),
    "shuffle": lambda m, x: x.view(x.shape[0], 2, 4, 10, 12).transpose(1, 2).contiguous().reshape(x.shape),
    "permute": lambda m, x: x.permute(0, 2, 3, 1) + 1,
    "cat": lambda m, x: torch.cat([x, x.relu(), F.avg_pool2d(x, 3, 1, 1)], dim=1),
    "chunk": lambda m, x: x.chunk(2, dim=1)[0] * x.chunk(2, dim=1)[1],
    "split": lambda m, x: [x.split([1, 2, 5], 1)[1] * 2, torch.split(x, 3, 1)[2]],
    "slice": lambda m, x: x[:, 1:7:2, ..., -1:] + x[:, :3, 2:3, 0].unsqueeze(3),
    "squeeze": lambda m, x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2),
    "pixel shuffle": lambda m, x: F.pixel_shuffle(x, 2),
    "squeeze and excite": lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))),
    "in place": lambda m, x: F.relu(x, inplace=True).add_(x).mul_(2),
    "in place, seen by all": lambda m, x: (F.relu(x, True) - x) + x,
    "dropout": lambda m, x: F.dropout(x, 0.5, m.training) * 2,
    "dictionary": lambda m, x: {"out": x * 2, "more": (x.relu(), [x.mean((2, 3))])},
    "transposed": lambda m, x: m.transposed(x).relu(),
    "norm": lambda m, x: m.norm(F.max_pool2d(x, 2)),
    "prelu": lambda m, x: m.prelu(x),
    "parameter": lambda m, x: x * m.scale + m.scale,
}


def modules() -> dict[str, Any]:
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    return {
        "rows": nn.Linear(8 * 10 * 12, 5),
        "columns": nn.Linear(8, 3, bias=False),
        "down": nn.Conv2d(8, 2, 1),
        "up": nn.Conv2d(2, 8, 1),
        "transposed": nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
        "norm": norm,
        "prelu": nn.PReLU(8, init=0.3),
        "scale": nn.Parameter(torch.rand(8, 1, 1)),
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    torch.manual_seed(0)
    report = check(Model(OPERATIONS[name], **modules()), images(2, 4, 10, 12))
    assert report.whole, report.apart


LEFT: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no operator": (lambda m, x: x.cumsum(1), "cumsum has no operator"),
    "input changed": (lambda m, x: x, "changes an input"),
    "view changed": (lambda m, x: (x[:, :2].mul_(2), x)[1] + 1, "changes what"),
    "uneven windows": (lambda m, x: F.adaptive_avg_pool2d(x, 7), "windows of several sizes"),
    "another element type": (lambda m, x: x.double(), "double has no operator"),
    "alpha": (lambda m, x: torch.add(x, x, alpha=2), "alpha=2"),
    "statistics of the batch": (lambda m, x: m.own(x), "statistics of the batch"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_pytorch(name: str) -> None:
    """Refused with a reason; the layers are ours and the results right."""
    after, reason = LEFT[name]
    model = Model(after, own=nn.BatchNorm2d(8, track_running_stats=False))
    if name == "input changed":
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3))
    report = check(model, images(2, 4, 10, 12))
    assert not report.whole and reason in report.apart and reason in str(report)
    assert report.layers and all(row.algorithm for row in report.layers)


def test_formats_and_shapes() -> None:
    """Channels last or not, of several sizes and element types; the output follows the input."""
    model = Model(lambda m, x: F.relu(x)).eval()
    report = lt.swap(model, example_input=images(1, 4, 8, 8), measure=False)
    assert report.whole and str(report).count("one native call") == 1
    own = copy.deepcopy(model)
    lt.unswap(own)
    last = torch.channels_last
    with torch.no_grad():
        for x in (images(2, 4, 8, 9), images(3, 4, 5, 5).to(memory_format=last), images(1, 4, 8, 16)[..., ::2]):
            ours, theirs = model(x), own(x)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            assert ours.is_contiguous(memory_format=last) == theirs.is_contiguous(memory_format=last)
        assert model(images(0, 4, 8, 8)).shape == (0, 8, 8, 8)
        assert model(images(4, 8, 8)).shape == (8, 8, 8)
        x = images(2, 4, 8, 9).double()
        torch.testing.assert_close(model.double()(x), own.double()(x))


def test_several_inputs() -> None:
    class Two(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, a: Any, b: Any) -> Any:
            return self.conv(a) + b, self.conv(b)

    model = Two()
    a, b = images(1, 3, 6, 7), images(1, 3, 6, 7).flip(3)
    report = check(model, a, b)
    assert report.whole and len(report.layers) == 2
    with torch.no_grad():
        for ours, theirs in zip(model(a, b=b), model(b=b, a=a), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_limit() -> None:
    """It holds for what is beyond the values between the layers, and says so."""
    model, x = Model(lambda m, x: F.max_pool2d(m.two(F.relu(x)), 2), two=nn.Conv2d(8, 8, 3)), images(1, 4, 32, 32)
    report = check(model, x)
    assert report.memory_limit is None and report.activation_bytes >= 8 * 32 * 32 * 4
    lt.unswap(model)
    with torch.no_grad():
        limited = lt.swap(model, example_input=x, memory_limit=report.needed_bytes // 4, measure=False)
        assert limited.needed_bytes <= limited.memory_limit
    with pytest.raises(leanconv.MemoryLimitError):
        lt.unswap(model)
        lt.swap(model, example_input=x, memory_limit=0, algorithm="im2col", measure=False)


def test_exchanged_parameters() -> None:
    """A parameter put in the place of another is seen, as are changes of what is read where it lies."""
    model, x = Model(lambda m, x: x * m.scale, scale=nn.Parameter(torch.ones(8, 1, 1))), images(1, 4, 6, 6)
    report = check(model, x)
    assert report.whole
    with torch.no_grad():
        before = model(x)
        model.conv.weight = nn.Parameter(model.conv.weight * 2)
        model.conv.bias = nn.Parameter(model.conv.bias * 2)
        torch.testing.assert_close(model(x), before * 2, rtol=1e-5, atol=1e-5)
        model.scale.mul_(2)
        torch.testing.assert_close(model(x), before * 4, rtol=1e-5, atol=1e-5)
        model.load_state_dict({name: value * 0 for name, value in model.state_dict().items()}, assign=True)
        assert not model(x).any()


def test_released_weights(tmp_path: Any) -> None:
    """Weights in a file: the same bits when they are asked for, changes are seen, and back in memory afterwards."""
    torch.manual_seed(0)
    layers = {"two": nn.Conv2d(8, 512, 3, bias=False), "norm": nn.BatchNorm2d(512)}
    model = Model(lambda m, x: m.norm(m.two(F.relu(x))), **layers).eval()
    model.norm.running_mean.uniform_(-1, 1), model.norm.running_var.uniform_(0.5, 2)
    model.tied = nn.Conv2d(8, 512, 3, bias=False)
    model.tied.weight = model.two.weight
    before, weight, x = {k: v.clone() for k, v in model.state_dict().items()}, model.two.weight, images(1, 4, 9, 9)
    with torch.no_grad():
        wanted = model(x)
        report = lt.swap(model, example_input=x, measure=False, release_weights=str(tmp_path))
        assert report.whole and report.released_bytes == weight.nbytes and "in a file" in str(report)
        assert not list(tmp_path.iterdir()) and model.two.weight is weight
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        clone = copy.deepcopy(model)
        for change in (lambda m: m.tied.weight.mul_(2), lambda m: m.two.weight.data.neg_()):
            for other in (model, clone):
                change(other)
                wanted = other.norm(F.conv2d(F.relu(other.conv(x)), other.two.weight))
                torch.testing.assert_close(other(x), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(images(2, 4, 5, 5)), clone(images(2, 4, 5, 5)), rtol=0, atol=0)
    lt.unswap(model)
    assert torch.equal(model.two.weight, -2 * before["two.weight"]) and model.tied.weight is model.two.weight
    model.train()(x).sum().backward()
    assert model.two.weight.grad is not None


def test_mistakes_of_releasing(tmp_path: Any) -> None:
    model, x = Model(lambda m, x: x), images(1, 4, 9, 9)
    with pytest.raises(leanconv.ArgumentTypeError, match="release_weights=3"):
        lt.swap(model, example_input=x, release_weights=3)
    with pytest.raises(leanconv.ArgumentValueError, match="must be a folder"):
        lt.swap(model, example_input=x, release_weights=str(tmp_path / "none"))
    big = Model(lambda m, x: m.two(x), two=nn.Conv2d(8, 512, 3))
    kept = big.two.weight.clone()
    with pytest.raises(leanconv.MemoryLimitError):
        lt.swap(big, example_input=x, memory_limit=0, algorithm="im2col", release_weights=str(tmp_path), measure=False)
    assert torch.equal(big.two.weight, kept) and not lt.is_swapped(big) and not list(tmp_path.iterdir())
