"""`leanconv.torch.conv1d`, `conv2d`, `conv3d` beside PyTorch's: results, strides, gradients, transforms, errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv

torch = pytest.importorskip("torch")
F = torch.nn.functional
lt = pytest.importorskip("leanconv.torch")

OURS = {1: lt.conv1d, 2: lt.conv2d, 3: lt.conv3d}
THEIRS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

# Arguments as `torch.nn.functional` takes them: (ndim, x, w, bias, keywords).
TABLE: list[tuple[int, tuple[int, ...], tuple[int, ...], bool, dict[str, Any]]] = [
    (1, (2, 3, 17), (4, 3, 3), True, {}),
    (1, (2, 3, 17), (4, 3, 3), True, {"padding": "same"}),
    (1, (2, 3, 17), (4, 3, 4), False, {"padding": "same", "dilation": 2}),
    (1, (2, 3, 17), (4, 3, 4), False, {"padding": "valid"}),
    (1, (3, 17), (4, 3, 5), True, {"stride": 2, "padding": 2}),
    (1, (2, 4, 9), (6, 2, 3), True, {"groups": 2, "stride": (3,), "padding": (4,)}),
    (1, (2, 4, 9), (8, 1, 3), False, {"groups": 4, "dilation": (2,), "padding": [2]}),
    (2, (2, 3, 9, 11), (5, 3, 3, 3), True, {}),
    (2, (2, 3, 9, 11), (5, 3, 3, 3), False, {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    (2, (3, 9, 11), (5, 3, 3, 3), True, {"padding": 1}),
    (2, (0, 3, 9, 11), (5, 3, 3, 3), True, {"padding": 1}),
    (2, (2, 3, 9, 11), (5, 3, 2, 4), True, {"padding": "same"}),
    (2, (2, 3, 9, 11), (5, 3, 2, 3), True, {"padding": "same", "dilation": (3, 2)}),
    (2, (2, 8, 6, 6), (8, 1, 3, 3), True, {"groups": 8, "padding": 1, "stride": 2}),
    (2, (2, 8, 6, 6), (16, 1, 5, 5), False, {"groups": 8, "padding": 2}),
    (2, (2, 8, 6, 6), (16, 4, 1, 1), True, {"groups": 2}),
    (2, (1, 16, 1, 1), (8, 16, 1, 1), True, {}),
    (2, (2, 1, 5, 5), (3, 1, 3, 3), True, {"padding": [1], "stride": [2]}),
    (2, (1, 2, 4, 4), (3, 2, 7, 7), False, {"padding": 3}),
    (3, (2, 3, 5, 6, 7), (4, 3, 3, 3, 3), True, {"padding": 1}),
    (3, (3, 5, 6, 7), (4, 3, 1, 2, 3), True, {"stride": (1, 2, 2)}),
    (3, (1, 4, 5, 6, 7), (4, 2, 2, 2, 2), False, {"padding": "same", "groups": 2}),
]


def tensors(x: tuple[int, ...], w: tuple[int, ...], bias: bool, dtype: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in (x, w, w[:1])]
    return made if bias else [*made[:2], None]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch's, of its own copy
@pytest.mark.parametrize(("ndim", "x", "w", "bias", "keywords"), TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_as_pytorch(
    ndim: int, x: tuple[int, ...], w: tuple[int, ...], bias: bool, keywords: dict[str, Any], dtype: Any
) -> None:
    arrays = tensors(x, w, bias, dtype)
    wanted = THEIRS[ndim](*[None if a is None else a.double() for a in arrays], **keywords)
    result = OURS[ndim](*arrays, **keywords)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)
    assert result.stride() == THEIRS[ndim](*arrays, **keywords).stride()
    if ndim > 1 and len(x) == ndim + 2:
        last = arrays[0].contiguous(memory_format=LAST[ndim])
        result = OURS[ndim](last, *arrays[1:], **keywords)
        torch.testing.assert_close(result.double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)
        if x[0] and dtype == torch.float32:  # of an empty batch, or in double precision, PyTorch may forget the format
            assert result.stride() == THEIRS[ndim](last, *arrays[1:], **keywords).stride()


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    ndim = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim)))
    dilation = tuple(draw(st.lists(st.integers(1, 2), min_size=ndim, max_size=ndim)))
    pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(ndim))
    least = [max(1, d * (k - 1) + 1 - a - b, a + 1, b + 1) for k, d, (a, b) in zip(kernel, dilation, pads, strict=True)]
    sizes = tuple(n + draw(st.integers(0, 3)) for n in least)
    x = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), *sizes)
    w = (groups * draw(st.integers(1, 2)), x[1] // groups, *kernel)
    keywords = {
        "stride": tuple(draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))),
        "padding": pads,
        "dilation": dilation,
        "groups": groups,
        "pad_mode": draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    }
    return ndim, x, w, keywords


def defined(ndim: int, x: Any, w: Any, bias: Any, keywords: dict[str, Any]) -> Any:
    """A layer by PyTorch's operators: padded by a copy."""
    pads = [end for pair in reversed(keywords["padding"]) for end in pair]
    mode = keywords["pad_mode"]
    if any(pads):
        x = F.pad(x, pads, mode="constant" if mode == "zeros" else mode)
    options = {name: keywords[name] for name in ("stride", "dilation", "groups")}
    return THEIRS[ndim](x, w, bias, **options)


