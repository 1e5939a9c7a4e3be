"""Taking turns: A B C, B C A, C A B ..., so that whatever slows the machine slows all alike.

Who comes first in a round is another each time: after the pause in which the peak is measured the first one is some 5 %
slower (four layers by one kernel under three names, in both orders).

Each round also measures the peak of fused multiply-adds. After the planned rounds, those whose time is still
uncertain in proportion to the fastest go on taking turns with it until it is known well enough or their time
is used up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanconv.bench.contestants import Contestant
from leanconv.bench.report import Row, Sample, fastest, ratio, ratio_interval

# One sample lasts at least this long, so that the clock's resolution and one interrupt do not matter.
SHORTEST_SAMPLE = 2e-3

# Times the fastest. Whoever is slower has lost: by how much is worth no further passes, and where samples are too few
# for an interval no doubt.
CLOSE = 2.0

_MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Schedule:
    """How long to measure.

    Attributes:
        time: seconds for each contestant in the planned rounds; who takes longer for a call is timed once.
        rounds: how many rounds are planned.
        longest: seconds for each contestant with the further rounds; no further rounds if not above `time`.
        precision: how far the ends of the interval of a ratio may lie from the ratio, as a part of it.
    """

    time: float
    rounds: int
    longest: float
    precision: float


def take_turns(
    contestants: Sequence[Contestant],
    schedule: Schedule,
    peak: Callable[[], float],
    attempt: Callable[[Row, Callable[[], None]], None],
    *,
    number: int = 0,
    first: int = 0,
) -> None:
    """Time the contestants and fill in their rows; samples of earlier passes count.

    Args:
        contestants: who takes part.
        schedule: how long.
        peak: measures the FMA peak, in GFLOP/s.
        attempt: runs something for a row and turns an exception into the row's reason.
        number: of the pass.
        first: number of its first round; greater than those of earlier passes.
    """

    def one_round(turn: int, part: Sequence[Contestant]) -> None:
        speed = peak()
        start = (first + turn) % max(1, len(part))  # another one first each time
        for one in (*part[start:], *part[:start]):
            if not one.row.reason:
                attempt(one.row, lambda one=one: _sample(one, number, first + turn, speed))  # type: ignore[misc]

    for contestant in contestants:
        attempt(contestant.row, lambda one=contestant: _calibrate(one, schedule))  # type: ignore[misc]
    able = [one for one in contestants if one.rounds]
    planned = schedule.rounds if able else 0
    for turn in range(planned):
        # A slow contestant takes part in some rounds only, spread evenly over the run.
        part = [one for one in able if turn * one.rounds % planned < one.rounds]
        one_round(turn, part)
    for turn in range(planned, _MOST_ROUNDS):
        part = _uncertain(able, schedule)
        if not part:
            break
        one_round(turn, part)
    finished = [one.row for one in able if one.row.samples and not one.row.reason]
    for row in finished:
        row.summarise()
    mark(finished, schedule.precision)


def _calibrate(one: Contestant, schedule: Schedule) -> None:
    """Choose how many calls make a sample, and how many samples fit into the time; both as in an earlier pass."""
    if one.row.samples:
        usual = statistics.median(sample.seconds for sample in one.row.samples) * one.row.calls
        one.rounds = min(max(round(schedule.time / usual), 1), schedule.rounds)
        return
    calls, seconds = 1, one.sample(1)
    while seconds * calls < SHORTEST_SAMPLE / 4:
        calls *= 4
        seconds = one.sample(calls)
    wanted = max(SHORTEST_SAMPLE, schedule.time / schedule.rounds)
    if seconds * calls < wanted:
        # Again: the first time is often out of the ordinary, and would make the samples too short.
        seconds = min(seconds, one.sample(calls))
    # Rounded up where the shortest sample asks for it, else down: the time is a bound.
    one.row.calls = max(math.ceil(SHORTEST_SAMPLE / seconds), int(wanted / seconds), 1)
    affordable = int(schedule.time / (seconds * one.row.calls) + 0.01)
    one.rounds = min(max(affordable, 1), schedule.rounds)


def _sample(one: Contestant, number: int, turn: int, peak: float) -> None:
    seconds = one.sample(one.row.calls)
    one.spent += seconds * one.row.calls
    one.row.samples.append(Sample(turn, seconds, peak, number))


def _uncertain(able: Sequence[Contestant], schedule: Schedule) -> list[Contestant]:
    """Return the fastest and all who are uncertain next to it; nobody if time is used up."""
    by_row = {id(one.row): one for one in able if one.row.samples and not one.row.reason}
    for one in by_row.values():
        one.row.summarise()
    best = fastest([one.row for one in by_row.values()])
    if best is None:
        return []

    def may_go_on(one: Contestant) -> bool:
        return one.spent + one.row.samples[-1].seconds * one.row.calls <= schedule.longest

    others = [
        one
        for one in by_row.values()
        if one.row is not best and may_go_on(one) and not _certain(one.row, best, schedule.precision)
    ]
    leader = by_row[id(best)]
    return [leader, *others] if others and may_go_on(leader) else []


def _certain(row: Row, best: Row, precision: float) -> bool:
    interval = ratio_interval(row, best)
    if interval is None:
        return False
    low, middle, high = interval
    return max(middle - low, high - middle) <= precision * middle


def mark(rows: Sequence[Row], precision: float) -> None:
    """Mark rows whose ratio to the fastest is uncertain, and the fastest if another may be as fast."""
    best = fastest(rows)
    others = [row for row in rows if row is not best]
    if best is None:
        return
    for row in others:
        row.undecided = not _certain(row, best, precision)
    best.undecided = any(_as_fast(row, best) for row in others)


def _as_fast(row: Row, best: Row) -> bool:
    interval = ratio_interval(row, best)
    return ratio(row, best) < CLOSE if interval is None else interval[0] <= 1
