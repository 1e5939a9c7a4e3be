"""What an algorithm is: a name and a paper, what it refuses and why, and how it lowers a problem to a program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from leanconv.host import Host
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase


@dataclass(frozen=True, slots=True)
class WeightPacking:
    """The phase that packs weights into a buffer of `nbytes`, once if bound, at every call if not.

    `bias_apart`: the bias is not among them, a bound plan keeps a copy of it.
    """

    nbytes: int
    phase: Phase
    bias_apart: bool = False


@dataclass(frozen=True, slots=True)
class Lowering:
    """A problem as phases over declared workspace buffers.

    `packing` is None for an algorithm that reads the weights as the user has them; `steps` says in words what
    runs; `parameters` are the settings that were chosen; `addresses` are buffers (or functions) that exist
    already.
    """

    phases: tuple[Phase, ...]
    workspace: tuple[Buffer, ...] = ()
    packing: WeightPacking | None = None
    steps: tuple[str, ...] = ()
    parameters: Mapping[str, int | str] = field(default_factory=dict)
    addresses: Mapping[str, int] = field(default_factory=dict)


class Algorithm(ABC):
    """One published idea.

    `name` is what users write; `title` a few words; `paper` where it was published; `error_class` how its
    rounding compares with a plain sum ("plain": the same products, added in some order); `tunables` the
    settings a caller may choose, with what they mean.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    error_class: ClassVar[str] = "plain"
    tunables: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def refusal(self, problem: Problem) -> str | None:
        """A sentence that says why the algorithm does not apply, or None if it does."""

    def suits(self, problem: Problem, host: Host) -> bool:
        """Whether it is worth its memory where it applies; "auto" tries those that are not last."""
        return True

    @abstractmethod
    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """The program of a problem that is not refused; `tunables` holds what the caller chose of `self.tunables`.

        `workspace` is the most bytes of workspace the caller would like; an algorithm that can stage less at
        a time does, and one that cannot returns what it needs (the planner then looks elsewhere).
        """
