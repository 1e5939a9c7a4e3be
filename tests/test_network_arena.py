"""Offsets in the arena: nothing that is alive together overlaps, and no plan is far above what is alive at once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.memory import ALIGNMENT
from leanconv.network.arena import Region, plan_arena
from leanconv.network.graph import ValueType
from leanconv.network.places import Place, dense, order_of, reshaped, strides_in

ENGINE = settings(settings.get_profile("engine"), max_examples=200)
REGIONS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 5), st.none() | st.integers(0, 5)).map(
        lambda t: Region("", t[0], t[1], t[1] + t[2], None if t[3] is None else (t[1] + t[3], t[0] // 3))
    ),
    max_size=25,
)


@ENGINE
@given(REGIONS)
def test_nothing_overlaps(regions: list[Region]) -> None:
    plan = plan_arena(regions)
    ends = [o + r.nbytes for o, r in zip(plan.offsets, regions, strict=True)]
    assert max(ends, default=0) <= plan.nbytes and plan.bound <= plan.nbytes
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets)
    for i, a in enumerate(regions):
        for j in range(i):
            b = regions[j]
            for step in range(max(a.first, b.first), min(a.last, b.last) + 1):
                m, n = (r.nbytes if r.shrunk is None or step <= r.shrunk[0] else r.shrunk[1] for r in (a, b))
                starts = plan.offsets[i], plan.offsets[j]
                assert not m or not n or starts[0] + m <= starts[1] or starts[1] + n <= starts[0]


def test_a_chain_is_planned_to_the_bound() -> None:
    sizes = [640, 6400, 1280, 12800, 64, 3200, 3200, 640]
    regions = [Region("", n, i, i + 1) for i, n in enumerate(sizes)]
    plan = plan_arena(regions)
    assert plan.nbytes == plan.bound == 12800 + 1280


def test_what_shrinks_leaves_room() -> None:
    plan = plan_arena([Region("", 6400, 0, 3, (1, 1280)), Region("", 5120, 2, 3), Region("", 64, 1, 1)])
    assert plan.nbytes == plan.bound == 6464


@ENGINE
@given(st.data())
def test_views_are_those_of_numpy(data: st.DataObject) -> None:
    import numpy as np

    draw = data.draw
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    place = dense("", ValueType(tuple(shape), "float32"), order)
    size = int(np.prod(shape))
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    first = draw(st.sampled_from(divisors))
    second = draw(st.sampled_from([d for d in divisors if (size // first) % d == 0]))
    wanted = (first, second, 1, size // first // second)

    memory = np.arange(size, dtype="float32")
    array = np.ndarray(place.shape, "float32", memory, 0, place.byte_strides)
    found = reshaped(place, wanted)
    if found is None:
        assert not np.shares_memory(array.reshape(wanted), memory)
    else:
        seen = np.ndarray(wanted, "float32", memory, 0, found.byte_strides)
        assert (seen == array.reshape(wanted)).all()
    assert strides_in(shape, order_of(place)) == place.strides or 1 in shape
    assert isinstance(place, Place)
