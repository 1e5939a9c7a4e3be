"""How layers are cut into chunks: tiles cover every block exactly, and threads get even shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanconv.algorithms.blocking import blocking, busiest, chunk_sizes, tile_heights
from leanconv.algorithms.sharing import of_rows, operations, shared
from leanconv.codegen.targets import TARGETS
from leanconv.host import Host
from leanconv.kernels.panels import Panels
from leanconv.options import make_problem

HOSTS = {name: Host(target, 32 << 10, 512 << 10, 8 << 20) for name, target in TARGETS.items()}
ZEN5 = Host(TARGETS["avx512"], 48 << 10, 1 << 20, 32 << 20)


@given(
    st.sampled_from(list(HOSTS)),
    st.integers(1, 2),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 700), st.integers(1, 200)),
    st.integers(1, 9),
)
def test_tiles_cover_every_block(
    name: str, batch: int, size: tuple[int, int], channels: tuple[int, int], threads: int
) -> None:
    problem = make_problem(2, (batch, *size, channels[0]), (*channels[::-1], 1, 1), dtype="float32", layout="NHWC")
    host, pixels = HOSTS[name], size[0] * size[1]
    panels = Panels.of(channels[1], host.target.lanes("float32"))
    most = tile_heights(pixels, host, panels)
    for rows, cut in ((most, blocking(problem, host, threads, most)), shared(problem, host, threads, most)):
        assert 1 <= cut.group <= max(1, panels.total)
        last = pixels - (cut.blocks - 1) * cut.block
        assert last > 0
        for height in rows:
            for count in {cut.block, last}:
                assert -(-count // height) * (height - 1) <= count


@pytest.mark.parametrize(("size", "inputs", "outputs"), [(14, 576, 96), (14, 384, 96), (7, 576, 160), (7, 960, 160)])
def test_two_threads_share_few_panels_evenly(size: int, inputs: int, outputs: int) -> None:
    """An odd number of panels, a chunk each, would leave one thread waiting."""
    problem = make_problem(2, (1, size, size, inputs), (outputs, inputs, 1, 1), dtype="float32", layout="NHWC")
    host = HOSTS["avx512"]
    panels = Panels.of(outputs, 16)
    rows = tile_heights(size * size, host, panels)
    assert blocking(problem, host, 1, rows).blocks == 1
    assert blocking(problem, host, 2, rows).blocks == 2
    assert shared(problem, host, 1, rows) == (rows, blocking(problem, host, 1, rows))
    lower, cut = shared(problem, host, 2, rows)
    assert (lower, cut.block) == (((11, 11), 98) if size == 14 else ((9, 9), 24))


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize(
    ("size", "inputs", "outputs"),
    [(14, 1024, 256), (28, 128, 512), (28, 192, 64), (28, 32, 192), (56, 64, 64), (56, 24, 144), (112, 32, 16)],
)
def test_threads_have_as_much_to_do(size: int, inputs: int, outputs: int, threads: int) -> None:
    """Blocks of 504 and 280 pixels left one of two threads waiting for a twentieth of the time."""
    problem = make_problem(2, (1, size, size, inputs), (outputs, inputs, 1, 1), dtype="float32", layout="NHWC")
    host, panels = ZEN5, Panels.of(outputs, 16)
    rows = tile_heights(size * size, host, panels)
    _, cut = shared(problem, host, threads, rows)
    work = chunk_sizes(cut, 1, size * size, panels)
    assert busiest(work, threads) * threads <= 1.02 * sum(work)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 40)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(2, 9),
)
def test_lower_tiles_and_other_blocks_are_no_slower(
    size: tuple[int, int], channels: tuple[int, int], threads: int
) -> None:
    problem = make_problem(2, (1, *size, channels[0]), (*channels[::-1], 1, 1), dtype="float32", layout="NHWC")
    rows = tile_heights(size[0] * size[1], ZEN5, Panels.of(channels[1], 16))
    usual = operations(problem, ZEN5, threads, rows, blocking(problem, ZEN5, threads, rows))
    assert operations(problem, ZEN5, threads, *shared(problem, ZEN5, threads, rows)) <= usual


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(1, 9),
    st.integers(1, 60),
    st.booleans(),
)
def test_blocks_of_rows_cover_the_output(
    size: tuple[int, int], channels: tuple[int, int], threads: int, most: int, whole: bool
) -> None:
    problem = make_problem(
        2, (1, *size, channels[0]), (*channels[::-1], 3, 3), dtype="float32", layout="NHWC", padding=1
    )
    panels, most = Panels.of(channels[1], 16), min(most, size[0])
    group = panels.total if whole else 1
    cut = of_rows(problem, ZEN5, threads, (12, 12), most, group)
    lines, rest = divmod(cut.block, size[1])
    assert rest == 0 and 1 <= lines <= most and 1 <= cut.group <= group
    assert 0 < size[0] - (cut.blocks - 1) * lines <= lines
    if threads == 1:
        assert (cut.blocks, cut.group) == (-(-size[0] // most), group)


@pytest.mark.parametrize(
    ("apart", "rows"),
    [(4096, (9, 9)), (8192, (9, 9)), (4096 + 64, (12, 9)), (2048, (12, 9)), (0, (12, 9))],
)
def test_rows_leave_room_in_the_sets_that_they_share(apart: int, rows: tuple[int, int]) -> None:
    """48 KiB have twelve lines a set: rows 4 KiB apart may take nine of them; AVX2's tiles are lower anyway."""
    panels = Panels.of(80, 16)
    assert tile_heights(28 * 28, ZEN5, panels, apart=apart) == rows
    assert tile_heights(28 * 28, HOSTS["avx512"], panels, apart=apart)[0] == (6 if apart % 4096 == 0 < apart else 12)
    assert tile_heights(28 * 28, HOSTS["avx2"], panels, apart=apart) == (6, 4)


def test_one_register_of_outputs_takes_tall_tiles_of_even_rows() -> None:
    narrow, wide = Panels.of(16, 16), Panels.of(64, 16)
    for even, rows in ((True, 24), (False, 12)):
        assert tile_heights(56 * 56, HOSTS["avx512"], narrow, even=even)[1] == rows
        assert tile_heights(56 * 56, HOSTS["avx512"], wide, even=even)[0] == 12
        assert tile_heights(56 * 56, HOSTS["avx2"], narrow, even=even)[1] == 8
