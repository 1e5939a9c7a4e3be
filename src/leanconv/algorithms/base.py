"""What an algorithm is: a name and a paper, what it refuses and why, and how it lowers a problem to a program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar

from leanconv.classes import dataclass, replace
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

TAPS = "taps"  # the core's order over the image: taps outermost, channels innermost, in sections


@dataclass(frozen=True, slots=True)
class WeightPacking:
    """The phase that packs weights into a buffer of `nbytes`, once if bound, at every call if not.

    `bias_apart`: the bias is not among them, a bound plan keeps a copy of it.  `more`: phases that follow the first.
    `grouped`: field `w_g` of all these phases is the step in bytes from the weights of a group to the next's, and they
    read weights by it alone, wherever groups lie.
    """

    nbytes: int
    phase: Phase
    bias_apart: bool = False
    more: tuple[Phase, ...] = ()
    grouped: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases, in order."""
        return (self.phase, *self.more)

    def with_group_step(self, nbytes: int) -> WeightPacking:
        """The same packing of weights whose groups begin so many bytes after one another; only if `grouped`."""
        first, *more = (replace(phase, fields={**phase.fields, "w_g": nbytes}) for phase in self.phases)
        return replace(self, phase=first, more=tuple(more))


@dataclass(frozen=True, slots=True)
class Tables:
    """Buffers that depend on the problem only, and the phase that fills them (and phases that follow it, `more`).

    A plan makes them once for all that is bound to it, and keeps them; a call that is not bound makes them in its
    workspace.
    """

    buffers: tuple[Buffer, ...]
    phase: Phase
    more: tuple[Phase, ...] = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases, in order."""
        return (self.phase, *self.more)


@dataclass(frozen=True, slots=True)
class Lowering:
    """A problem as phases over declared workspace buffers.

    `packing` is None for an algorithm that reads the weights as the user has them; `steps` says in words what
    runs; `parameters` are the settings that were chosen; `addresses` are buffers (or functions) that exist
    already; `tables` are read by the phases and by nothing changed; `parts` are the convolutions that together make up
    the problem, each with its own lowering, if it is not one itself.
    """

    phases: tuple[Phase, ...]
    workspace: tuple[Buffer, ...] = ()
    packing: WeightPacking | None = None
    steps: tuple[str, ...] = ()
    parameters: Mapping[str, int | str] = field(default_factory=dict)
    addresses: Mapping[str, int] = field(default_factory=dict)
    tables: Tables | None = None
    parts: tuple[tuple[Problem, Lowering], ...] = ()


class Algorithm(ABC):
    """One published idea.

    `name` is what users write; `title` a few words; `paper` where it was published; `error_class` how its
    rounding compares with a plain sum ("plain": the same products, added in some order; "float64": summed in
    float64; "transformed": products of transformed windows and weights); `tunables` the settings a caller may
    choose, with what they mean; `sum_order` names the order of its sums if it depends on the problem's sizes and taps
    only: algorithms that name the same order return the same bits (None: an order of its own); `automatic`: whether
    "auto" may take it. Those that another one here equals in time and memory on every layer that was measured are
    there by name, to compare with, and do not lengthen the choice.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    error_class: ClassVar[str] = "plain"
    tunables: ClassVar[Mapping[str, str]] = {}
    sum_order: ClassVar[str | None] = None
    automatic: ClassVar[bool] = True

    def weighed(self, problem: Problem) -> bool:
        """Whether "auto" may take it for a problem; by default wherever it applies, or nowhere (`automatic`).

        It is asked of algorithms that a program adds; `PUBLISHED` says it of those of this package.
        """
        return self.automatic

    @abstractmethod
    def refusal(self, problem: Problem) -> str | None:
        """A sentence that says why the algorithm does not apply, or None if it does."""

    def error_bound(self, problem: Problem) -> float:
        """The largest error of an output to expect, relative to the largest output (before the activation).

        For images and weights of random numbers of one size; it is what the tests hold each algorithm to.
        """
        return 1e-6 if problem.dtype == "float32" else 1e-14

    def least(self, problem: Problem, host: Host) -> Cost | None:
        """What every lowering does at least, as counted by `cost` or the kernels; None if that is not known.

        Of this package's algorithms that add up all products each is known to be one lane of a multiply-add.
        """
        return None

    def least_bytes(self, problem: Problem, host: Host) -> int:
        """What counts against a memory limit at least, of a problem that is not refused, however little is staged."""
        return 0

    def cost(self, problem: Problem, host: Host, threads: int, lowering: Lowering) -> Cost | None:
        """What the phases of a lowering do, for the cost model; None to have each phase counted by its kernel."""
        return None

    @abstractmethod
    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """The program of a problem that is not refused; `tunables` holds what the caller chose of `self.tunables`.

        `workspace` is the most bytes of workspace the caller would like; an algorithm that can stage less at
        a time does, and one that cannot returns what it needs (the planner then looks elsewhere).
        """
