"""Taking turns, on contestants whose times are made up; samples that were disturbed; intervals of ratios."""

import itertools
import math
import os
import threading

import pytest

import leanconv
from leanconv.bench import process_memory, report, sampling
from leanconv.bench.contestants import Contestant
from leanconv.bench.report import Row, Sample
from leanconv.bench.turns import Schedule, take_turns

PLAIN = Schedule(time=1.0, rounds=10, longest=0.0, precision=0.03)


def contestant(name, times):
    """Return one whose calls take these times, over and over."""
    turns = itertools.cycle(times)
    return Contestant(Row("layer", name, "NHWC", 1, flops=10**9), lambda calls: next(turns))


def take(contestants, schedule=PLAIN):
    def attempt(row, action):
        try:
            action()
        except ZeroDivisionError as error:
            row.reason = str(error)

    peaks = []
    take_turns(contestants, schedule, lambda: peaks.append(1) or 100.0, attempt)
    return [one.row for one in contestants], len(peaks)


# -- turns --------------------------------------------------------------------------------------------------


def test_steady_times_are_certain_after_the_planned_rounds():
    (fast, slow), rounds = take([contestant("fast", [0.01]), contestant("slow", [0.02])])
    assert rounds == 10 and len(fast.samples) == len(slow.samples) == 10
    assert not fast.undecided and not slow.undecided
    assert report.ratio(slow, fast) == 2.0


def test_scattered_times_are_marked():
    (fast, steady, scattered), rounds = take(
        [contestant("fast", [0.01]), contestant("steady", [0.011]), contestant("scattered", [0.02, 0.03, 0.04])]
    )
    assert rounds == 10
    assert scattered.undecided and not steady.undecided and not fast.undecided


def test_the_fastest_is_undecided_if_another_may_be_as_fast():
    (fast, second), _ = take([contestant("fast", [0.01]), contestant("second", [0.011, 0.013, 0.012])])
    assert second.undecided and not fast.undecided
    (fast, second), _ = take([contestant("fast", [0.01]), contestant("second", [0.009, 0.013, 0.012])])
    assert second.undecided and fast.undecided
    few = Schedule(time=0.05, rounds=5, longest=0.0, precision=0.03)  # too few for an interval
    for seconds, undecided in ((0.015, True), (0.03, False)):
        (fast, second), _ = take([contestant("fast", [0.01]), contestant("second", [seconds])], few)
        assert second.undecided and fast.undecided == undecided


def test_the_uncertain_go_on_with_the_fastest_until_they_are_certain():
    # Eight times out of nine the same: the median is certain once there are enough.
    schedule = Schedule(time=1.0, rounds=10, longest=50.0, precision=0.03)
    times = [0.03, 0.02, 0.025, 0.02, 0.02, 0.028, 0.02, 0.02, 0.02, 0.03, 0.02]
    (fast, steady, other), rounds = take(
        [contestant("fast", [0.01]), contestant("steady", [0.015]), contestant("other", times)], schedule
    )
    assert 10 < rounds < 60
    assert len(fast.samples) == len(other.samples) == rounds and len(steady.samples) == 10
    assert not other.undecided
    assert [sample.round for sample in other.samples] == list(range(rounds))


def test_time_ends_the_further_rounds():
    schedule = Schedule(time=1.0, rounds=10, longest=5.0, precision=0.001)
    (fast, other), rounds = take([contestant("fast", [0.01]), contestant("other", [0.01, 0.02, 0.03])], schedule)
    spent = sum(sample.seconds * other.calls for sample in other.samples)
    assert other.undecided and 4 < spent < 5.4 and rounds == len(fast.samples)


def test_one_that_takes_too_long_is_timed_once_and_uncertain():
    (fast, slow), _ = take([contestant("fast", [0.001]), contestant("slow", [3.0])])
    assert len(slow.samples) == 1 and slow.undecided and slow.seconds == 3.0
    assert fast.calls == 100


def test_an_unusual_first_call_does_not_shorten_the_samples():
    (row,), _ = take([contestant("one", [5.0] + [0.001] * 1000)])
    assert len(row.samples) == 1  # a first call as long as that might be the usual one
    (row,), _ = take([contestant("one", [0.09] + [0.001] * 1000)])
    assert row.calls == 100 and len(row.samples) == 10


def test_who_fails_is_left_out_and_not_summarised():
    calls = itertools.count()

    def breaks(_):
        if next(calls) == 5:
            raise ZeroDivisionError("broken")
        return 0.01

    broken = Contestant(Row("layer", "broken", "NHWC", 1, flops=1), breaks)
    (row, other), rounds = take([broken, contestant("other", [0.02])])
    assert row.reason == "broken" and row.seconds is None and 0 < len(row.samples) < 10
    assert len(other.samples) == rounds == 10 and not other.undecided
    assert next(calls) == 6


# -- intervals ----------------------------------------------------------------------------------------------


def row_of(times):
    return Row("layer", "a", "NHWC", 1, samples=[Sample(i, t, 1.0) for i, t in enumerate(times)], flops=1)


