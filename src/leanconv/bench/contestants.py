"""Who takes part in a measurement: an algorithm in this process, or a peer in its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leanconv.bench.report import Row


@dataclass
class Contestant:
    """One row that is ready to be timed.

    Attributes:
        row: what it is, and where the samples go.
        sample: takes the mean time of one of several calls, in seconds; afterwards its process is at rest.
        rounds: in how many of the first rounds it takes part; 0 before `calibrate`.
        spent: seconds of its samples so far.
    """

    row: Row
    sample: Callable[[int], float]
    rounds: int = 0
    spent: float = 0.0
