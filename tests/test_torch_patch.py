"""`leanconv.torch.patch` and the backend of `torch.compile`: code that knows nothing of leanconv."""

from __future__ import annotations

from typing import Any

import pytest

import leanconv

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
lt = pytest.importorskip("leanconv.torch")

from leanconv.bench.models import make_model  # noqa: E402 - needs PyTorch


def images(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def close(ours: Any, theirs: Any, bound: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


def test_patch_computes() -> None:
    model, x = make_model("resnet18", classes=10, width=8), images(1, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
        with lt.patch(memory_limit="1MiB", algorithm="!winograd") as found:
            for _ in range(3):
                close(model(x), wanted)
            model[0].weight.mul_(2)
            changed = model(x)
        close(changed, model(x))
    assert found.computed == 4 * 20 and not found.passed_on


def test_patch_passes_on() -> None:
    """What leanconv does not compute is PyTorch's, and is told."""
    with lt.patch() as found:
        x, w = images(1, 2, 5, 5), images(3, 2, 3, 3)
        close(F.conv2d(x, w), lt.conv2d(x, w))
        close(torch.conv2d(input=x, weight=w, padding="same"), lt.conv2d(x, w, padding=1))
        F.conv1d(images(1, 2, 5), images(3, 2, 3)), F.conv3d(images(1, 2, 5, 5, 5), images(3, 2, 3, 3, 3))
        close(F.conv_transpose2d(x, images(2, 3, 2, 2), None, 2), lt.conv_transpose2d(x, images(2, 3, 2, 2), None, 2))
        assert F.conv2d(x.bfloat16(), w.bfloat16()).dtype == torch.bfloat16
        assert F.conv2d(x.cfloat(), w.cfloat()).dtype == torch.complex64
        with pytest.raises(leanconv.ArgumentValueError, match="weight="):
            F.conv2d(x, images(3, 3, 3, 3))
    assert found.computed == 6
    assert found.passed_on == {"element type torch.bfloat16": 1, "element type torch.complex64": 1}
    with pytest.raises(leanconv.ArgumentValueError, match="algorithm"):
        lt.patch(algorithm="none")


def test_patch_trains() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)), images(2, 3, 9, 9)
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with lt.patch() as found:
        ours = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert found.computed == 2
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Viewer(nn.Module):  # type: ignore[misc]
    """Flattens by `view`, which channels-last tensors may not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.last = nn.Linear(6 * 16, 4)

    def forward(self, x: Any) -> Any:
        y = self.body(x)
        return self.last((y + y.flip(3)).view(x.shape[0], -1))


def models() -> list[Any]:
    torch.manual_seed(0)
    viewer = Viewer()
    viewer.body[1].running_var.uniform_(0.5, 2)
    return [(viewer.eval(), images(2, 3, 4, 4)), (make_model("resnet18", classes=10, width=8), images(2, 3, 32, 32))]


def test_views() -> None:
    model, x = models()[0]
    with torch.no_grad():
        wanted = model(x)
        lt.swap(model, example_input=x, measure=False)
        close(model(x), wanted)


def said(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.name == "leanconv.torch"]


def test_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """In evaluation, with changed weights, other shapes, and in training."""
    model, x = models()[0]
    compiled = torch.compile(model, backend=lt.backend)
    with torch.no_grad():
        for scale in (1.0, 2.0):
            next(model.parameters()).mul_(scale)
            close(compiled(x), model(x))
            close(compiled(x), model(x))
        close(compiled(x[:1]), model(x[:1]))
    count = len(said(caplog))
    assert set(said(caplog)) == {"torch.compile: a graph runs layer by layer: flip has no operator"}
    grads = [torch.autograd.grad(f(x).square().sum(), list(model.parameters())) for f in (compiled, model)]
    for a, b in zip(*grads, strict=True):
        close(a, b, 1e-3)
    model.train()
    close(compiled(x), model(x), 1e-3)
    assert len(said(caplog)) == count  # nobody expects one call where gradients are recorded
    torch._dynamo.reset()


def captured(model: Any, *inputs: Any, **options: Any) -> Any:
    """What runs in the place of a model's one graph, and its inputs, after a call whose result is right."""
    made: list[Any] = []

    def watch(module: Any, example_inputs: Any, **keywords: Any) -> Any:
        made.append((lt.backend(module, example_inputs, **keywords), example_inputs))
        return made[-1][0]

    with torch.no_grad():
        wanted = model(*inputs)
        compiled = torch.compile(model, backend=watch, dynamic=False, **options)
        for _ in range(2):
            for ours, theirs in zip(flat(compiled(*inputs)), flat(wanted), strict=True):
                close(ours, theirs)
    torch._dynamo.reset()
    (found,) = made
    return found


def flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class Mixed(nn.Module):  # type: ignore[misc]
    """Weights of every kind, a number, and an operation that may have no operator."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.conv, self.up, self.last = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2), nn.Linear(8, 4)
        self.scale, self.after = nn.Parameter(torch.rand(4, 1, 1)), after
        self.register_buffer("shift", torch.rand(1))

    def forward(self, x: Any, factor: Any = 2.0) -> Any:
        y = self.up(F.max_pool2d(self.conv(x), 2)).relu_() * self.scale + self.shift
        return self.after(y.flatten(1) * factor), self.last(F.interpolate(y, size=(8, 8)))


def state(model: Any) -> dict[str, Any]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_compiled_whole(caplog: pytest.LogCaptureFixture) -> None:
    """One native call under a limit, for two modules whose code is one graph; what cannot be is said once."""
    torch.manual_seed(0)
    x = images(2, 3, 14, 10)
    model, last = Mixed(torch.abs).eval(), x.contiguous(memory_format=torch.channels_last)
    run, given = captured(model, x, options={"memory_limit": "1MiB", "threads": 1})
    names = {id(tensor): name for name, tensor in state(model).items()}
    with torch.no_grad():
        for each, other in ((x, Mixed(torch.abs)), (last, model), (x[:, :, :, ::2], model), (x, model)):
            tensors = state(other)
            again = [tensors[names[id(tensor)]] if id(tensor) in names else each for tensor in given]
            for ours, theirs in zip(run(*again), other(each), strict=True):
                close(ours, theirs)
    assert not said(caplog)
    captured(Mixed(lambda y: y.cumsum(1)).eval(), x)
    assert said(caplog) == ["torch.compile: a graph runs layer by layer: cumsum has no operator"]


def test_compiled_mistakes() -> None:
    model, x = models()[0]
    for options, message in (({"limit": 1}, "must be of algorithm"), ({"memory_limit": "much"}, "memory_limit='much'")):
        with pytest.raises(Exception, match=message):  # in PyTorch's own
            torch.compile(model, backend=lt.backend, options=options)(x)
        torch._dynamo.reset()
    with pytest.raises(leanconv.ArgumentTypeError, match="options=3"):
        lt.backend(torch.fx.symbolic_trace(model), [x], options=3)


def test_compiled_layers_are_fused() -> None:
    model, x = models()[1]
    seen: list[Any] = []

    def watch(module: Any, inputs: Any) -> Any:
        run = lt.backend(module, inputs)
        seen.extend(getattr(node.target, "__name__", "") for node in module.graph.nodes if node.op == "call_function")
        return run.layers

    with torch.no_grad():
        close(torch.compile(model, backend=watch)(x), model(x))
    assert seen.count("conv_bn_relu") == 9 and seen.count("conv_bn_add_relu") == 8 and seen.count("conv_bn") == 3
    torch._dynamo.reset()
