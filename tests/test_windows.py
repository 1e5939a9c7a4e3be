"""Window tensors of MEC and im2win: those of the papers, number for number and byte for byte."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import definitions_windows as definitions
import leanconv
from guard import GuardedAllocator, guarded, guarded_copy
from kernels import Compiled
from leanconv import oracle
from leanconv.bench.catalogue import resolve
from leanconv.codegen.ir import SCALARS, vector
from leanconv.codegen.jit import host_target
from leanconv.host import this_host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.image import Rows
from leanconv.kernels.runs import Run, gathered, interleaved, transposed
from leanconv.kernels.window_phases import WindowSpec
from leanconv.memory import ALIGNMENT
from leanconv.program import Compiled as Program_
from leanconv.program import Job, Program
from leanconv.threads import pool
from strategies import ALGORITHMS, POINTWISE, WINDOWS, Case, Geometry, applies, convolve

DEEP = Geometry((3, 2, 2), (2, 1, 1), (1, 2, 3), ((1, 1), (1, 2), (0, 3)))
WIDE = Geometry((3, 5), (1, 3), (2, 1), ((0, 0), (4, 2)))
GEOMETRIES = [*POINTWISE, *WINDOWS, DEEP, WIDE]
EACH_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES, ids=range(len(GEOMETRIES)))
EACH_LAYOUT = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
WHOLE = ["mec", "mec_a", "mec_rows", "im2win"]


def case_of(geometry: Geometry, layout: str, channels: int = 6, more: int = 9, batch: int = 2) -> Case:
    size = tuple(n + more for n in geometry.smallest)
    return Case((batch, channels, *size), (4, channels // 2, *geometry.kernel), geometry, groups=2, layout=layout)


def canonical(case: Case) -> Any:
    return case.values["x"] if case.layout == "NCHW" else np.moveaxis(case.values["x"], -1, 1)


def staged(case: Case, name: str, threads: int = 2) -> list[Any]:
    """What each staging phase of an algorithm writes into its buffer, poisoned before."""
    p = case.plan(name, threads).problem
    low = ALGORITHMS[name].lower(p, this_host(), threads, None, {})
    (buffer,) = low.workspace
    x = guarded_copy(case.values["x"])
    result = []
    for phase in low.phases:
        if phase.name == "stage":
            tensor = guarded((buffer.nbytes // p.itemsize,), p.dtype)
            tensor[...] = np.nan
            job = Job(Program_(Program((phase,), (), threads, {buffer.name: tensor.ctypes.data})))
            job.table[0] = x.ctypes.data
            pool().run(job.address, threads)
            result.append(tensor)
    return result


# -- definitions ---------------------------------------------------------------------------------------------------


@EACH_GEOMETRY
def test_the_definitions_are_convolutions(geometry: Geometry) -> None:
    case = case_of(geometry, "NCHW", more=2, batch=3)
    p = case.problem
    x, w = case.values["x"].astype(np.float64), case.values["w"].astype(np.float64)
    wanted = oracle.reference(p, x, w)
    for g in range(2):
        images, filters = x[:, 3 * g : 3 * g + 3], w[2 * g : 2 * g + 2]
        for image, right in zip(images, wanted[:, 2 * g : 2 * g + 2], strict=True):
            for definition in (definitions.mec, definitions.im2win):
                np.testing.assert_allclose(definition(p, image, filters), right, rtol=0, atol=1e-12)
        if p.ndim == 2:
            together = definitions.mec_solution_a(p, images, filters)
            np.testing.assert_allclose(together, wanted[:, 2 * g : 2 * g + 2], rtol=0, atol=1e-12)


# -- the tensors ---------------------------------------------------------------------------------------------------


@EACH_GEOMETRY
@EACH_LAYOUT
@pytest.mark.parametrize("name", WHOLE)
def test_the_tensor_is_that_of_the_paper(name: str, layout: str, geometry: Geometry) -> None:
    case = case_of(geometry, layout)
    if not applies(name, case.problem):
        assert layout == "NCHW" and name in ("mec_a", "mec_rows")
        return
    p, x = case.problem, canonical(case)
    slide = 0 if name in ("mec", "mec_a") else p.ndim - 1
    wanted = []
    for image in x:
        groups = [definitions.window_tensor(p, group, slide) for group in np.split(image, 2)]
        if name == "im2win" and layout == "NCHW":
            groups = [definitions.window_tensor_nchw(p, group) for group in np.split(image, 2)]
        wanted.append(np.stack(groups))
    got = staged(case, name)
    if name in ("mec_a", "mec_rows"):  # [g][N]... in place of [N][g]...
        assert len(got) == 1
        np.testing.assert_array_equal(got[0], np.stack(wanted, axis=1).reshape(-1))
    else:
        assert len(got) == len(x)
        np.testing.assert_array_equal(np.stack(got), np.stack(wanted).reshape(len(x), -1))


@EACH_LAYOUT
@pytest.mark.parametrize("channels", [1, 3, 8, 13, 31, 32, 77, 96, 130])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_way_to_copy_channels(channels: int, layout: str, dtype: str) -> None:
    """Runs without a loop, with one, with a tail; blocks that are transposed, from pixels side by side and apart."""
    for stride in (1, 2, 3, 5):
        geometry = Geometry((3, 2), (stride, stride), (1, 1), ((1, 1), (1, 0)))
        case = Case((1, channels, 9, 29), (2, channels, 3, 2), geometry, layout=layout, dtype=dtype)
        p, x = case.problem, canonical(case)[0]
        for name, slide in (("mec", 0), ("im2win", 1)):
            wanted = definitions.window_tensor(p, x, slide)
            if name == "im2win" and layout == "NCHW":
                wanted = definitions.window_tensor_nchw(p, x)
            np.testing.assert_array_equal(staged(case, name)[0], wanted.reshape(-1))


# -- bytes ---------------------------------------------------------------------------------------------------------

FORMULAS = {
    "mec": lambda n, c, h, w, p, q, r, s: q * h * s * c,
    "mec_a": lambda n, c, h, w, p, q, r, s: n * q * h * s * c,
    "mec_rows": lambda n, c, h, w, p, q, r, s: n * p * w * r * c,
    "im2win": lambda n, c, h, w, p, q, r, s: p * w * r * c,
    "im2row": lambda n, c, h, w, p, q, r, s: p * q * r * s * c,
}


def elements(name: str, layer: Any, layout: str = "NHWC") -> int:
    """The paper's formula; `h` and `w` are those of the padded image."""
    p = layer.problem(layout)
    h, w = (n + low + high for n, low, high in zip(p.in_size, p.pad_low, p.pad_high, strict=True))
    return FORMULAS[name](p.batch, p.in_channels, h, w, *p.out_size, *p.kernel)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("batch", [1, 3])
