"""What is measured, and how: the settings of a run, and the engine behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

ALL = "all"
LIMITED, OF_A_THREAD = "@", "/thread"
"""Between an algorithm and a memory limit of its own: `auto@256KiB`; behind a limit of each thread's workspace."""


def limits_of(word: str) -> dict[str, str]:
    """The limit behind an algorithm's name, as `plan` takes it; nothing if there is none."""
    _, limited, limit = word.partition(LIMITED)
    if not limited:
        return {}
    return {"workspace_limit" if limit.endswith(OF_A_THREAD) else "memory_limit": limit.removesuffix(OF_A_THREAD)}


class Engine(Protocol):
    """What is measured: these functions of `leanconv`."""

    def plan(self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **options: Any) -> Any:
        """Return a plan."""

    def algorithms(self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **options: Any) -> Sequence[Any]:
        """Return what each algorithm says about a problem."""

    def fma_peak(self, threads: int = 1, dtype: str = "float32", seconds: float = 0.02) -> float:
        """Return GFLOP/s, the best within so many seconds."""

    def memory_bandwidth(self, threads: int = 1) -> float:
        """Return GB/s."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        algorithms: names, or "all" for every one that applies to a layer.
        layouts: "NHWC", "NCHW", "CHWN", "CHWN8".
        threads: numbers of threads, each measured on its own.
        dtype: "float32" or "float64".
        time: seconds for each algorithm and peer on each layer, in all passes; one that takes longer than a pass has
            for a call is timed once in each.
        rounds: how often they take turns in a pass.
        passes: how often the list of layers is gone through, everything prepared anew each time.
        every: seconds from the start of a pass to that of the next one; at once if it took longer.
        longest: seconds with further rounds, or passes if there are several, for those whose ratio to the fastest is
            uncertain, in passes only if it is below 2; none if not above `time`.
        precision: a ratio is certain if the ends of its interval are within this part of it.
        peers: names of peers, or "all".
        peer_timeout: seconds until a peer that does not answer is ended.
        bandwidth: whether to measure the speed of memory, too.
        seed: of the random arrays.
    """

    algorithms: tuple[str, ...] = (ALL,)
    layouts: tuple[str, ...] = ("NHWC",)
    threads: tuple[int, ...] = (1,)
    dtype: str = "float32"
    time: float = 0.2
    rounds: int = 10
    passes: int = 1
    every: float = 0.0
    longest: float = 0.0
    precision: float = 0.08
    peers: tuple[str, ...] = ()
    peer_timeout: float = 120.0
    bandwidth: bool = False
    seed: int = 0


def default_engine() -> Engine:
    """Return leanconv itself."""
    import leanconv

    return cast(Engine, leanconv)
