"""FFT: programs are the transforms, windows cover every output once, every size and axis works, bounds hold."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from assembly import count_fused, spills
from definitions_fft import Array, fft_tiles, fft_whole, gauss, packed
from guard import GuardedAllocator
from leanconv import oracle
from leanconv.algorithms import REGISTRY
from leanconv.algorithms.fft import Fft
from leanconv.algorithms.fft_windows import FOLDS, LONGEST, SIZES, extent, windows_along
from leanconv.codegen import jit
from leanconv.codegen.targets import TARGETS, Target
from leanconv.errors import NotApplicableError
from leanconv.kernels.fft_grid import Grid, Window
from leanconv.kernels.fft_program import forward, inverse, reals, root
from leanconv.kernels.linear import Linear
from leanconv.kernels.winograd_products import most_rows
from strategies import Case, Geometry, check_untouched, convolve
from test_algorithms import ENGINE, run_every_way
from test_assembly import lowered, multiplying, typical

DENSE = ["fft", "fft_whole"]
NAMES = [algorithm.name for algorithm in REGISTRY if isinstance(algorithm, Fft)]
EVERY_SIZE = [n for n in range(2, 65) if n in SIZES or math.gcd(n, 30**6) == n]


def square(kernel: int, pad: int | None = None, dims: int = 2) -> Geometry:
    low = kernel // 2 if pad is None else pad
    return Geometry((kernel,) * dims, (1,) * dims, (1,) * dims, ((low, low),) * dims)


def evaluate(program: Linear, values: Array) -> Array:
    known = list(values)
    for step in program.steps:
        a, b = known[step.a], known[step.b]
        known.append({"add": a + b, "sub": a - b, "mul": step.factor * a, "fma": step.factor * a + b}[step.kind])
    return np.array([known[i] for i in program.outputs])


def parts(line: Array) -> Array:
    return np.stack([line.real, line.imag], axis=-1).ravel()


# -- programs ----------------------------------------------------------------------------------------------------


def test_roots_of_one() -> None:
    """Right to the last digits, exact on the axes and diagonals, and the same numbers in every octant."""
    for n in (1, 2, 3, 8, 20, 24, 72, 100):
        values = [root(n, k) for k in range(2 * n)]
        np.testing.assert_allclose(values[:n], np.exp(-2j * np.pi * np.arange(n) / n), rtol=0, atol=2e-15)
        assert values[:n] == values[n:]
        assert all(root(n, k) == root(n, n - k).conjugate() for k in range(1, n))
    assert [root(4, k) for k in range(4)] == [1, -1j, -1, 1j]
    assert root(8, 1).real == -root(8, 1).imag == root(8, 7).real


@pytest.mark.parametrize("n", EVERY_SIZE)
def test_programs_are_the_transforms(n: int) -> None:
    rng = np.random.default_rng(n)
    x, z = rng.standard_normal(n), rng.standard_normal(n) + 1j * rng.standard_normal(n)
    every = tuple(range(n))
    spectrum = evaluate(forward(n, every, real=True), x)
    np.testing.assert_allclose(spectrum, packed(x), atol=1e-13 * n)
    np.testing.assert_allclose(evaluate(inverse(n, n, real=True), spectrum), n * x, atol=1e-13 * n * n)
    bins = evaluate(forward(n, every, real=False), parts(z))
    np.testing.assert_allclose(bins, parts(np.fft.fft(z)), atol=1e-13 * n)
    np.testing.assert_allclose(evaluate(inverse(n, n, real=False), bins), n * parts(z), atol=1e-13 * n * n)


@settings(ENGINE, max_examples=60, deadline=None)
@given(st.sampled_from([n for n in EVERY_SIZE if n < 41]), st.booleans(), st.data())
def test_what_is_zero_or_not_wanted_is_left_out(n: int, real: bool, data: st.DataObject) -> None:
    """Any places given and any number of results: the same numbers, by no more steps."""
    given_ = tuple(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    wanted = data.draw(st.integers(1, n))
    rng = np.random.default_rng(n)
    line = np.zeros(n, float if real else complex)
    line[list(given_)] = rng.standard_normal(len(given_)) + (0 if real else 1j) * rng.standard_normal(len(given_))
    values = line[list(given_)] if real else parts(line[list(given_)])
    expected = packed(line) if real else parts(np.fft.fft(line))
    program, whole = forward(n, given_, real=real), forward(n, tuple(range(n)), real=real)
    np.testing.assert_allclose(evaluate(program, values), expected, atol=1e-12)
    assert len(program.steps) <= len(whole.steps) + len(expected)  # a copy of an input is a step
    back = inverse(n, wanted, real=real)
    results = line[:wanted] if real else parts(line[:wanted])
    np.testing.assert_allclose(evaluate(back, expected), n * results, atol=1e-11)
    assert len(back.steps) <= len(inverse(n, n, real=real).steps)


def test_twiddles_cost_nothing() -> None:
    """Complex transforms of 8, 16 and 32 in 52, 144 and 376 instructions, real ones in fewer than half."""
    every = {n: tuple(range(n)) for n in (8, 16, 32)}
    assert [len(forward(n, every[n], real=False).steps) for n in every] == [52, 144, 376]
    assert [len(forward(n, every[n], real=True).steps) for n in every] == [22, 62, 166]
    assert not any(step.kind == "mul" for step in forward(64, tuple(range(64)), real=False).steps)


def test_gauss_multiplies_with_three() -> None:
    assert gauss(2 + 3j, 5 - 7j) == (2 + 3j) * (5 - 7j)


# -- windows -----------------------------------------------------------------------------------------------------


@settings(ENGINE, max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(2, 40), st.integers(0, 20), st.integers(0, 20), st.integers(1, 3), st.booleans())
def test_windows_hold_what_they_are_for(size: int, taps: int, low: int, high: int, step: int, whole: bool) -> None:
    geometry = Geometry((taps,), (1,), (step,), ((low, high),))
    if size + low + high < (taps - 1) * step + 1:
        return
    problem = Case((1, 1, size), (1, 1, taps), geometry).problem
    out = problem.out_size[0]
    for window in windows_along(problem, 0, whole=whole, longest=LONGEST):
        assert window.size in FOLDS or window.size in SIZES
        assert 1 <= window.outputs <= min(-(-out // step), window.size)
        assert len(set(window.tap_places)) == taps and window.filled <= window.size
        if whole:
            assert window.outputs == -(-out // step)
        cyclic = np.zeros(window.size)
        cyclic[: window.filled] = np.random.default_rng(0).standard_normal(window.filled)
        got = [sum(cyclic[(i + at) % window.size] for at in window.tap_places) for i in range(window.outputs)]
        behind = np.concatenate([np.zeros(window.shift), cyclic[: window.filled], np.zeros(window.size + taps)])
        want = [behind[i : i + taps].sum() for i in range(window.outputs)]
        if window.shift or window.filled == window.outputs + taps - 1:
            np.testing.assert_allclose(got, want, atol=1e-12)
        assert extent(problem, Grid((window,))).tiles * window.outputs >= out


@pytest.mark.parametrize("sizes", [(8,), (16, 12), (1, 20), (12, 1), (8, 6, 4), (9, 8), (27, 50)])
def test_bins_are_numbered_once(sizes: tuple[int, ...]) -> None:
    """The lines of the last pass hold every bin: 3/2 of the places, less what real bins save."""
    grid = Grid(tuple(Window(n, n, 1, n, 0) for n in sizes))
    places, real = math.prod(sizes), math.prod(reals(n) for n in sizes if n > 1)
    assert grid.points(False) == places
    assert grid.points(True) == real + 3 * (places - real) // 2
    for three in (False, True):
        at = 0
        for region in grid.last_regions(three):
            assert region.first == at
            at += region.points * math.prod(count for _, _, count, _ in region.loops)
        assert at == grid.points(three)
    problem = Case(
        (1, 1, *(n + 1 for n in sizes)),
        (1, 1, *sizes),
        Geometry(sizes, *((1,) * len(sizes),) * 2, ((0, 0),) * len(sizes)),
    ).problem
    assert extent(problem, grid)[:3] == (
        places,
        pytest.approx(sum(n for n in sizes if n > 1) / len(grid.active)),
        grid.points(True),
    )


# -- the algorithms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(3,), (5, 4), (1, 7), (2, 3, 2)])
def test_the_definition_is_convolution(kernel: tuple[int, ...]) -> None:
    geometry = Geometry(kernel, (1,) * len(kernel), (1,) * len(kernel), ((1, 2),) * len(kernel))
    case = Case((2, 3, *(9, 7, 8)[: len(kernel)]), (4, 3, *kernel), geometry)
    want = oracle.reference(case.problem, **case.values)
    tiles = fft_tiles(case.problem, case.values["x"], case.values["w"], tuple(k + 3 for k in kernel))
    np.testing.assert_allclose(tiles, want, rtol=1e-10, atol=1e-10)
    sizes = tuple(n + 3 for n in case.problem.in_size)
    whole = fft_whole(case.problem, case.values["x"], case.values["w"], sizes)
    np.testing.assert_allclose(whole, want, rtol=1e-10, atol=1e-10)


def check(case: Case, name: str, **more: object) -> None:
    out = case.guarded_out(viewed=False)
    with GuardedAllocator(case.flush):
        convolve(case, case.guarded_inputs(viewed=False), algorithm=name, out=out, **more)
    case.check(out, name)
    check_untouched(out)


def alike(case: Case, name: str) -> Case:
    """The case, made depthwise for the algorithm that wants that."""
    if name != "fft_depthwise":
        return case
    channels = case.x_shape[1]
    return replace(case, w_shape=(channels, 1, *case.w_shape[2:]), groups=channels)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", NAMES)
def test_every_size(name: str, layout: str) -> None:
    """Images smaller than the kernel, of one tile, and of several that end anywhere."""
    for high, wide in ((1, 9), (4, 4), (7, 40), (23, 18), (12, 67)):
        case = Case((1, 9, high, wide), (17, 9, 5, 5), square(5), layout=layout, seed=high, epilogue={"bias": True})
        check(alike(case, name), name, threads=1)


KERNELS = [
    ((7,), ((3, 3),), "zeros", 1),
    ((40,), ((39, 0),), "zeros", 1),
    ((1, 5), ((1, 0), (2, 2)), "zeros", 1),
    ((5, 1), ((2, 2), (0, 1)), "zeros", 1),
    ((11, 6), ((5, 0), (9, 9)), "zeros", 1),
    ((4, 3), ((2, 4), (3, 1)), "reflect", 2),
    ((5, 3), ((2, 2), (1, 1)), "replicate", 1),
    ((3, 5), ((1, 1), (4, 3)), "circular", 3),
    ((3, 3, 4), ((1, 1), (0, 2), (3, 0)), "zeros", 1),
    ((1, 3, 3), ((0, 0), (1, 1), (1, 1)), "reflect", 1),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kernel", "pads", "mode", "step"), KERNELS, ids=range(len(KERNELS)))
def test_other_kernels(
    name: str, kernel: tuple[int, ...], pads: tuple[tuple[int, int], ...], mode: str, step: int
) -> None:
    dims = len(kernel)
    geometry = Geometry(kernel, (1,) * dims, tuple(step if k > 1 else 1 for k in kernel), pads, mode)
    size = {1: (90,), 2: (19, 23), 3: (7, 8, 9)}[dims]
    for i, layout in enumerate(("NCHW", "NHWC")):
        case = Case((2, 5, *size), (9, 5, *kernel), geometry, layout=layout, epilogue={"residual": True}, seed=i)
        check(alike(case, name), name, threads=1 + i)


BLOCKS = [
    Case((2, 24, 33, 31), (48, 24, 7, 7), square(7), layout="NHWC", views=("gaps", "permuted", "gaps", "gaps")),
    Case((3, 70, 9, 8), (33, 70, 3, 3), square(3), epilogue={"residual": True, "bias": True}, threads=2),
    Case((2, 12, 7, 50), (36, 6, 5, 5), square(5), groups=2, dtype="float64", layout="NHWC", epilogue={"bias": True}),
    Case((2, 21, 33, 40), (21, 1, 17, 9), Geometry((17, 9), (1, 1), (1, 1), ((8, 8), (4, 4))), groups=21, threads=2),
]


@pytest.mark.parametrize("case", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.parametrize("name", NAMES)
def test_several_blocks_and_panels(name: str, case: Case) -> None:
    if name == "fft_depthwise" and case.groups != case.x_shape[1]:
        case = alike(case, name)
    with GuardedAllocator():
        run_every_way(name, case)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_kernels_near_the_size_of_the_image(layout: str) -> None:
    for name in NAMES:
        case = Case((1, 8, 24, 20), (8, 8, 23, 19), Geometry((23, 19), (1, 1), (1, 1), ((11, 11), (9, 9))))
        check(alike(replace(case, layout=layout), name), name, threads=2)
        inside = Case((1, 8, 24, 20), (8, 8, 24, 19), square(1, 0), layout=layout)
        inside = replace(inside, geometry=Geometry((24, 19), (1, 1), (1, 1), ((0, 0), (0, 0))))
        check(alike(inside, name), name, threads=1)


LONG = [
    Case((1, 9, 700), (9, 9, 80), Geometry((80,), (1,), (1,), ((40, 39),))),
    Case((2, 3, 500), (9, 3, 200), Geometry((200,), (1,), (2,), ((70, 9),), "reflect"), threads=2),
    Case((1, 8, 4, 333), (8, 8, 1, 150), Geometry((1, 150), (1, 1), (1, 1), ((1, 0), (149, 0))), dtype="float64"),
    Case((1, 5, 150, 3), (8, 5, 140, 1), Geometry((140, 1), (1, 1), (1, 1), ((0, 0), (0, 1)))),
]


@pytest.mark.parametrize("case", LONG, ids=range(len(LONG)))
@pytest.mark.parametrize("name", NAMES)
def test_long_kernels_of_one_axis(name: str, case: Case) -> None:
    """Windows of hundreds of places, folded to two axes."""
    for layout in ("NCHW", "NHWC"):
        check(alike(replace(case, layout=layout, epilogue={"bias": True}), name), name, threads=case.threads)


def test_folds_are_permutations() -> None:
    for n, (rows, columns) in FOLDS.items():
        assert rows * columns == n and math.gcd(rows, columns) == 1 and columns % 2 == 0
        if n < 500:
            assert len({(p % rows, p % columns) for p in range(n)}) == n


@pytest.mark.parametrize("name", NAMES)
def test_weights_may_be_bound_that_lie_otherwise(name: str) -> None:
    case = alike(Case((1, 9, 13, 17), (9, 9, 5, 4), Geometry((5, 4), (1, 1), (1, 1), ((2, 2), (2, 1)))), name)
    plan = case.plan(name)
    turned = np.ascontiguousarray(case.values["w"].transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    got = [plan.bind(w)(case.values["x"]) for w in (case.values["w"], turned)]
    case.check(got[1], name)
    assert got[0].tobytes() == got[1].tobytes()


def test_bits_do_not_depend_on_blocks() -> None:
    case = Case((2, 24, 27, 22), (40, 24, 5, 5), square(5), layout="NHWC", epilogue={"bias": True})
    results = []
    for threads, parameters in ((1, None), (4, None), (1, {"tiles": 1}), (2, {"tiles": 3}), (1, {"tiles": 1000})):
        plan = leanconv.plan(**case.plan_arguments, algorithm="fft", threads=threads, parameters=parameters)
        results.append(plan.bind(case.values["w"], case.values["bias"])(case.values["x"]).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    ("images", "channels", "size", "threads"), [(8, (32, 96), 28, 2), (1, (48, 128), 7, 2), (1, (16, 160), 12, 3)]
)
def test_few_windows_are_enough_for_all_threads(
    images: int, channels: tuple[int, int], size: int, threads: int
) -> None:
    """A block of windows for each thread, or else a part of the panels, of the same bits."""
    case = Case((images, channels[0], size, size), (channels[1], channels[0], 5, 5), square(5), layout="NHWC")
    results = []
    for count in (1, threads):
        plan = leanconv.plan(**case.plan_arguments, algorithm="fft", threads=count)
        assert plan.parameters["chunks"] >= count
        results.append(plan.bind(case.values["w"])(case.values["x"]).tobytes())
    assert results[0] == results[1]


SHARED = [
    Case((1, 20, 12, 13), (21, 20, 5, 5), square(5), layout="NHWC", epilogue={"bias": True}),
    Case((1, 9, 21, 19), (70, 9, 7, 4), Geometry((7, 4), (1, 1), (1, 1), ((3, 0), (4, 1)), "reflect")),
    Case((2, 24, 9, 8), (30, 8, 3, 3), square(3), groups=3, dtype="float64", epilogue={"residual": True}),
]


@pytest.mark.parametrize("case", SHARED, ids=range(len(SHARED)))
@pytest.mark.parametrize("name", DENSE)
def test_threads_share_windows_and_products(name: str, case: Case) -> None:
    """Where panels are too few for them; of the same bits, and otherwise where memory does not allow it."""
    plans = [case.plan(name, threads) for threads in (1, 2, 5)]
    phases = [[phase.name for phase in plan._lowering.phases] for plan in plans]
    assert phases[0] == ["fft"] and phases[2] == ["windows", "multiply", "outputs"]
    tight = case.plan(name, threads=5, memory_limit=plans[2].extra_bytes - 1)
    assert tight.extra_bytes < plans[2].extra_bytes
    arrays, results = [case.values[n] for n in ("w", "bias") if n in case.values], set()
    images = {n: case.values[n] for n in ("x", "residual") if n in case.values}
    for plan in (*plans, tight):
        bound = plan.bind(*arrays)
        with GuardedAllocator(case.flush) as guard:
            result = bound(**images)
        assert sum(guard.sizes) == plan.workspace_bytes
        case.check(result, name)
        results.add(result.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("name", DENSE)
def test_memory(name: str) -> None:
    """The workspace is what the formula says, and shrinks to a limit."""
    case = Case((4, 32, 30, 30), (64, 32, 7, 7), square(7), layout="NHWC")
    plan = case.plan(name)
    points, tiles = int(plan.parameters["points"]), int(plan.parameters["tiles"])
    lanes = jit.host_target().lanes("float32")
    formula = points * tiles * (32 + 2 * lanes) * 4
    assert formula <= plan.workspace_bytes <= 1.02 * formula + 64 * 3 * points + 130 * 130 * lanes * 4
    assert plan.packed_weight_bytes == pytest.approx(points * 32 * 64 * 4, rel=0.05)
    limit = plan.extra_bytes - plan.workspace_bytes // 3
    tight = case.plan(name, memory_limit=limit)
    assert tight.extra_bytes <= limit and int(tight.parameters["tiles"]) < tiles
    bound = tight.bind(case.values["w"])
    with GuardedAllocator() as guard:
        case.check(bound(case.values["x"]), name)
    assert sum(guard.sizes) == tight.workspace_bytes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "kernel"), [(512, 12, 3), (64, 30, 15)])
def test_error_bounds(name: str, channels: int, size: int, kernel: int) -> None:
    """Within the bound, that of a plain sum: which a plain sum of so many terms needs, and this does not."""
    case = alike(Case((1, channels, size, size), (8, channels, kernel, kernel), square(kernel), seed=1), name)
    info = next(i for i in leanconv.algorithms(**case.plan_arguments) if i.name == name)
    want = oracle.reference(case.problem, **case.values)
    got = convolve(case, case.values, algorithm=name)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert info.error_bound is not None and info.error_bound / 30 < error <= info.error_bound / 2
    double = replace(case, dtype="float64")
    double.check(convolve(double, double.values, algorithm=name), name)


def test_refusals() -> None:
    def reason(name: str, kernel: tuple[int, ...], stride: int = 1, size: int = 30, groups: int = 1) -> str:
        geometry = Geometry(kernel, (stride,) * len(kernel), (1,) * len(kernel), ((0, 0),) * len(kernel))
        case = Case((1, 4, *(size,) * len(kernel)), (8, 4 // groups, *kernel), geometry, groups=groups)
        found = next(entry for entry in REGISTRY if entry.name == name).refusal(case.problem)
        if found is not None:
            with pytest.raises(NotApplicableError, match=name):
                case.plan(name)
        return str(found)

    assert "one tap" in reason("fft", (1, 1)) and "stride is 2" in reason("fft", (5, 5), 2)
    assert "90 taps" in reason("fft", (90, 2), size=300) and reason("fft", (60, 2), size=300) == "None"
    assert "17000 taps" in reason("fft", (17000,), size=20000) and reason("fft", (9000,), size=20000) == "None"
    assert "all 291 outputs" in reason("fft_whole", (10, 10), size=300)
    assert "places" in reason("fft_whole", (40, 40, 3), size=60)
    assert "4 channels in and 8 out" in reason("fft_depthwise", (5, 5))
    assert "1 channels in and 2 out" in reason("fft_depthwise", (5, 5), groups=4)


def test_large_kernels_run_by_fft_unasked() -> None:
    case = Case((1, 64, 56, 56), (64, 64, 9, 9), square(9), layout="NHWC")
    assert case.plan("auto").algorithm == "fft"
    assert "fft" not in case.plan("auto", accuracy="exact").algorithm
    assert "fft" not in case.plan("auto", deterministic=True).algorithm
    small = replace(case, w_shape=(64, 64, 1, 1), geometry=square(1))
    assert "fft" not in small.plan("auto").algorithm
    assert (
        alike(replace(case, w_shape=(64, 64, 31, 31), geometry=square(31)), "fft_depthwise").plan("auto").algorithm
        == "fft_depthwise"
    )


FUSED = [target for target in TARGETS.values() if target.fma]


@pytest.mark.parametrize("target", FUSED, ids=lambda target: target.name)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_products_run_in_registers(layout: str, target: Target) -> None:
    """The matrix products' inner loops are those of the core: whole tiles of every height, nothing spilled."""
    most = most_rows(target, 2)
    for threads, name in ((1, "fft"), (5, "multiply")):
        (spec,) = (s for phase, s in lowered(typical(64, 64, layout, 7), "fft", target, threads) if phase == name)
        loops = {count_fused(loop): loop for loop in multiplying(spec)}
        assert not spills(loops[most * 2 * 4])
        for rows in range(1, most + 1):
            assert rows * 2 * 4 in loops, (rows, sorted(loops))
