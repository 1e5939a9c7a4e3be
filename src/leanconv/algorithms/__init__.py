"""The algorithms, one file each, and the registry that everything else walks through.

A file is imported when its algorithm is first asked for: a process uses one or two of forty, and what they import took
half of what `import leanconv` took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from leanconv.algorithms.base import Algorithm
    from leanconv.problem import Problem


def _by_name(problem: Problem) -> bool:
    """For those that are there to compare with."""
    return False


def _anywhere(problem: Problem) -> bool:
    return True


def _with_one_tap(problem: Problem) -> bool:
    """Those of phases of a transposed convolution may have one each."""
    return problem.taps == 1 or problem.direction == "transposed"


def _with_taps(problem: Problem) -> bool:
    return problem.taps > 1


def _copied(problem: Problem) -> bool:
    """Wherever a copy may lie better than the image does."""
    from leanconv.algorithms.dense import lies_well

    return not lies_well(problem)


def _planes(problem: Problem) -> bool:
    """Channels apart, enough for a block of them, under several taps."""
    return problem.taps > 1 and problem.x_strides[1] != 1 and problem.group_in > 3


def _few_channels(problem: Problem) -> bool:
    """Few channels, they or the pixels of a row adjacent, under several taps along a row."""
    return problem.ndim == 2 and problem.kernel[-1] > 1 and problem.in_channels <= 8 and problem.x_strides[3] <= 8


def _batch_last(problem: Problem) -> bool:
    """Where bands of windows are ahead of every band that is transposed."""
    return problem.layout.startswith("CHWN")


def _with_many_taps(problem: Problem) -> bool:
    """As many, along one axis or several, as an FFT needs to win: to find its windows takes a millisecond."""
    return problem.taps >= (25 if sum(taps > 1 for taps in problem.kernel) > 1 else 7)


def _with_very_many_taps(problem: Problem) -> bool:
    """The same for one channel in and one out."""
    return problem.group_in == 1 and problem.taps >= (121 if sum(taps > 1 for taps in problem.kernel) > 1 else 31)


class Place(NamedTuple):
    """Where an algorithm is, and for which problems "auto" looks at it.

    `look` is false where the algorithm never wins, or refuses anyway; what it is false for is not imported.
    """

    module: str
    kind: str
    look: Callable[[Problem], bool] = _by_name


PUBLISHED: dict[str, Place] = {
    "depthwise": Place("depthwise", "Depthwise", lambda problem: problem.group_in == 1),
    "grouped": Place("grouped", "Grouped", lambda problem: problem.groups > 1),
    "direct_band": Place("band", "DirectBand", _copied),
    "pointwise": Place("pointwise", "Pointwise", _with_one_tap),
    "direct": Place("direct", "Direct", _anywhere),
    "direct_blocks": Place("direct_blocks", "DirectBlocks", _planes),
    "im2row_strip": Place("im2row", "Im2rowStrip"),
    "im2col_strip": Place("im2col", "Im2colStrip"),
    "im2row": Place("im2row", "Im2row"),
    "im2col": Place("im2col", "Im2col"),
    "im2row_blas": Place("lowered_blas", "Im2rowBlas"),
    "im2col_blas": Place("lowered_blas", "Im2colBlas"),
    "reference": Place("reference", "Reference"),
    "im2win_band": Place("im2win", "Im2winBand", _batch_last),
    "im2win": Place("im2win", "Im2win"),
    "mec": Place("mec", "Mec"),
    "mec_a": Place("mec", "MecA"),
    "mec_rows": Place("mec_rows", "MecRows"),
    "kn2row_exact": Place("kn2row_exact", "Kn2rowExact"),
    "kn2col_aa": Place("kn2_aa", "Kn2colAa"),
    "kn2row_aa": Place("kn2_aa", "Kn2rowAa"),
    "kn2col_as": Place("kn2_as", "Kn2colAs"),
    "kn2row_as": Place("kn2_as", "Kn2rowAs"),
    "kn2col": Place("kn2", "Kn2col"),
    "kn2row": Place("kn2", "Kn2row"),
    "indirect": Place("indirect", "Indirect"),
    "implicit_gemm": Place("implicit_gemm", "ImplicitGemm", _copied),
    "im2col_scan": Place("copy_strategies", "Im2colScan"),
    "im2col_copy_self": Place("copy_strategies", "Im2colCopySelf"),
    "im2col_copy_long": Place("copy_strategies", "Im2colCopyLong"),
    "im2row_scan": Place("copy_strategies", "Im2rowScan"),
    "im2row_copy_self": Place("copy_strategies", "Im2rowCopySelf"),
    "im2row_copy_long": Place("copy_strategies", "Im2rowCopyLong"),
    "winograd_f2": Place("winograd", "WinogradF2", _with_taps),
    "winograd_f4": Place("winograd", "WinogradF4", _with_taps),
    "winograd_f6": Place("winograd", "WinogradF6", _with_taps),
    "winograd_f2_on_the_fly": Place("winograd", "WinogradF2OnTheFly", _with_taps),
    "winograd_f4_on_the_fly": Place("winograd", "WinogradF4OnTheFly", _with_taps),
    "winograd_f6_on_the_fly": Place("winograd", "WinogradF6OnTheFly", _with_taps),
    "winograd_rows": Place("winograd_rows", "WinogradRows", _few_channels),
    "fft": Place("fft", "Fft", _with_many_taps),
    "fft_whole": Place("fft", "FftWhole", _with_many_taps),
    "fft_depthwise": Place("fft_depthwise", "FftDepthwise", _with_very_many_taps),
}
"""The algorithms of this package, the one preferred where several apply first."""


_LOOKED_AT = [(name, place.look) for name, place in PUBLISHED.items() if place.look is not _by_name]


class Registry:
    """Every algorithm by name, in the order of preference; to walk through it is to load them all."""

    def __init__(self) -> None:
        self._loaded: dict[str, Algorithm] = {}
        self._added: dict[str, Algorithm] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names; those that were added come last."""
        return (*PUBLISHED, *self._added)

    @property
    def added(self) -> tuple[Algorithm, ...]:
        """Those that were added."""
        return tuple(self._added.values())

    def __iter__(self) -> Iterator[Algorithm]:
        """All of them."""
        return (self[name] for name in self.names)

    def __getitem__(self, name: str) -> Algorithm:
        """The algorithm of a name; KeyError if there is none."""
        found = self._loaded.get(name) or self._added.get(name)
        if found is None:
            place = PUBLISHED[name]
            kind = getattr(import_module(f"{__name__}.{place.module}"), place.kind)
            found = self._loaded.setdefault(name, kind())  # whoever comes first: there is one of each
        return found

    def weighed(self, problem: Problem) -> tuple[str, ...]:
        """The names of those that "auto" weighs for a problem."""
        published = [name for name, look in _LOOKED_AT if look(problem)]
        return (*published, *[name for name, added in self._added.items() if added.weighed(problem)])

    def add(self, algorithm: Algorithm) -> None:
        """Add one, behind all others."""
        self._added[algorithm.name] = algorithm

    def remove(self, name: str) -> None:
        """Take away one that was added; KeyError if it was not."""
        del self._added[name]


REGISTRY = Registry()
"""Every algorithm; `leanconv.register_algorithm` adds to it."""
