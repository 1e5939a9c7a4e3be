"""Winograd that asks for pixels beside its products: the same outputs, where it is done, what inner loops hold then."""

from __future__ import annotations

import pytest
from hypothesis import given

from assembly import count_fused, parse, spills
from guard import GuardedAllocator
from leanconv.algorithms import winograd_blocks
from leanconv.codegen.targets import TARGETS
from leanconv.host import Host
from leanconv.kernels.winograd import WinogradSpec
from leanconv.kernels.winograd_products import most_rows
from leanconv.program import Phase
from strategies import ALGORITHMS, Case, Geometry, applies, cases
from test_algorithms import accepted, effort, kinds, run_every_way
from test_assembly import assembly, multiplying

WINDOW = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
NAMES = ["winograd_f2", "winograd_f4", "winograd_f6"]


def lowered(case: Case, target: str = "avx512", threads: int = 1, name: str = "winograd_f4", **tunables: int) -> Phase:
    """The last phase on a machine with 1 MiB of second-level cache."""
    host = Host(TARGETS[target], 48 << 10, 1 << 20, 32 << 20)
    return ALGORITHMS[name].lower(case.problem, host, threads, None, tunables).phases[-1]


def asks(*args: object, **more: object) -> bool:
    spec = lowered(*args, **more).spec  # type: ignore[arg-type]
    assert isinstance(spec, WinogradSpec)
    return spec.ahead > 0


def square(channels: int, size: int, batch: int = 1, **more: object) -> Case:
    return Case((batch, channels, size, size), (64, channels // int(more.get("groups", 1)), 3, 3), WINDOW, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_random_convolutions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small image and outputs are: nothing is touched that is only asked for, and bits depend on nothing."""
    monkeypatch.setattr(winograd_blocks, "_FAR", 0)

    @effort(name)
    @given(cases(geometries=accepted(name), kinds=kinds(name)))
    def check(case: Case) -> None:
        if applies(name, case.problem):
            with GuardedAllocator(case.flush):
                run_every_way(name, case)

    check()


MANY_BLOCKS = [
    Case((2, 40, 33, 61), (48, 40, 3, 3), WINDOW, layout="NHWC", epilogue={"residual": True}),
    Case((3, 32, 30, 18), (33, 32, 3, 3), WINDOW, layout="NHWC", epilogue={"bias": True}, threads=3),
    Case((1, 16, 9, 21, 26), (40, 16, 3, 3, 3), Geometry((3,) * 3, (1,) * 3, (1,) * 3, ((1, 1),) * 3), layout="NHWC"),
    Case((2, 320, 11, 40), (17, 320, 3, 3), WINDOW, layout="NHWC"),  # in sections
    Case((1, 24, 700), (24, 24, 3), Geometry((3,), (1,), (1,), ((2, 0),)), layout="NHWC", dtype="float64"),
]


@pytest.mark.parametrize("case", MANY_BLOCKS, ids=range(len(MANY_BLOCKS)))
@pytest.mark.parametrize("name", NAMES)
def test_several_blocks(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """From either end; the last block of each thread asks for its own windows."""
    if not applies(name, case.problem):
        return
    monkeypatch.setattr(winograd_blocks, "_FAR", 0)
    with GuardedAllocator():
        run_every_way(name, case)


def test_where_it_is_done() -> None:
    """Where image and outputs are four times the second level of cache, with channels last and 32 registers."""
    far = square(64, 112, layout="NHWC")
    assert asks(far) and asks(far, name="winograd_f2") and asks(square(64, 56, 8, layout="NHWC"))
    assert asks(far, threads=2) and not asks(far, threads=64)  # which share windows
    assert not asks(square(64, 56, layout="NHWC")) and not asks(square(64, 112))
    assert not any(asks(far, target) for target in ("avx2", "neon", "portable"))
    assert asks(square(512, 56, layout="NHWC")) and not asks(square(1024, 56, layout="NHWC"))  # 4 sections, and 8
    assert not asks(square(64, 112, layout="NHWC", groups=2)) and not asks(far, name="winograd_f4_on_the_fly")
    strided = Case((1, 64, 224, 224), (64, 64, 3, 3), Geometry((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))), layout="NHWC")
    assert not asks(strided)


def test_which_block_a_thread_is_thought_to_take_next() -> None:
    """Half of all threads take blocks from the front, the others from the back; parts of a block tell nothing."""
    far = square(64, 224, layout="NHWC")
    assert [lowered(far, threads=threads).fields["b_ahead"] for threads in (1, 2, 3, 8)] == [1, 1, 2, 4]
    assert lowered(square(64, 112, layout="NHWC"), threads=32, tiles=24).fields["b_ahead"] == 0


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_have_as_many_blocks(threads: int) -> None:
    """Of eleven blocks two threads would take six, and half of them wait at the end."""
    for channels, size in ((256, 56), (64, 112), (128, 57), (192, 60)):
        low = lowered(square(channels, size, layout="NHWC"), threads=threads)
        assert low.fields["b_count"] % threads == 0 or low.spec.staged  # type: ignore[attr-defined]


def test_inner_loops_ask_for_one_line_more() -> None:
    """Nothing is spilled for it; lines of outputs are asked for once a register tile."""
    near, far = (lowered(square(64, size, layout="NHWC"), tiles=24).spec for size in (56, 112))
    most = 4 * 2 * most_rows(TARGETS["avx512"], 2)
    (one,), (other,) = ([loop for loop in multiplying(spec) if count_fused(loop) == most] for spec in (near, far))
    lines = [sum(i.operation.startswith("prefetch") for i in loop) for loop in (one, other)]
    assert lines[1] == lines[0] + 1
    assert not spills(other)
    instructions, _ = parse(assembly(far))
    assert not [i for i in instructions if i.vector_stack]
    assert sum(i.operation == "prefetchw" for i in instructions) > 8 * most_rows(TARGETS["avx512"], 2)