@settings(settings.get_profile("engine"), max_examples=20)
@given(layer=layers(), data=st.data())
def test_any_strides(layer: Any, data: st.DataObject) -> None:
    """Slices, transposed views and repeated images are read where they lie."""
    ndim, x_shape, w_shape, keywords = layer
    x, w, bias = tensors(x_shape, w_shape, True, torch.float64)
    wanted = defined(ndim, x, w, bias, keywords)

    def laid_out(tensor: Any) -> Any:
        order = data.draw(st.permutations(range(tensor.dim())))
        gaps = [data.draw(st.integers(1, 2)) for _ in order]
        block = torch.full([n * g for n, g in zip(tensor.shape, gaps, strict=True)], torch.nan, dtype=tensor.dtype)
        block = block.permute(*order).contiguous().permute(*sorted(range(len(order)), key=order.__getitem__))
        view = block[tuple(slice(None, None, g) for g in gaps)]
        return view.copy_(tensor)

    result = OURS[ndim](laid_out(x), laid_out(w), laid_out(bias), **keywords)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-12)
    expanded = x[:1].expand(3, *x.shape[1:])
    torch.testing.assert_close(
        OURS[ndim](expanded, w, **keywords), defined(ndim, expanded, w, None, keywords), rtol=0, atol=1e-12
    )