@pytest.mark.parametrize(("count", "rank"), [(6, 0), (8, 0), (9, 1), (10, 1), (20, 5), (100, 39), (1000, 468)])
def test_ranks_of_the_interval_are_those_of_the_tables(count, rank):
    # For example Conover, Practical Nonparametric Statistics: 95 % intervals of the median.
    times = [float(i + 1) for i in range(count)]
    low, middle, high = report.ratio_interval(row_of(times), row_of([1.0] * count))
    assert (low, high) == (times[rank], times[-1 - rank]) and middle == (count + 1) / 2
    below = sum(math.comb(count, i) for i in range(rank + 1))
    assert 2 * below <= 0.05 * 2**count < 2 * (below + math.comb(count, rank + 1))


def test_few_rounds_have_no_interval():
    assert report.ratio_interval(row_of([1.0] * 5), row_of([1.0] * 5)) is None
    assert report.ratio_interval(row_of([]), row_of([1.0])) is None


# -- samples ------------------------------------------------------------------------------------------------


def test_a_sample_that_waited_for_a_cpu_is_taken_again(monkeypatch):
    clock, queue = itertools.count(), iter([0.0, 0.0, 0.0, 0.5, 0.5, 0.9, 0.9, 1.5])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: float(next(clock)) / 100)
    monkeypatch.setattr(sampling, "_queued", lambda: next(queue))
    monkeypatch.setattr(sampling, "settle", lambda: None)
    durations = iter([0, 9, 29, 19])

    def call():
        for _ in range(next(durations)):
            next(clock)

    # After the first, which is not counted, samples take 0.1, 0.3 and 0.2 s and lose 0.5, 0.4 and 0.6 s: relatively
    # least is the second.
    assert sampling.sample(call, 1) == pytest.approx(0.3)
    assert next(queue, None) is None


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="no choice of CPUs"
)
@pytest.mark.parametrize(
    ("ran", "apart"),
    [
        ({"caller": 10, "other": 10}, True),
        ({"caller": 10, "other": 1}, True),  # it has slept through the others' work: all the more
        ({"caller": 1, "other": 10}, False),  # the caller only waits
        ({"caller": 10, "other": 10, **dict.fromkeys(range(-99, -1), 10)}, False),  # more than there are CPUs
    ],
)
def test_the_calling_thread_has_a_cpu_of_its_own(monkeypatch, ran, apart):
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    threads = {"caller": threading.get_native_id(), "other": other.native_id}
    times = iter(
        [{threads.get(name, name): (0, 0) for name in ran}, {threads.get(k, k): (v, 0) for k, v in ran.items()}]
    )
    monkeypatch.setattr(sampling, "_threads", lambda: next(times))

    def allowed():
        return [os.sched_getaffinity(thread) for thread in threads.values()]

    usual = allowed()
    try:
        with sampling._apart(sampling._threads()):
            caller, others = allowed()
            assert (len(caller) == 1 and not caller & others) if apart else [caller, others] == usual
        assert allowed() == usual
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("calls", [1, 3, 4])
def test_an_undisturbed_sample_is_taken_once_after_calls_that_are_not_timed(monkeypatch, calls):
    clock = itertools.count()
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: float(next(clock)) / 100)
    monkeypatch.setattr(sampling, "_queued", lambda: 0.0)
    monkeypatch.setattr(sampling, "settle", lambda: None)
    monkeypatch.setattr(sampling, "_WARM", 0.2)
    durations = iter([8] + [1] * (2 + calls))  # the first finds what it needs in no cache

    def call():
        for _ in range(next(durations)):
            next(clock)

    assert sampling.sample(call, calls) == pytest.approx((calls + 1) / 100 / calls)
    assert next(durations, None) is None


def test_a_single_long_call_is_timed_at_once(monkeypatch):
    monkeypatch.setattr(sampling, "_NOTICES", 0.0)
    monkeypatch.setattr(sampling, "_queued", lambda: 0.0)
    calls = []
    assert sampling.sample(lambda: calls.append(1), 1) > 0
    assert len(calls) == 1


def test_settling_waits_for_threads_that_spin(monkeypatch):
    used = iter([0.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(sampling.time, "process_time", lambda: next(used))
    sampling.settle()
    assert next(used, None) is None


# -- memory -------------------------------------------------------------------------------------------------


def test_without_the_systems_counters_memory_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "_PROCESS", tmp_path / "none")
    assert process_memory.PeakMemory().extra_bytes() is None


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_measured(threads):
    assert 0.1 < leanconv.memory_bandwidth(threads=threads, seconds=0.01) < 10_000


@pytest.mark.parametrize(
    ("threads", "error"), [(0, leanconv.ArgumentError), ("two", leanconv.ArgumentTypeError), (True, TypeError)]
)
def test_bandwidth_refuses_threads_that_are_none(threads, error):
    with pytest.raises(error, match="threads="):
        leanconv.memory_bandwidth(threads=threads)
