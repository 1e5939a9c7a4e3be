"""Winograd: transforms are exact, their code is that of the matrices, every size and axis works, bounds hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import leanconv
from assembly import count_fused, parse, spills
from definitions_winograd import as_floats, winograd
from guard import GuardedAllocator
from kernels import elementwise
from leanconv import oracle
from leanconv.algorithms import REGISTRY
from leanconv.algorithms.winograd import Winograd
from leanconv.codegen import jit
from leanconv.codegen.targets import TARGETS
from leanconv.host import Host
from leanconv.kernels.cook_toom import ONE, CookToom, Matrix, Surd, plus_minus
from leanconv.kernels.linear import Linear, linear
from leanconv.kernels.polyphase import Strided, Transform
from leanconv.kernels.winograd_lines import TapsOf
from leanconv.kernels.winograd_products import most_rows
from leanconv.staging import refusal
from strategies import ALGORITHMS, Case, Geometry, applies, check_untouched, convolve
from test_algorithms import run_every_way
from test_assembly import assembly, multiplying, typical

NAMES = [algorithm.name for algorithm in REGISTRY if isinstance(algorithm, Winograd)]
TRANSFORMS = [(m, r) for m in range(1, 7) for r in range(2, 8) if m + r <= 9]
WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


def times(matrix: Matrix, numbers: list[Surd]) -> list[Surd]:
    result = []
    for row in matrix:
        total = Surd()
        for a, b in zip(row, numbers, strict=True):
            total = total + a * b
        result.append(total)
    return result


def some_numbers(count: int, seed: int) -> list[Surd]:
    drawn = np.random.default_rng(seed).integers(-9, 10, (count, 2)).tolist()
    return [Surd(3 * a, 7 * b, 21) for a, b in drawn]


# -- transforms --------------------------------------------------------------------------------------------------


def test_surds_are_a_field() -> None:
    a, b = some_numbers(2, 5)
    assert (a + b) - b == a and (a * b) / b == a and a + (-a) == Surd() and a / a == ONE
    assert Surd(root=1) * Surd(root=1) == Surd(2) and Surd(2, -4, -6) == Surd(-1, 2, 3)
    assert float(a * b) == pytest.approx(float(a) * float(b), rel=1e-14)
    assert not Surd() and ONE and Surd(root=1)
    with pytest.raises(ZeroDivisionError):
        a / Surd()


@pytest.mark.parametrize(("outputs", "taps"), TRANSFORMS)
def test_transforms_are_exact(outputs: int, taps: int) -> None:
    """Not nearly: the identity holds in exact numbers, for whole tiles and for every smaller one."""
    check_exact(CookToom.of(outputs, taps))
    check_exact(replace(CookToom.of(outputs, taps), bare=True))


def test_any_points_will_do() -> None:
    third, five = Surd(1, over=3), Surd(-5)
    check_exact(CookToom(3, 3, (third, five, Surd(2, 1), -third)))
    check_exact(CookToom(4, 2, plus_minus(third, five)[1:]))


@pytest.mark.parametrize(("outputs", "taps", "stride"), [(4, 3, 2), (3, 3, 3), (2, 2, 2), (4, 7, 2), (2, 11, 4)])
def test_strided_transforms_are_exact(outputs: int, taps: int, stride: int) -> None:
    transform = Strided.of(outputs, taps, stride)
    check_exact(transform, stride)
    saved = {(4, 3, 2): 9, (4, 7, 2): 13, (2, 11, 4): 15}
    assert transform.size == saved.get((outputs, taps, stride), transform.size) <= outputs * taps


def check_exact(transform: Transform, stride: int = 1) -> None:
    taps = some_numbers(transform.taps, 1)
    weights = times(transform.weights(), taps)
    for count in range(1, transform.outputs + 1):
        inputs = some_numbers((count - 1) * stride + transform.taps, 2)
        points = times(transform.inputs(count), inputs)
        products = [a * b for a, b in zip(weights[: len(points)], points, strict=True)]
        windows = [inputs[i * stride : i * stride + transform.taps] for i in range(count)]
        window = [times((tuple(pixels),), taps)[0] for pixels in windows]
        assert times(transform.results(count), products) == window


def evaluate(program: Linear, values: np.ndarray) -> np.ndarray:
    known = list(values)
    for step in program.steps:
        a, b = known[step.a], known[step.b]
        known.append({"add": a + b, "sub": a - b, "mul": step.factor * a, "fma": step.factor * a + b}[step.kind])
    return np.array([known[i] for i in program.outputs])


@pytest.mark.parametrize(("outputs", "taps"), TRANSFORMS)
def test_straight_line_code_is_the_matrix(outputs: int, taps: int) -> None:
    transform = CookToom.of(outputs, taps)
    for count in range(1, outputs + 1):
        for matrix in (transform.inputs(count), transform.results(count), transform.weights()):
            program = linear(matrix)
            values = np.random.default_rng(3).standard_normal(len(matrix[0]))
            np.testing.assert_allclose(evaluate(program, values), as_floats(matrix) @ values, rtol=1e-13, atol=1e-13)
            plain = sum(bool(value) for row in matrix for value in row)
            assert len(program.steps) <= plain


def test_shared_subexpressions_are_found() -> None:
    """F(4, 3): 12 instructions in each direction, where the matrices have 22 and 18 entries; F(6, 3): 24 and 20."""
    counts = [(len(linear(t.inputs()).steps), len(linear(t.results()).steps)) for t in map(of_three, (2, 4, 6))]
    assert counts == [(4, 4), (12, 12), (24, 20)]


def of_three(outputs: int) -> CookToom:
    return CookToom.of(outputs, 3)


def test_emitted_code_is_the_straight_line_code() -> None:
    """A sum of all points, as machine code (the kernels' tests check each of them)."""
    program = linear(CookToom.of(4, 3).inputs())
    fused = jit.host_target().fma

    def total(fn, x):  # type: ignore[no-untyped-def]
        inputs = [fn.binary("fmul", x, fn.const(x.type, 1.0 + j)) for j in range(6)]
        first, *rest = program.emit(fn, inputs, fused=fused)
        for value in rest:
            first = fn.binary("fadd", first, value)
        return first

    x = np.random.default_rng(4).standard_normal(100)
    want = evaluate(program, np.outer(1.0 + np.arange(6), x)).sum(axis=0)
    np.testing.assert_allclose(elementwise("float64", total)(x), want, rtol=1e-13, atol=1e-13)


# -- the algorithm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [2, 4, 6])
@pytest.mark.parametrize("kernel", [(3,), (3, 3), (1, 3), (3, 1), (2, 3), (2, 2, 2)])
def test_the_definition_is_convolution(kernel: tuple[int, ...], outputs: int) -> None:
    geometry = Geometry(kernel, (1,) * len(kernel), (1,) * len(kernel), ((1, 2),) * len(kernel))
    case = Case((2, 3, *(9, 7, 5)[: len(kernel)]), (4, 3, *kernel), geometry)
    got = winograd(case.problem, case.values["x"], case.values["w"], outputs)
    np.testing.assert_allclose(got, oracle.reference(case.problem, **case.values), rtol=1e-10, atol=1e-10)


def check(case: Case, name: str, **more: object) -> None:
    out = case.guarded_out(viewed=False)
    with GuardedAllocator(case.flush):
        convolve(case, case.guarded_inputs(viewed=False), algorithm=name, out=out, **more)
    case.check(out, name)
    check_untouched(out)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["winograd_f2", "winograd_f4", "winograd_f6_on_the_fly"])