ACTIVATIONS = {
    "relu": torch.relu,
    "relu6": F.relu6,
    ("clip", -0.5, 0.75): lambda a: a.clamp(-0.5, 0.75),
    ("leaky_relu", 0.2): lambda a: F.leaky_relu(a, 0.2),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("order", ["before", "after"])
def test_fused_and_its_gradients(activation: Any, order: str) -> None:
    x, w, bias = (t.requires_grad_() for t in tensors((2, 4, 6, 5), (6, 2, 3, 3), True, torch.float64))
    residual = torch.randn(2, 6, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    residual.requires_grad_()
    function = ACTIVATIONS[activation]
    ours = lt.conv2d(x, w, bias, padding=1, groups=2, activation=activation, residual=residual, residual_order=order)
    theirs = F.conv2d(x, w, bias, padding=1, groups=2)
    theirs = function(theirs + residual) if order == "before" else function(theirs) + residual
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    seed = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for mine, other in zip(
        torch.autograd.grad(ours, (x, w, bias, residual), seed),
        torch.autograd.grad(theirs, (x, w, bias, residual), seed),
        strict=True,
    ):
        # PyTorch's slope of hardsigmoid is a sixth in single precision.
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6 if activation == "hardsigmoid" else 1e-11)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # PyTorch's own, at forward mode's first use
@settings(settings.get_profile("engine"), max_examples=6)
@given(layer=layers())
def test_gradients(layer: Any) -> None:
    """First and second derivatives, by differences."""
    ndim, x_shape, w_shape, keywords = layer
    arrays = tuple(t.requires_grad_() for t in tensors(x_shape, w_shape, True, torch.float64))

    def function(*args: Any) -> Any:
        return OURS[ndim](*args, **keywords)

    assert torch.autograd.gradcheck(function, arrays, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arrays, fast_mode=True)


@pytest.mark.parametrize("activation", [None, "tanh", "silu"])
def test_operators(activation: str | None) -> None:
    """What PyTorch asks of an operator: schema, fake tensors, gradients, ahead-of-time autograd."""
    from leanconv.torch import operators
    from leanconv.torch.options import options

    x, w, bias = (t.requires_grad_() for t in tensors((2, 4, 6, 5), (6, 2, 3, 3), True, torch.float64))
    arguments = options(2, 2, ((1, 0), (2, 1)), 1, 2, activation=activation).arguments()
    torch.library.opcheck(operators.convolution, (x, w, bias, None, *arguments))
    if activation is None:
        last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        torch.library.opcheck(operators.convolution, (last, w, None, None, *arguments))
        torch.library.opcheck(operators.convolution, (last.detach()[0].requires_grad_(), w, None, None, *arguments))
        grad = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(operators.convolution_data, (grad, w, [6, 5], *arguments))
        torch.library.opcheck(operators.convolution_weights, (x, grad, [3, 3], *arguments))


@settings(settings.get_profile("engine"), max_examples=3)
@given(layer=layers())
def test_operators_on_random_problems(layer: Any) -> None:
    """The same for layers of any geometry, and for both gradients."""
    from leanconv.torch import operators
    from leanconv.torch.options import options

    ndim, x_shape, w_shape, keywords = layer
    x, w, _ = (t.requires_grad_() for t in tensors(x_shape, w_shape, True, torch.float64))
    arguments = options(ndim, *(keywords[name] for name in ("stride", "padding", "dilation", "groups"))).arguments()
    grad = torch.ones_like(operators.convolution(x, w, None, None, *arguments)).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, given_ in (
        (operators.convolution, (x, w, None, None)),
        (operators.convolution_data, (grad, w, list(x_shape[2:]))),
        (operators.convolution_weights, (x, grad, list(w_shape[2:]))),
    ):
        torch.library.opcheck(operator, (*given_, *arguments), test_utils=checks)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_vmap_and_func() -> None:
    """Images, weights or both mapped, under gradients too; Jacobians in both modes."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((3, 2, 4, 7, 6), (3, 6, 2, 3, 3), (3, 6))
    given_ = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def loss(function: Any) -> Any:
        return lambda *a: (function(*a, 2, 1, 1, 2) ** 2).sum()

    for dims in ((0, 0, 0), (0, None, None), (None, 0, None), (0, 0, None), (None, None, 0)):
        arrays = [a if d == 0 else a[0] for a, d in zip(given_, dims, strict=True)]
        for wrap in (lambda f: f, lambda f: torch.func.grad(f, argnums=(0, 1, 2))):
            ours = torch.vmap(wrap(loss(lt.conv2d)), in_dims=dims)(*arrays)
            theirs = torch.vmap(wrap(loss(F.conv2d)), in_dims=dims)(*arrays)
            torch.testing.assert_close(ours, theirs)
    x, w = given_[0][0], given_[1][0]
    singles = torch.vmap(lambda a: lt.conv2d(a, w, groups=2))(x)
    torch.testing.assert_close(singles, F.conv2d(x, w, groups=2))
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        ours = jacobian(lambda w: lt.conv2d(x[:, :, :3, :3], w, groups=2))(w)
        torch.testing.assert_close(ours, torch.func.jacrev(lambda w: F.conv2d(x[:, :, :3, :3], w, groups=2))(w))


def test_compiled() -> None:
    """One graph, forward and backward."""
    x, w, bias = (t.requires_grad_() for t in tensors((2, 4, 6, 5), (6, 4, 3, 3), True, torch.float32))

    def layer(function: Any) -> Any:
        return lambda x, w, b: function(x, w, b, stride=2, padding=1).relu() * 2

    compiled = torch.compile(layer(lt.conv2d), backend="aot_eager", fullgraph=True)
    ours, theirs = compiled(x, w, bias), layer(F.conv2d)(x, w, bias)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), (x, w, bias)), torch.autograd.grad(theirs.sum(), (x, w, bias)), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_traced() -> None:
    """`torch.fx` records a call as one node; `torch.export` and make_fx record the operator."""
    x, w, bias = tensors((2, 4, 6, 5), (6, 4, 3, 3), True, torch.float32)

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return lt.conv2d(x, w, bias, padding=1, activation="relu")

    wanted = F.conv2d(x, w, bias, padding=1).relu()
    graph = torch.fx.symbolic_trace(Model())
    assert lt.conv2d in {node.target for node in graph.graph.nodes}
    torch.testing.assert_close(graph(x), wanted)
    exported = torch.export.export(Model(), (x,))
    assert "leanconv.convolution" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), wanted)


def test_autocast() -> None:
    """In an autocast region the layer stays in single precision, and widens what others have narrowed."""
    x, w, bias = tensors((2, 4, 6, 5), (6, 4, 3, 3), True, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = lt.conv2d(x.bfloat16(), w, bias)
    torch.testing.assert_close(result, F.conv2d(x.bfloat16().float(), w, bias))


def test_views_that_are_negated() -> None:
    x = torch.randn(1, 2, 5, 5, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    w = torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(lt.conv2d(x, w), F.conv2d(x, w))


def test_same_bits() -> None:
    """Gradients too do not depend on threads or on chance."""
    x, w, bias = (t.requires_grad_() for t in tensors((4, 16, 15, 14), (24, 16, 3, 3), True, torch.float32))
    found = set()
    for threads in (1, 2, 1, 2):
        y = lt.conv2d(x, w, bias, padding=1, threads=threads, deterministic=True)
        grads = torch.autograd.grad(y.square().sum(), (x, w, bias))
        found.add(tuple(t.detach().numpy().tobytes() for t in (y, *grads)))
    assert len(found) == 1


@pytest.mark.parametrize("algorithm", ["winograd_f4", "winograd_f2", "kn2row", "indirect", "pointwise", "!winograd_f4"])
def test_algorithms_of_gradients(algorithm: str) -> None:
    """What is asked for computes the gradients where it can; "pointwise" has none of weights, "auto" stands in."""
    kernel, padding = ((6, 4, 1, 1), 0) if algorithm == "pointwise" else ((6, 4, 3, 3), 1)
    x, w, bias = (t.requires_grad_() for t in tensors((2, 4, 7, 6), kernel, True, torch.float64))

    def function(*args: Any) -> Any:
        return lt.conv2d(*args, padding=padding, algorithm=algorithm)

    assert torch.autograd.gradcheck(function, (x, w, bias), fast_mode=True)
    strided = lt.conv2d(x, w, bias, stride=2, padding=padding, algorithm=["auto", "winograd_f4"])
    wanted = F.conv2d(x, w, bias, stride=2, padding=padding)
    (found,), (right,) = (torch.autograd.grad(y.square().sum(), w) for y in (strided, wanted))
    torch.testing.assert_close(found, right)


def test_gradients_have_the_weights_format() -> None:
    """In another one PyTorch would copy them when it accumulates."""
    for kind, transposed in (("contiguous_format", False), ("channels_last", False), ("channels_last", True)):
        form = getattr(torch, kind)
        x, w, _ = tensors(X, W, True, torch.float64)
        w = w.contiguous(memory_format=form)
        if transposed:
            x = torch.ones(2, 6, 6, 6, dtype=torch.float64)
        ours, theirs = (lt.conv_transpose2d, F.conv_transpose2d) if transposed else (lt.conv2d, F.conv2d)
        w.requires_grad_()
        (found,) = torch.autograd.grad(ours(x, w).square().sum(), w)
        (wanted,) = torch.autograd.grad(theirs(x, w).square().sum(), w)
        assert found.stride() == w.stride()
        torch.testing.assert_close(found, wanted)


def test_options_reach_the_engine() -> None:
    x, w, _ = tensors((1, 8, 12, 12), (8, 8, 3, 3), False, torch.float32)
    wanted = F.conv2d(x, w, padding=1)
    for algorithm in ("im2col", ["direct", "mec"], "!direct"):
        torch.testing.assert_close(lt.conv2d(x, w, padding=1, algorithm=algorithm), wanted, rtol=0, atol=1e-4)
    with pytest.raises(leanconv.MemoryLimitError, match="limit is 16 bytes"):
        lt.conv2d(x, w, padding=1, algorithm="im2col", memory_limit=16)
    with leanconv.memory_limit(16), pytest.raises(leanconv.MemoryLimitError):
        lt.conv2d(x, w, padding=1, algorithm="im2col")
    with leanconv.memory_limit(16):
        torch.testing.assert_close(
            lt.conv2d(x, w, padding=1, algorithm="im2col", memory_limit="unlimited"), wanted, rtol=0, atol=1e-4
        )
    with pytest.raises(leanconv.NotApplicableError, match="pointwise"):
        lt.conv2d(x, w, algorithm="pointwise")


X, W = (2, 4, 6, 6), (6, 4, 3, 3)
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"input": [1.0]}, r"input=\[1.0\]: must be a tensor, not list"),
    ({"input": torch.ones(4)}, r"input=<Tensor \(4,\).*must have the axes \(N, C, H, W\), or \(C, H, W\)"),
    ({"weight": torch.ones(4, 3)}, r"weight=.*must have the axes \(K, C/groups, R, S\)"),
    ({"weight": torch.ones(6, 5, 3, 3)}, r"weight=.*must have C/groups = 4/1 = 4 channels, has 5"),
    ({"weight": torch.ones(6, 4, 9, 3)}, r"weight=.*spans 9 along H, more than the padded input's 6"),
    ({"weight": torch.ones(6, 4, 3, 3).double()}, "weight=.*must have the element type of input, torch.float32"),
    ({"input": torch.ones(X).bfloat16()}, "input=.*must have element type torch.float32 or torch.float64"),
    ({"input": torch.ones(X).to_sparse()}, "input=.*must be a dense tensor, not one of torch.sparse"),
    ({"bias": torch.ones(5)}, r"bias=.*must have shape \(6,\)"),
    ({"bias": torch.ones(6, 1)}, r"bias=.*must have one axis, \(K,\)"),
    ({"bias": 1.0}, "bias=1.0: must be a tensor, not float"),
    ({"stride": 0}, "stride=0: must be at least 1"),
    ({"stride": (1, 2, 3)}, r"stride=\(1, 2, 3\): must be an int or a tuple of 2"),
    ({"stride": 1.5}, "stride=1.5: must be an int"),
    ({"padding": -1}, "padding=-1: must be at least 0"),
    ({"padding": "full"}, "padding='full': must be 'same', 'valid' or numbers"),
    ({"padding": "same", "stride": 2}, r"padding='same': needs stride 1, as in PyTorch; stride is \(2, 2\)"),
    ({"dilation": 0}, "dilation=0: must be at least 1"),
    ({"groups": 3}, "groups=3: must divide the 4 input channels"),
    ({"groups": 0}, "groups=0: must be at least 1"),
    ({"activation": "swish"}, "activation='swish': must be one of"),
    ({"residual": torch.ones(2, 6, 3, 3)}, r"residual=.*must have the output's shape \(2, 6, 4, 4\)"),
    ({"pad_mode": "mirror"}, "pad_mode='mirror': must be"),
    ({"algorithm": "fast"}, "algorithm='fast': must be"),
]


@pytest.mark.parametrize(
    ("change", "message"), MISTAKES, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(MISTAKES)]
)
@pytest.mark.parametrize("training", [False, True])
def test_mistakes(change: dict[str, Any], message: str, training: bool) -> None:
    """The argument, its value, the rule; PyTorch refuses the same where it has the argument."""
    keywords = {"input": torch.ones(X), "weight": torch.ones(W, requires_grad=training), **change}
    with pytest.raises(leanconv.LeanconvError, match=message):
        lt.conv2d(**keywords)
    if not {"activation", "residual", "pad_mode", "algorithm"} & set(change) and "bfloat" not in message:
        with pytest.raises((RuntimeError, TypeError, ValueError, NotImplementedError)):
            F.conv2d(**keywords)


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="dilatation"):
        lt.conv2d(torch.ones(X), torch.ones(W), dilatation=2)
