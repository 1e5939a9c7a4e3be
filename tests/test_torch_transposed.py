"""Transposed convolutions beside PyTorch's: functions, modules, gradients, traces."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
lt = pytest.importorskip("leanconv.torch")

OURS = {1: lt.conv_transpose1d, 2: lt.conv_transpose2d, 3: lt.conv_transpose3d}
THEIRS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

# (ndim, x, w, bias, keywords of `torch.nn.functional`)
TABLE: list[tuple[int, tuple[int, ...], tuple[int, ...], bool, dict[str, Any]]] = [
    (1, (2, 3, 7), (3, 4, 3), True, {"stride": 2}),
    (1, (3, 7), (3, 4, 3), True, {"stride": 2, "padding": 1, "output_padding": 1}),
    (1, (2, 4, 5), (4, 2, 3), False, {"groups": 2, "dilation": 3, "output_padding": 2}),
    (2, (2, 3, 5, 6), (3, 4, 2, 2), True, {"stride": 2}),
    (2, (2, 3, 5, 6), (3, 4, 4, 4), True, {"stride": 2, "padding": 1}),
    (2, (3, 5, 6), (3, 4, 3, 3), True, {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
    (2, (2, 8, 4, 4), (8, 1, 3, 3), True, {"groups": 8, "padding": 1}),
    (2, (0, 8, 4, 4), (8, 2, 3, 3), True, {}),
    (2, (1, 8, 1, 1), (8, 2, 4, 4), False, {}),
    (3, (1, 3, 3, 4, 5), (3, 2, 2, 3, 2), True, {"stride": 2, "padding": 1}),
]


def tensors(x: tuple[int, ...], w: tuple[int, ...], bias: bool, groups: int, dtype: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in (x, w, (w[1] * groups,))]
    return made if bias else [*made[:2], None]


@pytest.mark.parametrize(("ndim", "x", "w", "bias", "keywords"), TABLE)
def test_as_pytorch(ndim: int, x: tuple[int, ...], w: tuple[int, ...], bias: bool, keywords: dict[str, Any]) -> None:
    arrays = tensors(x, w, bias, keywords.get("groups", 1), torch.float64)
    wanted = THEIRS[ndim](*arrays, **keywords)
    torch.testing.assert_close(OURS[ndim](*arrays, **keywords), wanted, rtol=0, atol=1e-12)
    singles = [None if a is None else a.float() for a in arrays]
    torch.testing.assert_close(OURS[ndim](*singles, **keywords).double(), wanted, rtol=0, atol=1e-5)
    if len(x) == 4:
        last = arrays[0].contiguous(memory_format=torch.channels_last)
        result = OURS[ndim](last, *arrays[1:], **keywords)
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-12)
        assert x[2:] == (1, 1) or result.is_contiguous(memory_format=torch.channels_last)
    recorded = [None if a is None else a.clone().requires_grad_() for a in arrays]
    torch.testing.assert_close(OURS[ndim](*recorded, **keywords), wanted, rtol=0, atol=1e-12)


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    ndim = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=ndim, max_size=ndim)))

    groups = draw(st.sampled_from([1, 2]))
    stride, dilation, kernel = each(1, 3), each(1, 2), each(1, 3)
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    spans = [(s, d * (k - 1) + 1) for s, d, k in zip(stride, dilation, kernel, strict=True)]
    pads = tuple(draw(st.integers(0, (2 * s + span - 1) // 2)) for s, span in spans)
    x = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), *(n + 2 for n in each(1, 3)))
    w = (x[1], draw(st.integers(1, 2)), *kernel)
    keywords = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups, "output_padding": more}
    return ndim, x, w, keywords


@settings(settings.get_profile("engine"), max_examples=6)
@given(layer=layers())
def test_gradients(layer: Any) -> None:
    ndim, x, w, keywords = layer
    arrays = [a.requires_grad_() for a in tensors(x, w, True, keywords["groups"], torch.float64)]

    def function(*args: Any) -> Any:
        return OURS[ndim](*args, **keywords, activation="tanh")

    wanted = torch.tanh(THEIRS[ndim](*arrays, **keywords))
    torch.testing.assert_close(function(*arrays), wanted, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(function, arrays, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arrays, fast_mode=True)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_modules(ndim: int) -> None:
    ours = (lt.ConvTranspose1d, lt.ConvTranspose2d, lt.ConvTranspose3d)[ndim - 1]
    theirs = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[ndim - 1]
    torch.manual_seed(0)
    reference = theirs(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    mine = ours(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    assert repr(mine) == repr(reference)
    mine.load_state_dict(reference.state_dict())
    x = torch.randn(2, 4, *range(5, 5 + ndim))
    size = [2 * n - 1 for n in x.shape[2:]]
    torch.testing.assert_close(mine(x), reference(x), rtol=1e-5, atol=1e-5)
    mine.eval()
    with torch.no_grad():
        for _ in range(2):
            for scale in (1.0, 0.5):
                mine.weight.mul_(scale), reference.weight.mul_(scale)
                torch.testing.assert_close(mine(x), reference(x), rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(mine(x, size), reference(x, size), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(copy.deepcopy(mine)(x), reference(x), rtol=1e-5, atol=1e-5)


def test_traces() -> None:
    model = nn.Sequential(lt.ConvTranspose2d(3, 4, 3, 2, 1, 1, activation="relu"), lt.ConvTranspose2d(4, 2, 2, 2))
    x = torch.randn(2, 3, 5, 5)
    wanted = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), wanted)
        torch.testing.assert_close(torch.vmap(model)(x), torch.stack([model(image) for image in x]))
    torch._dynamo.reset()


def test_swapped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 2, 3)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        wanted = model(x)
        report = lt.swap(model, example_input=x, measure=False)
        assert [row.fused for row in report.layers] == ["conv", "conv+relu", "conv"] and not report.left
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


X, W = (2, 4, 6, 6), (4, 3, 3, 3)
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"weight": torch.ones(5, 3, 3, 3)}, "weight=.*must have C = 4 channels"),
    ({"weight": torch.ones(4, 3, 3)}, r"weight=.*must have the axes \(C, K/groups, R, S\)"),
    ({"bias": torch.ones(4)}, r"bias=.*must have shape \(3,\)"),
    ({"groups": 3}, "groups=3: must divide the 4 input channels"),
    ({"output_padding": 1}, r"output_padding=.*must be smaller than stride \(1, 1\) or dilation \(1, 1\)"),
    ({"padding": 9}, "padding=.*leaves an output of extent"),
    ({"padding": "same"}, "padding='same': must be numbers"),
    ({"residual": torch.ones(1, 1, 1, 1)}, r"residual=.*must have the output's shape \(2, 3, 8, 8\)"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[str(n) for n in range(len(MISTAKES))])
@pytest.mark.parametrize("training", [False, True])
def test_mistakes(change: dict[str, Any], message: str, training: bool) -> None:
    keywords = {"input": torch.ones(X), "weight": torch.ones(W, requires_grad=training), **change}
    with pytest.raises(leanconv.LeanconvError, match=message):
        lt.conv_transpose2d(**keywords)
