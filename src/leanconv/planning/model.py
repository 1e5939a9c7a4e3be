"""The cost model: seconds of a program, from the counts of its phases and the figures of the machine.

    seconds = sum over phases of (counts * slots of each + bytes * slots of a byte of their level) / speed-up

Long streams of bytes that are hardly used again (weights of deep layers, images from memory) take the time of their
level, partly beside the multiply-adds: (sums ** 1.6 + streams ** 1.6) ** (1 / 1.6) for both.

All constants are in issue slots of a vector multiply-add. They were fitted (non-negative least squares of the relative
error) to the measured times of the algorithms on a hundred layers in both layouts; docs/planning.md says how, and how
large the error is. Traffic counts by how fast the machine at hand reads from that level. Vectors of whole cache lines
have constants of their own.

A phase whose kernel nobody counts for (`phases.py`) is taken to reach a third of the peak.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

from leanconv.algorithms import PUBLISHED
from leanconv.algorithms.base import Algorithm
from leanconv.classes import dataclass
from leanconv.host import Host, this_host
from leanconv.kernels.cost import LINE, Cost, part_inside
from leanconv.plan import Plan
from leanconv.planning.figures import Figures, figures, reference
from leanconv.planning.phases import phase_cost
from leanconv.problem import Problem
from leanconv.program import Phase


@dataclass(frozen=True, slots=True)
class Constants:
    """What one of each takes, in issue slots.

    Attributes:
        slots: of each count.
        read: of a byte read from a level, on the machine of `reference`; most of it hides behind the sums.
        written: of a byte written to a set that only this level holds, there.
    """

    slots: dict[str, float]
    read: dict[str, float]
    written: dict[str, float]


HALF_LINES = Constants(
    slots={
        "multiply": 1.024,
        "tile": 15.0,
        "tap": 1.0,
        "edge": 8.2,
        "apart": 0.83,
        "gone": 0.95,
        "page": 1.18,
        "store": 3.0,
        "turn": 4.0,
        "vector": 1.0,
        "block": 1.3,
        "run": 5.3,
        "element": 3.4,
        "scalar": 8.0,
    },
    read={"l2": 0.0118, "l3": 0.011, "memory": 0.0218},
    written={"l2": 0.136, "l3": 0.194, "memory": 0.385},
)
"""Of vectors of up to 32 bytes, fitted on a Zen 3 with AVX2."""

LINES = Constants(
    slots=HALF_LINES.slots
    | {
        "tile": 18.0,
        "tap": 5.0,
        "edge": 7.0,
        "apart": 0.1,
        "gone": 0.8,
        "page": 0.2,
        "store": 0.1,
        "turn": 7.5,
        "block": 1.6,
    },
    read={"l2": 0.004, "l3": 0.008, "memory": 0.14},
    written={"l2": 0.03, "l3": 0.033, "memory": 0.16},
)
"""Of vectors of whole cache lines, fitted on a Zen 5 with AVX-512. What is stored hides behind the sums: 4.8 MB of
outputs of 16 products each are written at 89 % of the peak; with the constants of half lines 2.3 times as long was
predicted."""

# Exponent of the sum of two times that overlap: 1 if one followed the other, infinity if the longer hid it.
BESIDE = 1.6
KEPT, LOST = 0.33, 0.8  # of the third level: a set up to the one stays there between calls, from the other on none
CALL = 2.5e-6  # seconds from Python into the native code and back
# Seconds until other threads take part in a phase, and until all have ended: 0.25e-6 where they are awake and on cores
# of their own (an empty job of two chunks on a Zen 5), and what they read in each other's caches.
FORK = 1.0e-6
UNKNOWN = 3.0  # times the multiply-adds of the definition, for kernels that nobody counts for
READERS = 4  # threads that together read memory as fast as it goes


def seconds(plan: Plan, *, bound: bool = True) -> float:
    """Predicted seconds of one call of a plan; one that is not bound packs its weights in every call."""
    low, threads, problem = plan.lowering, plan.threads, plan.problem
    if not problem.batch:
        return CALL
    host, known = this_host(), figures()
    packing = () if bound or low.packing is None else low.packing.phases
    parts = ((problem, low),) if problem.direction == "forward" else low.parts
    pieces = [(piece, plan.chosen.cost(part, host, threads, piece)) for part, piece in parts]
    wholes = [cost for _, cost in pieces if cost is not None]
    # A part is counted whole by its algorithm, or phase by phase; a fill beside the parts is a phase of its own.
    known_specs = {id(phase.spec) for piece, cost in pieces if cost is not None for phase in piece.phases}
    phases = (*packing, *(phase for phase in low.phases if id(phase.spec) not in known_specs))
    counted = [(phase_cost(phase, host), phase) for phase in phases]
    unknown = sum(cost is None for cost, _ in counted)
    lanes = host.target.lanes(problem.dtype)
    total = CALL + sum(_phase(whole, threads, host, known) for whole in wholes)
    for cost, phase in counted:
        if cost is None:
            share = problem.flops / 2 / lanes * UNKNOWN / unknown
            if hasattr(phase.spec, "panels"):  # of output channels of a group: the last vector may be partly empty
                share *= -(-problem.group_out // lanes) * lanes / problem.group_out
            cost = Cost({"multiply": share}, chunks=phase.chunks)
        total += _phase(cost, threads, host, known)
    return total


def least_seconds(problem: Problem, algorithm: Algorithm, threads: int) -> float:
    """The least that `seconds` may predict for an algorithm on so many threads or fewer, found without lowering it.

    It is far from tight where little is multiplied, and 0 for what a program added.
    """
    if not problem.batch or not _as_it_is(problem, algorithm):
        return 0.0
    host = this_host()
    cost = algorithm.least(problem, host)
    if cost is None:
        if algorithm.error_class != "plain" or PUBLISHED.get(algorithm.name) is None:
            return 0.0
        cost = Cost({"multiply": _products(problem) / host.target.lanes(problem.dtype)})
    return CALL + min(_phase(cost, count, host, figures()) for count in {threads, 1})


def least_bytes(problem: Problem, algorithm: Algorithm) -> int:
    """What an algorithm takes of a memory limit at least, found without lowering it."""
    return algorithm.least_bytes(problem, this_host()) if _as_it_is(problem, algorithm) else 0


def _as_it_is(problem: Problem, algorithm: Algorithm) -> bool:
    """Whether an algorithm computes a problem itself: not as several ones, or with copies around it."""
    return problem.direction == "forward" and algorithm.refusal(problem) is None


@functools.lru_cache(maxsize=16)  # every algorithm asks
def _products(problem: Problem) -> float:
    """Products of the definition without those with padding that is zero."""
    p = problem
    inside = 1.0
    if p.pad_mode == "zeros":
        for axis in zip(p.out_size, p.stride, p.dilation, p.pad_low, p.kernel, p.in_size, strict=True):
            inside *= part_inside(*axis)
    return p.flops / 2 * inside


def phase_seconds(phase: Phase, threads: int) -> float:
    """Predicted seconds of a call that runs one phase, whose kernel counts for itself."""
    host = this_host()
    cost = phase_cost(phase, host)
    assert cost is not None, phase.spec
    return CALL + _phase(cost, threads, host, figures())


def phases_seconds(phases: Iterable[Phase], threads: int) -> float:
    """Predicted seconds of phases within a longer program; a kernel that nobody counts for counts as nothing."""
    host, known = this_host(), figures()
    costs = (phase_cost(phase, host) for phase in phases)
    return sum(_phase(cost, threads, host, known) for cost in costs if cost is not None)


def _phase(cost: Cost, threads: int, host: Host, known: Figures) -> float:
    slot, slower = _slots(known)
    constants = LINES if host.target.vector_bytes >= LINE else HALF_LINES
    issued = alone = memory = 0.0
    for name, count in cost.counts.items():
        issued += constants.slots[name] * count
    for table, traffic in ((constants.read, cost.reads), (constants.written, cost.writes)):
        for nbytes, held in traffic:
            level = _level(held, host)
            if level is None:
                continue
            slots = nbytes * table[level] * slower[level]
            if level == "memory":
                memory += slots
            else:
                alone += slots
    forked = threads > 1 and cost.chunks != 0
    chunks = cost.chunks or threads
    speed_up = chunks / math.ceil(chunks / min(threads, chunks)) if forked else 1.0
    readers = min(speed_up, READERS)
    summed = issued / speed_up * slot
    if cost.streams:
        streamed = sum(_stream(*stream, speed_up, readers, host, known) for stream in cost.streams)
        summed = (summed**BESIDE + streamed**BESIDE) ** (1 / BESIDE)
    return summed + (alone / speed_up + memory / readers) * slot + forked * cost.phases * FORK


@functools.lru_cache(maxsize=4)
def _slots(known: Figures) -> tuple[float, dict[str, float]]:
    """Seconds of a slot, and how much more slowly than where the constants were fitted each level is read."""
    usual = reference(known.gflops)
    return known.slot, {"l2": usual.l2 / known.l2, "l3": usual.l3 / known.l3, "memory": usual.memory / known.memory}


def _stream(nbytes: float, held: float, speed_up: float, readers: float, host: Host, known: Figures) -> float:
    """Seconds of reading so many bytes of a set as fast as its level gives them."""
    if held <= host.l2:
        return nbytes / (known.l2 * 1e9 * speed_up) if held > host.l1 else 0.0
    size = held / max(host.l3, host.l2)
    far = min(1.0, max(0.0, (size - KEPT) / (LOST - KEPT)))  # the part that is displaced before it is read again
    return nbytes * (far / (known.memory * readers) + (1 - far) / (known.l3 * speed_up)) / 1e9


def _level(nbytes: float, host: Host) -> str | None:
    """The nearest cache that holds so many bytes, or memory; None for the first level."""
    if nbytes <= host.l1:
        return None
    if nbytes <= host.l2:
        return "l2"
    return "l3" if nbytes <= 0.8 * host.l3 else "memory"
