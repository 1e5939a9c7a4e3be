"""`leanconv.torch.Conv1d`, `Conv2d`, `Conv3d`: PyTorch's modules in every respect, and never stale."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import leanconv

torch = pytest.importorskip("torch")
nn = torch.nn
lt = pytest.importorskip("leanconv.torch")

PAIRS = [(lt.Conv1d, nn.Conv1d, 1), (lt.Conv2d, nn.Conv2d, 2), (lt.Conv3d, nn.Conv3d, 3)]
SHAPES = {1: (2, 4, 11), 2: (2, 4, 9, 8), 3: (2, 4, 6, 5, 7)}


def close(ours: Any, theirs: Any) -> None:
    # Errors are bounded as a part of the largest output.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.detach().abs().max())))


def module(**keywords: Any) -> Any:
    torch.manual_seed(0)
    return lt.Conv2d(4, 6, 3, padding=1, **keywords).eval()


@pytest.mark.parametrize(("ours", "theirs", "ndim"), PAIRS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_as_pytorch(ours: Any, theirs: Any, ndim: int, mode: str, padding: Any) -> None:
    torch.manual_seed(0)
    reference = theirs(4, 6, 3, padding=padding, padding_mode=mode, groups=2, dilation=2 if padding == "same" else 1)
    mine = ours(4, 6, 3, padding=padding, padding_mode=mode, groups=2, dilation=2 if padding == "same" else 1)
    assert list(mine.state_dict()) == list(reference.state_dict())
    mine.load_state_dict(reference.state_dict())
    assert isinstance(mine, theirs) and repr(mine) == repr(reference)
    x = torch.randn(SHAPES[ndim])
    wanted = reference(x)
    close(mine(x), wanted)
    mine.eval()
    with torch.no_grad():
        for _ in range(3):  # packed by the first of them
            close(mine(x), wanted)
            close(mine(x[0]), wanted[0])
    mine.train()
    for a, b in zip(
        torch.autograd.grad(mine(x).square().sum(), list(mine.parameters())),
        torch.autograd.grad(reference(x).square().sum(), list(reference.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def optimizer_step(layer: Any) -> None:
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    with torch.enable_grad():
        layer(torch.ones(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    layer.eval()


def optimizer_step_in_eval(layer: Any) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.5)
    with torch.enable_grad():
        layer(torch.ones(1, 4, 5, 5)).sum().backward()
    optimizer.step()


def numpy_view(layer: Any) -> None:
    layer.weight.detach().numpy()[...] *= 2


def new_parameter(layer: Any) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda layer: layer.weight.mul_(2),
    "one element": lambda layer: layer.weight[0, 0, 0, 0].fill_(9),
    "bias": lambda layer: layer.bias.add_(1),
    "data in place": lambda layer: layer.weight.data.mul_(2),
    "data of bias": lambda layer: layer.bias.data.mul_(2),
    "new data": lambda layer: setattr(layer.weight, "data", torch.randn(6, 4, 3, 3)),
    "new parameter": new_parameter,
    "numpy": numpy_view,
    "load_state_dict": lambda layer: layer.load_state_dict(nn.Conv2d(4, 6, 3).state_dict()),
    "initialised": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "channels_last": lambda layer: layer.to(memory_format=torch.channels_last),
    "optimizer": optimizer_step,
    "optimizer in eval": optimizer_step_in_eval,
    "there and back": lambda layer: layer.double().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_stale(change: str) -> None:
    layer, x = module(), torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        for _ in range(5):
            layer(x)
            assert layer._packed.nbytes or layer._packed._state.calls
            CHANGES[change](layer)
            close(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
            close(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))


def test_other_element_type_and_shapes() -> None:
    layer, x = module(), torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
        with pytest.raises(leanconv.ArgumentTypeError, match="element type"):
            layer(x.double())
        layer.double()
        close(layer(x.double()), nn.functional.conv2d(x.double(), layer.weight, layer.bias, padding=1))
        layer.float()
        for size in range(5, 25):
            images = torch.randn(1, 4, size, size)
            for given in (images, images.contiguous(memory_format=torch.channels_last)):
                close(layer(given), nn.functional.conv2d(given, layer.weight, layer.bias, padding=1))
        assert len(layer._packed._state.calls) <= 8


def test_packed_once_for_all_shapes() -> None:
    """Weights that plans read in the same order are packed once, in `plan.packed_weight_bytes`."""
    layer = module(algorithm="direct")
    with torch.no_grad():
        for size in (5, 6, 7, 8):
            layer(torch.randn(1, 4, size, size).contiguous(memory_format=torch.channels_last))
    blocks = {id(call.bound.packed_block) for call in layer._packed._state.calls.values()}
    plans = {call.bound.plan.packed_weight_bytes for call in layer._packed._state.calls.values()}
    assert len(blocks) == 1 and {layer._packed.nbytes} == plans


def test_training_frees_what_was_packed() -> None:
    layer, x = module(), torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        layer(x)
        assert "_packed" in vars(layer)
        layer.train()
        assert "_packed" not in vars(layer)
        layer(x)
        assert "_packed" not in vars(layer)
        layer.eval()
        layer(x)
        layer.repack()
        assert "_packed" not in vars(layer)


def test_copies() -> None:
    """Copies have weights and packed weights of their own, and keep the settings."""
    layer, x = (
        module(activation=["clip", 0.0, 1.0], memory_limit="1MiB", algorithm=["direct", "im2row"]),
        torch.randn(2, 4, 7, 7),
    )
    with torch.no_grad():
        wanted = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
            assert "_packed" not in vars(other) and repr(other) == repr(layer)
            close(other(x), wanted)
        deep = copy.deepcopy(layer)
        deep.weight.zero_()
        close(layer(x), wanted)
        assert not deep(x).sub(deep.bias.view(-1, 1, 1).clamp(0, 1)).any()


def test_settings() -> None:
    layer, x = module(activation="relu", algorithm="direct"), torch.randn(2, 4, 7, 7)
    assert "activation='relu', algorithm='direct'" in repr(layer)
    with torch.no_grad():
        wanted = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1).relu()
        close(layer(x), wanted)
        layer.algorithm, layer.memory_limit = "im2col", 16
        with pytest.raises(leanconv.MemoryLimitError):
            layer(x)
        layer.memory_limit = None
        close(layer(x), wanted)
    with pytest.raises(leanconv.ArgumentValueError, match="algorithm='quick'"):
        lt.Conv2d(3, 4, 3, algorithm="quick")
    with pytest.raises(leanconv.ArgumentValueError, match="memory_limit"):
        lt.Conv2d(3, 4, 3, memory_limit="much")
    with pytest.raises(TypeError, match="stirde"):
        lt.Conv2d(3, 4, 3, stirde=2)


def test_weights_made_at_each_call() -> None:
    """Spectral norm makes new weights for each call: they are not packed beforehand, and right."""
    layer = torch.nn.utils.parametrizations.spectral_norm(module())
    layer.eval()
    x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        for _ in range(5):
            close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    weighted = torch.nn.utils.parametrizations.weight_norm(module()).eval()
    with torch.no_grad():
        for _ in range(5):
            weighted.parametrizations.weight.original0.mul_(1.1)
            close(weighted(x), nn.functional.conv2d(x, weighted.weight, weighted.bias, padding=1))


def test_inference_mode() -> None:
    with torch.inference_mode():
        layer, x = module(), torch.randn(2, 4, 7, 7)
        for _ in range(3):
            close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
            layer.weight[0, 0, 1, 1] = 3.0


def test_hooks_and_gradients_of_images() -> None:
    layer = module()
    seen: list[Any] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    layer(x).sum().backward()
    assert seen == [(2, 6, 7, 7)] and x.grad.shape == x.shape
    frozen = module().requires_grad_(False)
    assert not frozen(x.detach()).requires_grad and "_packed" in vars(frozen)
    assert frozen(x).requires_grad


def test_compiled_and_traced() -> None:
    model = nn.Sequential(module(activation="relu"), lt.Conv2d(6, 3, 1, bias=False)).eval()
    x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        wanted = model(x)
        close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), wanted)
        close(torch.fx.symbolic_trace(model)(x), wanted)
        close(torch.export.export(model, (x,)).module()(x), wanted)
