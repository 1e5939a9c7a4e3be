"""Our data classes behave as the standard library's do."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pickle
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import pytest

from leanconv import classes

THEIRS = dataclasses.dataclass
REPLACE: tuple[Callable[..., Any], ...] = (dataclasses.replace, classes.replace)
ours: Callable[..., Any] = classes.dataclass  # to the type checker it is the other


@pytest.fixture(autouse=True, params=[1, 1 << 30])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `__init__` that all objects but the first have, or that of the first."""
    monkeypatch.setattr(classes, "SEVERAL", request.param)


def family(dataclass: Callable[..., Any]) -> dict[str, Any]:
    """The same classes, made by one or the other."""

    @dataclass(frozen=True, slots=True)
    class Point:
        """A point."""

        shared: ClassVar[int] = 7
        x: int
        y: tuple[int, ...] = (1, 2)

        def total(self) -> int:
            return self.x + sum(self.y)

        @property
        def twice(self) -> int:
            return 2 * self.x

    @dataclass(frozen=True, slots=True)
    class Named(Point):
        """A point with a name."""

        name: str = "p"
        y: tuple[int, ...] = (9,)

        def total(self) -> int:
            return 100

    @dataclass(slots=True)
    class Growing:
        """It can change."""

        items: list[int] = field(default_factory=list)
        size: int = 0

        def __post_init__(self) -> None:
            self.size = len(self.items)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Keyed:
        """Only by name."""

        a: int
        b: int = 2

    @dataclass(frozen=True, slots=True, kw_only=True)
    class More(Point):
        """By position, then by name."""

        z: int
        last: str = "l"

    @dataclass(frozen=True, slots=True)
    class Own:
        """It brings methods along."""

        a: float

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 5

        def __repr__(self) -> str:
            return "own"

    @dataclass(frozen=True, slots=True)
    class Empty:
        """Nothing."""

    @dataclass(frozen=True)
    class Open:
        """It keeps more than its fields."""

        n: int
        sizes: tuple[int, ...] = (1,)
        more: tuple[int, ...] = field(default_factory=tuple)

        @functools.cached_property
        def double(self) -> int:
            return 2 * self.n

    return {kind.__name__: kind for kind in (Point, Named, Growing, Keyed, More, Own, Empty, Open)}


BOTH = pytest.mark.parametrize("dataclass", [THEIRS, ours], ids=["theirs", "ours"])


def told(kinds: dict[str, Any]) -> list[Any]:
    """All that can be seen from outside."""
    point, named, growing, keyed, more, own, empty, open_ = kinds.values()
    a, b = point(3), named(3, (9,), "q")
    objects = [
        a,
        b,
        point(x=3, y=(1, 2)),
        growing(),
        growing([4, 5]),
        keyed(a=1),
        more(1, z=3),
        more(1, (2,), z=3),
        own(2.0),
        empty(),
        open_(4, more=(open_(5).double,)),
    ]
    result: list[Any] = [
        [repr(each) for each in objects],
        [[x == y for x in objects] for y in objects],
        [hash(each) for each in objects if type(each) is not growing],
        [each.__hash__ is None for each in objects],
        (a.total(), b.total(), a.twice, a.shared, growing([1]).size, growing().items is growing().items),
        [[f.name for f in dataclasses.fields(each)] for each in objects],
        [[f.name for f in dataclasses.fields(kind)] for kind in kinds.values()],
        [dataclasses.asdict(each) for each in objects],
        [
            repr(replace(each, **{name: 5}))
            for replace in REPLACE
            for each, name in ((a, "x"), (b, "name"), (more(1, z=2), "z"))
        ],
        [repr(copy.deepcopy(each)) for each in objects],
        [hasattr(each, "__dict__") for each in objects],
        [kind.__match_args__ for kind in kinds.values()],
        [str(inspect.signature(kind)) for kind in kinds.values()],
        [getattr(kind, "__slots__", None) for kind in kinds.values()],
        (open_.sizes, vars(open_(3)), hasattr(open_, "more")),
        [(kind.__doc__, kind.__qualname__, kind.__module__) for kind in kinds.values()],
    ]
    match b:
        case point(x, y):
            result.append((x, y))
    return result


def test_they_look_the_same() -> None:
    assert told(family(ours)) == told(family(THEIRS))


@BOTH
def test_what_they_refuse(dataclass: Any) -> None:
    point, _, growing, keyed, *_, opened = family(dataclass).values()
    for wrong in (point, lambda: point(1, 2, 3), lambda: point(1, x=1), lambda: point(1, z=1), lambda: keyed(1)):
        with pytest.raises(TypeError):
            wrong()
    for replace in REPLACE:
        with pytest.raises(TypeError):
            replace(point(1), other=1)
    for each, name in ((point(1), "x"), (keyed(a=1), "a"), (opened(1), "n")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(each, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(each, name)
    changing = growing()
    changing.size = 3
    assert changing.size == 3
    with pytest.raises(AttributeError):
        changing.other = 1
    with pytest.raises(TypeError):
        hash(changing)


@BOTH
def test_a_class_may_inherit_from_the_other_kind(dataclass: Any) -> None:
    point = family(THEIRS if dataclass is ours else ours)["Point"]

    @dataclass(frozen=True, slots=True)
    class More(point):  # type: ignore[misc]
        z: int = 4

    assert repr(More(1)).endswith("More(x=1, y=(1, 2), z=4)")
    assert [f.name for f in dataclasses.fields(More)] == ["x", "y", "z"]
    assert More(1, (1,), 2) == More(x=1, y=(1,), z=2) != More(1)


@ours(frozen=True, slots=True)
class Pickled:
    """Found by its name."""

    a: int
    b: Any = None


def test_pickling() -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        there = pickle.loads(pickle.dumps(Pickled(1, Pickled(2)), protocol))
        assert there == Pickled(1, Pickled(2))
        assert hash(there) == hash(Pickled(1, Pickled(2)))