def test_workspace_is_the_papers_formula(name: str, batch: int) -> None:
    """MEC's twelve layers and those of a network with padding, strides and 1x1 kernels."""
    for layer in resolve(["mec", "resnet18", "squeezenet1.1"]):
        layer = replace(layer, batch=batch)
        for layout in ("NHWC", "NCHW"):
            x, w = layer.shapes(layout)
            options = layer.options(layout)
            try:
                plan = leanconv.plan(x, w, algorithm=name, threads=2, **options)
            except leanconv.NotApplicableError:
                assert layout == "NCHW" and (name == "mec_rows" or (name == "mec_a" and batch > 1))
                continue
            (buffer,) = plan._lowering.workspace
            assert buffer.nbytes == 4 * elements(name, layer, layout), f"{name} {layer.name} {layout}"
            assert plan.workspace_bytes == -(-buffer.nbytes // ALIGNMENT) * ALIGNMENT


def test_how_much_less_memory_than_im2row() -> None:
    """The sums over MEC's twelve layers: 3.26 times less, as its paper says, and im2win the same but for 1 %."""
    totals = {name: sum(elements(name, layer) for layer in resolve(["mec"])) for name in FORMULAS}
    assert round(totals["im2row"] / totals["mec"], 2) == 3.26
    assert totals["im2win"] == totals["mec_rows"]
    assert abs(totals["im2win"] / totals["mec"] - 1) < 0.01


# -- bands ---------------------------------------------------------------------------------------------------------


@EACH_GEOMETRY
@EACH_LAYOUT
def test_bands_of_every_height(geometry: Geometry, layout: str) -> None:
    """From a few pixels to the whole image: the bits never change, and nothing beside the band is touched."""
    case = case_of(geometry, layout, more=11, batch=1)
    rows = math.prod(case.problem.out_size[:-1])
    first = convolve(case, case.values, algorithm="im2win_band", threads=1)
    case.check(first)
    inputs = case.guarded_inputs(viewed=False)
    for band in sorted({1, 2, 3, rows}):
        plan = case.plan("im2win_band", 2, parameters={"band": band})
        with GuardedAllocator():
            assert plan.bind(inputs["w"])(inputs["x"]).tobytes() == first.tobytes()
    for limit in (1 << 10, 3 << 10, 10 << 10):
        try:
            plan = case.plan("im2win_band", 1, memory_limit=limit)
        except leanconv.errors.MemoryLimitError as error:
            assert error.needed > limit
            continue
        with GuardedAllocator():
            assert plan.bind(inputs["w"])(inputs["x"]).tobytes() == first.tobytes()


@pytest.mark.parametrize("threads", [1, 4])
def test_bands_use_what_they_are_given(threads: int) -> None:
    """Less than 256 KiB a thread, and most of a lower ceiling."""
    for layer in resolve(["mec", "resnet18"]):
        x, w = layer.shapes("NHWC")
        options = {**layer.options("NHWC"), "algorithm": "im2win_band", "threads": threads}
        plan = leanconv.plan(x, w, **options)
        assert plan.workspace_bytes < threads * (256 << 10)
        whole = 4 * elements("im2win", layer)
        for limit in (32 << 10, 64 << 10, 128 << 10):
            extra = plan.extra_bytes - plan.workspace_bytes  # packed weights filled up to whole vectors
            try:
                low = leanconv.plan(x, w, memory_limit=extra + threads * limit, **options)
            except leanconv.errors.MemoryLimitError:
                pixel = layer.in_channels * math.prod(layer.kernel) * 4  # what a tile of one pixel reads
                assert pixel > limit
                continue
            assert low.workspace_bytes <= threads * limit
            if threads == 1:  # more threads want bands enough for all of them, however low
                assert low.workspace_bytes >= min(limit // 2, plan.workspace_bytes, whole)


def test_solutions_of_mec_give_the_same_bits() -> None:
    case = Case((3, 24, 11, 13), (40, 24, 3, 3), WINDOWS[4], layout="NHWC", epilogue={"bias": True})
    results = [convolve(case, case.values, algorithm=name, threads=2).tobytes() for name in ("mec", "mec_a")]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("name", "layout", "batch", "reason"),
    [
        ("mec_a", "NCHW", 2, "the output's pixels are not evenly spaced from one of the 2 images to the next"),
        ("mec_a", "NCHW", 1, None),
        ("mec_rows", "NCHW", 1, "a column of the output has neither its channels nor its pixels adjacent in memory"),
        ("mec_rows", "NHWC", 2, None),
    ],
)
def test_refusals(name: str, layout: str, batch: int, reason: str | None) -> None:
    case = Case((batch, 4, 9, 9), (8, 4, 3, 3), WINDOWS[4], layout=layout)
    assert {i.name: i for i in leanconv.algorithms(**case.plan_arguments)}[name].reason == reason


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["mec", "im2win"])
@pytest.mark.parametrize("geometry", [*WINDOWS, DEEP], ids=range(len(WINDOWS) + 1))
def test_tensors_larger_than_the_caches(
    name: str, geometry: Geometry, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored past them, read line by line: the same bits, residual and images in the right places."""
    size = tuple(n + (44 if n else 0) for n in geometry.smallest)
    if len(size) == 3:
        size = (5, 40, 44)
    channels = 32
    epilogue = {"bias": True, "residual": True, "activation": "relu"}
    shapes = (2, channels, *size), (40, channels, *geometry.kernel)
    case = Case(*shapes, geometry, layout="NHWC", epilogue=epilogue)
    here = this_host()
    plain = convolve(case, case.values, algorithm=name, threads=threads)
    monkeypatch.setattr(sys.modules["leanconv.plan"], "this_host", lambda: replace(here, l2=1 << 12, l3=1 << 14))
    plan = leanconv.Plan(case.problem, ALGORITHMS[name], threads)
    core, stage = plan.lowering.phases[1].spec, plan.lowering.phases[0].spec
    lines = len(size) > 1 and here.target.vector_bytes == 64
    lines = lines and case.problem.out_size[0 if name == "mec" else -1] >= 3 * 12
    if lines:
        assert isinstance(core, DenseSpec) and isinstance(core.source, Rows) and core.source.overlap
        assert isinstance(stage, WindowSpec) and stage.windows.past
    bound = plan.bind(case.values["w"], case.values["bias"])
    with GuardedAllocator(case.flush):
        inputs = case.guarded_inputs(viewed=False)
        out = case.guarded_out(viewed=False)
        bound(inputs["x"], out=out, residual=inputs["residual"])
    case.check(out, name)
    np.testing.assert_array_equal(out, plain)


# -- innermost loops -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 5, 7, 8, 11, 16, 31, 64, 65, 100, 128, 131])
def test_runs_and_gathers(count: int, dtype: str) -> None:
    lanes = host_target().lanes(dtype)
    kind, item = vector(SCALARS[dtype], lanes), np.dtype(dtype).itemsize
    source = guarded_copy(np.arange(count * 3, dtype=dtype))
    known = Compiled("pp", lambda fn, a, b: Run(kind, count, count % lanes).emit(fn, a, b))
    clear = Compiled("p", lambda fn, b: Run(kind, count, count % lanes).emit(fn, None, b))
    gather = Compiled("ppi", lambda fn, a, b, n: gathered(fn, kind, a, b, 3 * item, (n, count % lanes)))
    target = guarded((count,), dtype)
    known(source, target)
    np.testing.assert_array_equal(target, source[:count])
    gather(source, target, count)
    np.testing.assert_array_equal(target, source[::3])
    clear(target)
    assert not target.any()
    if count >= lanes:
        read = Compiled("ppi", lambda fn, a, b, n: Run(kind, n, count % lanes).emit(fn, a, b))
        read(source, target, count)
        np.testing.assert_array_equal(target, source[:count])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3, 8, 21])
def test_blocks_are_transposed(channels: int, stride: int, dtype: str) -> None:
    lanes, item = host_target().lanes(dtype), np.dtype(dtype).itemsize
    kind, width = vector(SCALARS[dtype], lanes), (lanes - 1) * stride + 1
    source = guarded_copy(np.arange(channels * width, dtype=dtype).reshape(channels, width))
    target = guarded((lanes, channels), dtype)
    steps, sizes = (width * item, channels * item, stride), (channels, channels % lanes)
    masks = host_target().masks
    Compiled("pp", lambda fn, a, b: transposed(fn, kind, a, b, steps, sizes, masks=masks))(source, target)
    np.testing.assert_array_equal(target, source[:, ::stride].T)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 11, 16])
def test_rows_are_interleaved(rows: int) -> None:
    lanes = host_target().lanes("float32")
    source = guarded_copy(np.arange(rows * lanes, dtype=np.float32).reshape(rows, lanes))
    target = guarded((lanes, rows), "float32")
    Compiled(
        "pp",
        lambda fn, a, b: interleaved(
            fn, vector("float", lanes), [fn.gep(a, row * lanes * 4) for row in range(rows)], b
        ),
    )(source, target)
    np.testing.assert_array_equal(target, source.T)