def test_every_size(name: str, layout: str) -> None:
    """Whole tiles and every smaller one, alone and behind whole ones, along each axis."""
    for high in range(1, 15, 3 if "f6" in name else 1):
        for wide in (high, 15 - high):
            case = Case((1, 5, high, wide), (9, 5, 3, 3), WINDOW, layout=layout, seed=high, epilogue={"bias": True})
            check(case, name, threads=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", [(2, 2), (5, 5), (1, 5), (7, 1), (3, 5)])
def test_other_kernels(name: str, kernel: tuple[int, int]) -> None:
    pads = tuple((k // 2, k // 2) for k in kernel)
    for layout, dilation in (("NCHW", 1), ("NHWC", 1), ("NCHW", 2), ("NHWC", 3)):
        dilations = tuple(dilation if k > 1 else 1 for k in kernel)
        case = Case(
            (2, 9, 19, 23),
            (17, 9, *kernel),
            Geometry(kernel, (1, 1), dilations, pads),
            layout=layout,
            epilogue={"residual": True},
        )
        reason = refusal(ALGORITHMS[name], case.problem)
        if reason is None:
            check(case, name, threads=2)
        else:
            assert "taps a phase" in reason


BLOCKS = [
    Case((2, 40, 33, 31), (48, 40, 3, 3), WINDOW, layout="NHWC", views=("gaps", "permuted", "gaps", "gaps")),
    Case((3, 300, 9, 8), (33, 300, 3, 3), WINDOW, epilogue={"residual": True, "bias": True}, threads=2),
    Case((2, 528, 10, 7), (17, 528, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True}, threads=2),  # three sections
    Case((2, 12, 7, 50), (96, 6, 3, 3), WINDOW, groups=2, dtype="float64", layout="NHWC", epilogue={"bias": True}),
]


@pytest.mark.parametrize("case", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.parametrize("name", NAMES)
def test_several_blocks_and_panels(name: str, case: Case) -> None:
    with GuardedAllocator():
        run_every_way(name, case)


@pytest.mark.parametrize("name", ["winograd_f4", "winograd_f4_on_the_fly"])
def test_bits_do_not_depend_on_blocks(name: str) -> None:
    case = Case((2, 24, 27, 22), (40, 24, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True})
    results = []
    for threads, parameters in ((1, None), (4, None), (1, {"tiles": 1}), (2, {"tiles": 7}), (1, {"tiles": 1000})):
        plan = leanconv.plan(**case.plan_arguments, algorithm=name, threads=threads, parameters=parameters)
        results.append(plan.bind(case.values["w"], case.values["bias"])(case.values["x"]).tobytes())
    assert len(set(results)) == 1


def test_channels_are_split_alike_on_any_number_of_threads() -> None:
    """How many blocks of channels there are decides the bits of the sums."""
    for channels, size in ((512, 28), (256, 56), (1024, 14), (2048, 20), (96, 112)):
        case = Case((1, channels, size, size), (64, channels, 3, 3), WINDOW, layout="NHWC")
        plans = [case.plan("winograd_f4_on_the_fly", threads) for threads in (1, 2, 3, 8)]
        assert len({plan.parameters["splits"] for plan in plans}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_memory(name: str) -> None:
    """The workspace is what the formula says, shrinks to a limit, and weights on the fly cost no packed ones."""
    case = Case((1, 64, 56, 56), (64, 64, 3, 3), WINDOW, layout="NHWC")
    plan = case.plan(name)
    points, tiles = int(plan.parameters["points"]), int(plan.parameters["tiles"])
    lanes = jit.host_target().lanes("float32")
    channels = 64 // int(plan.parameters["splits"])
    formula = points * tiles * (channels + 2 * lanes) * 4
    side = 3 + {"f2": 2, "f4": 4, "f6": 6}[name.split("_")[1]] - 1
    formula += (side + 9) * channels * 2 * lanes * 4 if "fly" in name else 0  # a row of points, and the taps
    assert formula <= plan.workspace_bytes <= 1.02 * formula + 64 * 3 * points
    assert plan.packed_weight_bytes == (0 if "fly" in name else pytest.approx(points * 64 * 64 * 4, rel=0.02))
    half = plan.extra_bytes - plan.workspace_bytes // 3
    tight = case.plan(name, memory_limit=half)
    assert tight.extra_bytes <= half
    assert int(tight.parameters["tiles"]) < tiles or int(tight.parameters["splits"]) > int(plan.parameters["splits"])
    bound = tight.bind(case.values["w"])
    with GuardedAllocator() as guard:
        case.check(bound(case.values["x"]), name)
    assert sum(guard.sizes) == tight.workspace_bytes


def phases(plan: leanconv.Plan) -> list[str]:
    return [phase.name for phase in plan._lowering.phases]


@pytest.mark.parametrize("name, layout", [("winograd_f4", "NCHW"), ("winograd_f4_on_the_fly", "NHWC")])
def test_threads_share_windows_of_few_tiles(name: str, layout: str) -> None:
    """They are transformed once, if there is memory for all of them at one time; the bits are those of one thread."""
    case = Case((1, 260, 14, 13), (64, 260, 3, 3), WINDOW, layout=layout, epilogue={"bias": True})
    plans = [case.plan(name, threads) for threads in (1, 2, 3)]
    assert [phases(plan) for plan in plans] == [["winograd"], ["windows", "winograd"], ["windows", "winograd"]]
    one, two, three = (plan.workspace_bytes for plan in plans)
    assert three - two == pytest.approx(two - one, rel=0.05)  # all but the windows
    assert 0 < two - one < one < two
    tight = case.plan(name, threads=2, memory_limit=plans[1].extra_bytes - 1)
    assert phases(tight) == ["winograd"] and tight.extra_bytes < plans[1].extra_bytes
    arrays = [case.values["w"], case.values["bias"]]
    assert len({plan.bind(*arrays)(case.values["x"]).tobytes() for plan in plans}) == 1
    assert_right(case, plans[1])
    assert_right(case, tight)


def assert_right(case: Case, plan: leanconv.Plan) -> None:
    """The plan's outputs, between guard pages."""
    values = case.guarded_inputs(viewed=False)
    w, bias = values.pop("w"), values.pop("bias", None)
    out = case.guarded_out(viewed=False)
    with GuardedAllocator(case.flush):
        plan.bind(w, bias)(**values, out=out)
    case.check(out, plan.algorithm)
    check_untouched(out)


@pytest.mark.parametrize("epilogue", [{}, {"bias": True, "activation": "relu"}, {"bias": True, "residual": True}])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_channels_in_several_blocks(layout: str, epilogue: dict[str, object]) -> None:
    """Outputs are added up over blocks of channels: every number of them, and bias, residual and activation once."""
    name = "winograd_f4_on_the_fly"
    case = Case((2, 96, 11, 9), (37, 96, 3, 3), WINDOW, layout=layout, epilogue=epilogue)
    for splits in (2, 3, 1000):
        plan = case.plan(name, threads=2, parameters={"splits": splits, "tiles": 5})
        assert_right(case, plan)
    assert int(case.plan(name, parameters={"splits": 1000}).parameters["splits"]) == 6  # of 16 channels
    assert int(case.plan(name, parameters={"splits": 5}).parameters["splits"]) == 6


def test_what_channels_cannot_be_split() -> None:
    """Those that are not whole vectors, or whose residual follows the activation; blocks are sections at most."""

    def splits(channels: int, wanted: int, **epilogue: object) -> int:
        case = Case((1, channels, 12, 12), (16, channels, 3, 3), WINDOW, layout="NHWC", epilogue=epilogue)
        plan = case.plan("winograd_f4_on_the_fly", parameters={"splits": wanted})
        assert_right(case, plan)
        return int(plan.parameters["splits"])

    assert splits(100, 3) == 1
    assert splits(64, 4, activation="relu", residual=True, residual_order="after") == 1
    assert splits(64, 4, activation="relu", residual=True) == 4
    assert splits(1024, 2) == 4


@pytest.mark.parametrize("limit", [64 << 10, 128 << 10, 256 << 10])
def test_on_the_fly_uses_what_a_limit_allows(limit: int) -> None:
    """Channels and tiles share what there is; every byte of it is declared, and what is computed is the same."""
    case = Case((1, 160, 20, 20), (48, 160, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True})
    plan = case.plan("winograd_f4_on_the_fly", memory_limit=limit, threads=1)
    assert limit // 2 < plan.extra_bytes <= limit and plan.packed_weight_bytes == 0
    with GuardedAllocator() as guard:
        case.check(plan.bind(case.values["w"], case.values["bias"])(case.values["x"]), plan.algorithm)
    assert sum(guard.sizes) == plan.workspace_bytes


# -- lines of points: the last axis of weights is transformed in registers ------------------------------------------

IN_LINES = [
    Case((1, 40, 7, 7), (48, 40, 3, 3), WINDOW, layout="NHWC", views=("gaps", "permuted", "gaps", "gaps")),
    Case((3, 300, 9, 8), (33, 300, 3, 3), WINDOW, epilogue={"residual": True, "bias": True}, threads=2),
    Case((2, 528, 10, 7), (17, 528, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True}, threads=2),  # sections
    Case((2, 12, 7, 50), (96, 6, 3, 3), WINDOW, groups=2, dtype="float64", layout="NHWC", epilogue={"bias": True}),
    Case((2, 20, 23), (24, 20, 3), Geometry((3,), (1,), (1,), ((1, 1),))),  # weights are plain, but for a factor
    Case((1, 9, 19, 13), (40, 9, 5, 3), Geometry((5, 3), (1, 1), (1, 2), ((2, 2), (1, 1))), layout="NHWC"),
    Case((1, 16, 19, 18), (33, 16, 3, 3), Geometry((3, 3), (2, 2), (1, 1), ((1, 1), (0, 1))), layout="NHWC"),
]


@pytest.mark.parametrize("case", IN_LINES, ids=range(len(IN_LINES)))
@pytest.mark.parametrize("name", ["winograd_f2", "winograd_f4"])
def test_lines_of_points(name: str, case: Case) -> None:
    """Any number of points at one time, of blocks and of threads."""
    for together in (2, 3, 4, 1000):
        for more in ({}, {"tiles": 1}, {"tiles": 5}):
            plan = case.plan(name, threads=case.threads, parameters={"together": together, **more})
            assert_right(case, plan)
            lines = plan.parameters.get("together", 1)
            assert lines == 1 if not jit.host_target().masks else 2 <= int(lines) <= together


def test_pairs_of_bare_points_take_three_steps() -> None:
    """A pair +p and -p of F(4, 3): one multiply-add, and the middle tap added and subtracted."""
    packed = TapsOf(replace(CookToom.of(4, 3), bare=True))
    assert [step.kind for step in linear(packed.points()).steps] == ["fma", "add", "sub"] * 2
    assert as_floats(packed.weights()).diagonal().tolist() == pytest.approx([1, 0.5**0.5, 1])
    for m, r in TRANSFORMS:
        transform = replace(CookToom.of(m, r), bare=True)
        whole = as_floats(TapsOf(transform).points()) @ as_floats(TapsOf(transform).weights())
        np.testing.assert_allclose(whole, as_floats(transform.weights()), rtol=1e-15)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["winograd_f2", "winograd_f4", "winograd_f6"])
def test_lines_of_every_size(name: str, layout: str) -> None:
    """Whole tiles and every smaller one, alone and behind whole ones: points of every class."""
    for high in range(1, 15, 3 if "f6" in name else 1):
        for wide in (high, 15 - high):
            case = Case((1, 5, high, wide), (9, 5, 3, 3), WINDOW, layout=layout, seed=high, epilogue={"bias": True})
            assert_right(case, case.plan(name, threads=1, parameters={"together": 2 + high % 4}))


def test_bits_of_lines_do_not_depend_on_blocks() -> None:
    case = Case((2, 272, 14, 9), (72, 272, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True})
    results = set()
    for threads in (1, 2, 3):
        for parameters in ({"together": 2}, {"together": 3}, {"together": 6}, {"together": 3, "tiles": 3}):
            plan = case.plan("winograd_f4", threads, parameters=parameters)
            results.add(plan.bind(case.values["w"], case.values["bias"])(case.values["x"]).tobytes())
    assert len(results) == 1


def test_which_layers_take_lines() -> None:
    """Those whose weights take longer to read than to multiply, whatever the number of threads; none without masks."""

    def stored(target: str, channels: int, size: int, batch: int = 1, name: str = "winograd_f4") -> int:
        """Numbers a filter that are packed."""
        host = Host(TARGETS[target], 48 << 10, 1 << 20, 32 << 20)
        case = Case((batch, channels, size, size), (channels, channels, 3, 3), WINDOW, layout="NHWC")
        lowerings = [ALGORITHMS[name].lower(case.problem, host, threads, None, {}) for threads in (1, 2)]
        numbers = {round(low.packing.nbytes / (channels * channels * 4)) for low in lowerings if low.packing}
        assert len(numbers) == 1
        return numbers.pop()

    assert stored("avx512", 512, 7) == stored("avx512", 256, 7) == stored("avx512", 512, 14) == 18
    assert stored("avx512", 64, 7) == stored("avx512", 256, 14) == stored("avx512", 512, 28) == 36
    assert stored("avx512", 512, 7, batch=8) == 36
    assert stored("avx512", 512, 6) == 15  # of tiles of 3 outputs
    assert stored("avx512", 1024, 7, name="winograd_f2") == 16
    assert all(stored(target, 512, 7) == 36 for target in ("avx2", "neon", "portable"))


def test_tiles_are_no_larger_than_need_be() -> None:
    """As many tiles and products, and fewer weights."""

    def tile(size: int, name: str) -> tuple[object, object]:
        case = Case((1, 32, size, size), (32, 32, 3, 3), WINDOW, layout="NHWC")
        plan = case.plan(name, threads=1)
        assert_right(case, plan)
        return plan.parameters["tile"], plan.parameters["tiles"]

    assert [tile(n, "winograd_f4") for n in (5, 6, 7, 9)] == [("3x3", 4), ("3x3", 4), ("4x4", 4), ("3x3", 9)]
    assert [tile(n, "winograd_f6") for n in (6, 7, 10)] == [("6x6", 1), ("4x4", 4), ("5x5", 4)]
    assert tile(3, "winograd_f2") == ("2x2", 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size, together, fused", [(14, 2, 26), (8, 3, 26)])
def test_lines_run_in_registers(size: int, together: int, fused: int, dtype: str) -> None:
    """24 multiply-adds a channel, and one for each pair of points of a vector of filters; nothing is spilled."""
    host = Host(TARGETS["avx512"], 48 << 10, 1 << 20, 32 << 20)
    case = Case((1, 256, size, size), (128, 256, 3, 3), WINDOW, dtype=dtype, layout="NHWC")
    low = ALGORITHMS["winograd_f4"].lower(case.problem, host, 1, None, {"together": together})
    spec = low.phases[-1].spec
    loops = [loop for loop in multiplying(spec) if count_fused(loop) == 4 * fused]
    assert loops and not any(map(spills, loops))


BOUNDS = {"winograd_f2": 2e-6, "winograd_f4": 4e-6, "winograd_f6": 2.5e-5}


@pytest.mark.parametrize("name", NAMES)
def test_error_bounds(name: str) -> None:
    """512 channels of 3x3 taps: within the bound that is stated, and near what is measured, not far below."""
    case = Case((1, 512, 18, 18), (32, 512, 3, 3), WINDOW, layout="NHWC", seed=1)
    info = next(i for i in leanconv.algorithms(**case.plan_arguments) if i.name == name)
    assert info.error_bound is not None and info.error_bound <= BOUNDS[name.removesuffix("_on_the_fly")]
    want = oracle.reference(case.problem, **case.values)
    got = convolve(case, case.values, algorithm=name)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert info.error_bound / 10 < error <= info.error_bound
    double = replace(case, dtype="float64", x_shape=(1, 64, 18, 18), w_shape=(32, 64, 3, 3))
    case.check(got, name)
    double.check(convolve(double, double.values, algorithm=name), name)


def test_refusals() -> None:
    def reason(name: str, kernel: tuple[int, ...], stride: int = 1) -> str | None:
        geometry = Geometry(kernel, (stride,) * len(kernel), (1,) * len(kernel), ((0, 0),) * len(kernel))
        case = Case((1, 4, *(30,) * len(kernel)), (8, 4, *kernel), geometry)
        return next(i for i in leanconv.algorithms(**case.plan_arguments) if i.name == name).reason

    assert "stride of 4" in str(reason("winograd_f4", (3, 3), 4)) and reason("winograd_f4", (3, 3), 2) is None
    assert "one tap" in str(reason("winograd_f2", (1, 1)))
    assert "6 taps at" in str(reason("winograd_f4", (6, 3))) and reason("winograd_f2", (6, 3)) is None
    assert "512 products" in str(reason("winograd_f6", (3, 3, 3))) and reason("winograd_f4", (3, 3, 3)) is None


def test_accuracy_decides_whether_it_runs_unasked() -> None:
    case = Case((1, 64, 56, 56), (64, 64, 3, 3), WINDOW)
    assert case.plan("auto").algorithm in ("winograd_f2", "winograd_f4")
    assert "winograd" not in case.plan("auto", accuracy="exact").algorithm
    assert "winograd" not in case.plan("auto", deterministic=True).algorithm


@pytest.mark.parametrize("name", ["winograd_f2", "winograd_f4", "winograd_f4_on_the_fly"])
@pytest.mark.parametrize("kernel, stride", [((3, 3), (2, 2)), ((7, 5), (2, 3)), ((3, 1), (3, 2)), ((2, 11), (1, 4))])
def test_strides(name: str, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    """Every remainder of the output by the tile; phases of one tap and of several."""
    pads = tuple((k // 2, k // 3) for k in kernel)
    for extra in range(4):
        size = (20 + 2 * extra * stride[0], 33 + extra * stride[1])
        case = Case(
            (2, 9, *size),
            (17, 9, *kernel),
            Geometry(kernel, stride, (1, 1), pads),
            layout=("NCHW", "NHWC")[extra % 2],
            epilogue={"bias": True},
            seed=extra,
        )
        if applies(name, case.problem):
            check(case, name, threads=1 + extra % 2)


FUSED = [target for target in TARGETS.values() if target.fma]


@pytest.mark.parametrize("target", FUSED, ids=lambda target: target.name)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_products_run_in_registers(layout: str, target: object) -> None:
    """The matrix products' inner loops are those of the core: whole tiles of every height, nothing spilled."""
    from test_assembly import lowered

    (spec,) = (s for phase, s in lowered(typical(64, 64, layout), "winograd_f4", target) if phase == "winograd")
    most = most_rows(spec.target, 2)
    loops = {count_fused(loop): loop for loop in multiplying(spec)}
    for rows in range(1, most + 1):
        assert rows * 2 * 4 in loops, (rows, sorted(loops))
    assert not spills(loops[most * 2 * 4])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["winograd_f2", "winograd_f4"])
@pytest.mark.parametrize("size", [16, 14, 13])
def test_transforms_stay_in_registers(size: int, name: str, dtype: str) -> None:
    """With 32 registers and adjacent channels no vector of windows or outputs goes to the stack."""
    from test_assembly import lowered

    case = Case((1, 64, size, size), (64, 64, 3, 3), WINDOW, dtype=dtype, layout="NHWC", epilogue={"bias": True})
    problem = case.problem
    (spec,) = (s for phase, s in lowered(problem, name, TARGETS["avx512"]) if phase == "winograd")
    instructions, _ = parse(assembly(spec))
    assert not [i for i in instructions if i.vector_stack]


@pytest.mark.parametrize(("m", "r"), TRANSFORMS)
def test_parts_share_no_step(m: int, r: int) -> None:
    """Every output is in one part, and parts that are large enough for it hold all outputs that a step serves."""
    transform = CookToom.of(m, r)
    for matrix in (transform.inputs(m), transform.results(m)):
        program = linear(matrix)
        outputs = list(range(len(program.outputs)))
        assert [sorted(part) for part in program.parts(len(outputs))] == [outputs]
        for most in (1, 2, 3):
            parts = program.parts(most)
            assert sorted(output for part in parts for output in part) == outputs
            used = [set().union(*(program.taken(output) for output in part)) for part in parts]
            assert sum(map(len, used)) == len(set().union(*used))


def test_parts_of_f4() -> None:
    """The parts that 32 registers hold: three of six columns of points, two of four rows of outputs."""
    transform = CookToom.of(4, 3)
    assert [len(part) for part in linear(transform.inputs(4)).parts(3)] == [3, 3]
    assert [sorted(part) for part in linear(transform.results(4)).parts(3)] == [[0, 2], [1, 3]]
