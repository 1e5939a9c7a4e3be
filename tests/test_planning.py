"""Choosing plans: by the model, under limits, within requirements, from lock files; and what is said about it."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import leanconv
from guard import run_python
from leanconv.algorithms import REGISTRY
from leanconv.classes import replace
from leanconv.codegen.targets import TARGETS
from leanconv.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CacheError,
    MemoryLimitError,
    NotApplicableError,
)
from leanconv.kernels.cost import Cost
from leanconv.planning import choice, decisions, figures, layer_choices, model, network
from leanconv.planning.candidates import Terms, algorithm_named, candidates, fastest_candidate
from leanconv.planning.limits import resolve_limit
from leanconv.planning.phases import phase_cost
from strategies import Case, cases, convolve

ENGINE = settings(settings.get_profile("engine"), max_examples=40)
LAYER: dict[str, Any] = {"x_shape": (1, 32, 28, 28), "w_shape": (48, 32, 3, 3), "padding": 1}
SAME_ORDER = [a.name for a in REGISTRY if a.sum_order is not None]


def problem(**changes: Any) -> leanconv.Problem:
    return leanconv.plan(**{**LAYER, **changes}, algorithm="reference").problem


# -- limits ------------------------------------------------------------------------------------------------------


@ENGINE
@given(cases())
def test_every_problem_runs_within_any_limit(case: Case) -> None:
    free = case.plan("auto", 2)
    for limit in (1 << 20, 1 << 16, 4096, 0):
        plan = case.plan("auto", 2, memory_limit=limit)
        assert plan.extra_bytes <= limit and plan.threads <= 2
        assert plan.extra_bytes <= limit or free.extra_bytes > limit
    inputs = case.guarded_inputs(viewed=False)
    case.check(convolve(case, inputs, threads=2, memory_limit=0), plan.algorithm)


def test_a_limit_of_zero_runs_a_bound_layer() -> None:
    plan = leanconv.plan(**LAYER, memory_limit=0)
    assert plan.extra_bytes == 0
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(LAYER[name]).astype(np.float32) for name in ("x_shape", "w_shape"))
    got = plan.bind(w)(x)
    want = leanconv.conv2d(x, w, padding=1, algorithm="reference")
    assert np.abs(got - want).max() < 1e-4


def test_fewer_threads_where_the_limit_leaves_no_room_for_more() -> None:
    one = leanconv.plan(**LAYER, algorithm="im2row_strip", threads=1, parameters={"strip": 4})
    with pytest.raises(MemoryLimitError):
        leanconv.plan(**LAYER, algorithm="im2row_strip", threads=1, parameters={"strip": 4}, memory_limit=100)
    limited = leanconv.plan(
        **LAYER, algorithm="im2row_strip", threads=4, parameters={"strip": 4}, memory_limit=one.extra_bytes
    )
    assert limited.threads == 1 and limited.extra_bytes == one.extra_bytes


def test_a_limit_of_the_workspace_of_each_thread() -> None:
    layer = {**LAYER, "x_shape": (1, 64, 28, 28), "w_shape": (64, 64, 3, 3), "threads": 2}
    free = leanconv.plan(**layer, algorithm="winograd_f4")
    limit = free.workspace_bytes // 4
    tight = leanconv.plan(**layer, algorithm="winograd_f4", workspace_limit=limit)
    assert 0 < tight.workspace_bytes <= limit * tight.threads < free.workspace_bytes
    assert tight.packed_weight_bytes == free.packed_weight_bytes > limit * tight.threads  # does not count
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(layer[name], dtype=np.float32) for name in ("x_shape", "w_shape"))
    assert tight.bind(w)(x).tobytes() == free.bind(w)(x).tobytes()

    # Both limits hold, and what was decided for one is not the answer to another.
    for _ in range(2):
        found = [
            leanconv.plan(**layer, memory_limit=memory, workspace_limit=workspace)
            for memory, workspace in (("unlimited", None), ("unlimited", 0), (0, "1MiB"), (1 << 20, 1 << 16))
        ]
        assert found[1].workspace_bytes == 0 == found[2].extra_bytes
        assert found[3].extra_bytes <= 1 << 20 and found[3].workspace_bytes <= found[3].threads << 16
        assert found[0].workspace_bytes > found[3].workspace_bytes
    turned = {name: value for name, value in layer.items() if name != "bias"}
    assert leanconv.plan_transpose(**turned, workspace_limit=0).workspace_bytes == 0
    with leanconv.record_plans() as pins:
        leanconv.plan(**layer)
        leanconv.plan(**layer, workspace_limit=0)
    assert len(pins.decisions) == 2 and list(pins.decisions)[1].endswith("; workspace_limit=0")

    with pytest.raises(MemoryLimitError, match="the workspace of a thread of im2col") as caught:
        leanconv.plan(**LAYER, algorithm="im2col", threads=1, workspace_limit="1KiB")
    assert caught.value.limit == 1024
    enough = leanconv.plan(**LAYER, algorithm="im2col", threads=1, workspace_limit=caught.value.needed)
    assert enough.workspace_bytes == caught.value.needed
    for bad, error in ((-1, ArgumentValueError), ("much", ArgumentValueError), (1.5, ArgumentTypeError)):
        with pytest.raises(error) as wrong:
            leanconv.plan(**LAYER, workspace_limit=bad)  # type: ignore[arg-type]
        assert wrong.value.argument == "workspace_limit"


def test_default_limits() -> None:
    assert leanconv.get_memory_limit() is None
    with leanconv.memory_limit("1KiB"):
        assert leanconv.get_memory_limit() == 1024
        assert leanconv.plan(**LAYER).memory_limit == 1024
        assert leanconv.plan(**LAYER, memory_limit="unlimited").memory_limit is None
        assert leanconv.plan(**LAYER, memory_limit=77).memory_limit == 77
        with leanconv.memory_limit("unlimited"):
            assert leanconv.plan(**LAYER).memory_limit is None
        x, w = np.ones((1, 16, 9, 9), np.float32), np.ones((16, 16, 3, 3), np.float32)
        with pytest.raises(MemoryLimitError):
            leanconv.conv2d(x, w, algorithm="im2col")
    leanconv.set_memory_limit("2 MiB")
    try:
        assert leanconv.plan(**LAYER).memory_limit == 2 << 20
    finally:
        leanconv.set_memory_limit(None)
    assert resolve_limit(None) is None
    for bad, error in ((-1, ArgumentValueError), ("much", ArgumentValueError), (1.5, ArgumentTypeError)):
        with pytest.raises(error):
            leanconv.set_memory_limit(bad)  # type: ignore[arg-type]
        with pytest.raises(error), leanconv.memory_limit(bad):  # type: ignore[arg-type]
            pass


# -- requirements ------------------------------------------------------------------------------------------------


def test_names_exclusions_and_functions() -> None:
    best = leanconv.plan(**LAYER).algorithm
    assert leanconv.plan(**LAYER, algorithm=[f"!{best}"]).algorithm != best
    assert leanconv.plan(**LAYER, algorithm=f"!{best}").algorithm != best
    assert leanconv.plan(**LAYER, algorithm=["im2col", "im2row"]).algorithm in ("im2col", "im2row")
    assert leanconv.plan(**LAYER, algorithm=("im2col", "pointwise")).algorithm == "im2col"
    everything_but = ["auto", *(f"!{a.name}" for a in REGISTRY if a.name != "direct")]
    assert leanconv.plan(**LAYER, algorithm=everything_but).algorithm == "direct"
    # An exclusion takes the whole family with it.
    assert leanconv.plan(**LAYER, algorithm=["im2col", "im2row", "direct", "!im2col", "!im2row"]).algorithm == "direct"

    seen: list[Any] = []

    def slowest(asked: leanconv.Problem, found: tuple[Any, ...]) -> Any:
        seen.append((asked, found))
        return found[-1]

    plan = leanconv.plan(**LAYER, algorithm=slowest)
    asked, found = seen[0]
    assert asked == plan.problem and plan.algorithm == found[-1].name and plan is found[-1].plan
    times = [entry.predicted_seconds for entry in found]
    assert times == sorted(times) and times[0] > 0
    assert leanconv.plan(**LAYER, algorithm=lambda p, found: "direct").algorithm == "direct"
    x, w = np.ones((1, 8, 9, 9), np.float32), np.ones((8, 8, 3, 3), np.float32)
    assert np.all(leanconv.conv2d(x, w, algorithm=["im2col", "direct"]) == 72)
    assert np.all(leanconv.conv2d(x, w, algorithm=lambda p, found: "direct") == 72)


@pytest.mark.parametrize(
    ("algorithm", "error"),
    [
        ("nonsense", ArgumentValueError),
        ("!nonsense", ArgumentValueError),
        (["direct", "nonsense"], ArgumentValueError),
        ([], ArgumentTypeError),
        ([3], ArgumentTypeError),
        (3, ArgumentTypeError),
        (None, ArgumentTypeError),
        ([f"!{a.name}" for a in REGISTRY], ArgumentValueError),
        (lambda p, found: "nonsense", ArgumentValueError),
        (lambda p, found: 3, ArgumentTypeError),
    ],
)
def test_what_is_no_algorithm(algorithm: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        leanconv.plan(**LAYER, algorithm=algorithm)
    assert caught.value.argument == "algorithm"  # type: ignore[attr-defined]
    with pytest.raises(error):
        leanconv.conv2d(np.ones((1, 4, 5, 5), np.float32), np.ones((4, 4, 3, 3), np.float32), algorithm=algorithm)


def test_other_requirements_are_checked() -> None:
    for bad in ({"accuracy": "perfect"}, {"choose": "luck"}, {"budget": 0.0}, {"budget": -1.0}):
        with pytest.raises(ArgumentValueError) as caught:
            leanconv.plan(**LAYER, **bad)
        assert caught.value.argument == next(iter(bad))
    with pytest.raises(ArgumentTypeError):
        leanconv.plan(**LAYER, deterministic="yes")  # type: ignore[arg-type]
    with pytest.raises(NotApplicableError):
        leanconv.plan(**LAYER, algorithm=["pointwise"])


def test_accuracy_goes_by_the_error_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = type(algorithm_named("implicit_gemm"))
    monkeypatch.setattr(entry, "error_class", "transformed")
    monkeypatch.setattr(entry, "error_bound", lambda self, problem: 5e-6)
    names = {"fast": True, "standard": False, "exact": False}
    for accuracy, taken in names.items():
        found = {row.name: row for row in leanconv.explain(**LAYER, accuracy=accuracy).rows}
        assert (found["implicit_gemm"].verdict != "not allowed") == taken
    monkeypatch.setattr(entry, "error_bound", lambda self, problem: 3e-6)
    row = next(r for r in leanconv.explain(**LAYER, accuracy="standard").rows if r.name == "implicit_gemm")
    assert row.verdict != "not allowed"
    # Who is named is taken.
    assert leanconv.plan(**LAYER, algorithm="implicit_gemm", accuracy="exact").algorithm == "implicit_gemm"


@ENGINE
@given(cases())
def test_sums_of_one_order_have_the_same_bits(case: Case) -> None:
    results = {}
    for info in leanconv.algorithms(**case.plan_arguments):
        if info.applies and info.name in SAME_ORDER:
            results[info.name] = convolve(case, case.values, algorithm=info.name, threads=case.threads)
    first = results["direct"].tobytes()
    assert all(result.tobytes() == first for result in results.values()), list(results)
    assert case.plan("auto", case.threads, deterministic=True).algorithm in SAME_ORDER
    # Nor do they depend on the batch, whose last image is alone here, on other threads and under a limit.
    last = {name: value[-1:] if name in ("x", "residual") else value for name, value in case.values.items()}
    alone = convolve(case, last, threads=3 - min(case.threads, 2), memory_limit=0, deterministic=True)
    assert alone.tobytes() == results["direct"][-1:].tobytes()


# -- the model ---------------------------------------------------------------------------------------------------


@ENGINE
@given(cases())
def test_every_plan_has_a_time(case: Case) -> None:
    names = [i.name for i in leanconv.algorithms(**case.plan_arguments) if i.applies]
    for bound in (True, False):
        for entry in candidates(case.problem, names, Terms(case.threads, bound=bound)):
            assert 0 < entry.predicted_seconds < 10 and math.isfinite(entry.predicted_seconds)
            least = model.least_seconds(case.problem, algorithm_named(entry.name), case.threads)
            assert least <= entry.predicted_seconds * (1 + 1e-9), entry.name
            assert model.least_bytes(case.problem, algorithm_named(entry.name)) <= entry.needed_bytes
    for entry in candidates(case.problem, names, Terms(case.threads, 0)):
        assert model.least_bytes(case.problem, algorithm_named(entry.name)) <= entry.needed_bytes
    within = fastest_candidate(case.problem, names, Terms(case.threads, workspace=4096))
    assert within is not None and within.plan.workspace_bytes <= 4096 * within.threads


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_what_is_not_lowered_could_not_win(layout: str) -> None:
    # Winograd's and plain sums on either side, one thread faster than two or not, padding, strides, groups, the batch.
    layers: list[dict[str, Any]] = [
        {},
        {"size": 7, "channels": 256, "outputs": 256},
        {"size": 112, "channels": 3, "taps": 7, "stride": 2, "padding": 3},
        {"size": 14, "channels": 96, "outputs": 24, "taps": 1, "padding": 0},
        {"size": 14, "channels": 96, "groups": 96, "outputs": 96},
        {"size": 13, "channels": 24, "groups": 2, "taps": 5, "padding": 2, "batch": 3},
        {"size": 5, "channels": 8, "dilation": 2, "padding": 2, "batch": 9},
    ]
    for changes in layers:
        at = {"size": 28, "channels": 64, "outputs": 64, "taps": 3, "stride": 1, "padding": 1, "groups": 1, **changes}
        x_shape = (at.get("batch", 1), at["channels"], at["size"], at["size"])
        options = {name: at[name] for name in ("stride", "padding", "groups", "dilation") if name in at}
        asked = leanconv.plan(
            x_shape if layout == "NCHW" else (*x_shape[:1], *x_shape[2:], x_shape[1]),
            (at["outputs"], at["channels"] // at["groups"], at["taps"], at["taps"]),
            layout=layout,
            algorithm="direct",
            **options,
        ).problem
        names = [name for name in REGISTRY.weighed(asked) if algorithm_named(name).refusal(asked) is None]
        assert len(names) > 1
        for threads, limit in ((1, None), (2, 1 << 18), (8, None), (1, 0)):
            terms = Terms(threads, limit)
            every, first = candidates(asked, names, terms), fastest_candidate(asked, names, terms)
            assert first is not None
            assert (first.name, first.threads, first.needed_bytes) == (
                every[0].name,
                every[0].threads,
                every[0].needed_bytes,
            )
            for entry in every:
                least = model.least_seconds(asked, algorithm_named(entry.name), threads)
                assert least <= entry.predicted_seconds * (1 + 1e-9), entry.name


def test_the_model_sees_what_costs_time() -> None:
    def predicted(name: str, threads: int = 1, *, bound: bool = True, **changes: Any) -> float:
        plan = leanconv.plan(**{**LAYER, **changes}, algorithm=name, threads=threads)
        return model.seconds(plan, bound=bound)

    assert predicted("direct", x_shape=(4, 32, 28, 28)) > 3 * predicted("direct")
    assert predicted("direct", 2) < predicted("direct")
    assert predicted("direct", bound=False) > predicted("direct")
    assert predicted("im2row", layout="NHWC", x_shape=(1, 28, 28, 32)) > predicted(
        "direct", layout="NHWC", x_shape=(1, 28, 28, 32)
    )
    assert predicted("reference") > 20 * predicted("direct")
    # A channel too many fills one more vector.
    assert predicted("direct", w_shape=(49, 32, 3, 3)) > 1.05 * predicted("direct")
    # Depthwise layers leave most of each vector empty.
    depthwise = predicted("direct", w_shape=(32, 1, 3, 3), groups=32)
    assert depthwise > 3 * predicted("direct") / 48


def test_stores_of_whole_cache_lines_hide_behind_the_sums() -> None:
    known = figures.reference()
    for name, least, most in (("avx512", 1.0, 1.2), ("avx2", 1.3, 3.0)):
        host = replace(model.this_host(), target=TARGETS[name], l1=32 << 10, l2=1 << 20, l3=32 << 20)
        sums = {"multiply": 1e6}
        out = 1e6 / 16 * host.target.vector_bytes  # bytes of results of 16 products each
        alone, both = (model._phase(Cost(sums, (), writes), 1, host, known) for writes in ((), ((out, out),)))
        assert least < both / alone < most


def test_transposes_that_write_more_lines_of_a_set_than_there_are() -> None:
    """16 pixels of 4 KiB each do not fit the 12 ways of the first level of cache, 8 of them do."""
    for name, worse in (("avx512", True), ("avx2", False)):
        host = replace(model.this_host(), target=TARGETS[name], l1=48 << 10, l2=1 << 20, l3=32 << 20)
        copied = []
        for channels in (1008, 1024):
            layer = problem(x_shape=(1, channels, 14, 14), w_shape=(64, channels, 1, 1), padding=0)
            phases = REGISTRY["direct_band"].lower(layer, host, 1, None, {}).phases
            copied.append(sum(phase_cost(phase, host).counts.get("element", 0) for phase in phases))
        assert copied[0] == 0 and (copied[1] > 0) == worse


@pytest.mark.parametrize(
    ("channels", "stride", "gone"), [(64, 1, False), (512, 1, True), (512, 2, True), (512, 3, True)]
)
def test_lines_that_are_displaced_between_taps_are_counted(channels: int, stride: int, gone: bool) -> None:
    """Channels first: each channel's line is read again under the next tap, and more of them where rows are skipped."""
    host = replace(model.this_host(), target=TARGETS["avx512"], l1=48 << 10, l2=1 << 20, l3=32 << 20)
    more = {"w_shape": (32, channels, 3, 3), "stride": stride, "padding": 0}
    for layout, x_shape in (("NCHW", (1, channels, 28, 28)), ("NHWC", (1, 28, 28, channels))):
        (phase,) = REGISTRY["direct"].lower(problem(**more, x_shape=x_shape, layout=layout), host, 1, None, {}).phases
        cost = phase_cost(phase, host)
        assert cost is not None
        counted = gone and layout == "NCHW"
        assert (cost.counts.get("gone", 0) > cost.counts.get("apart", 0)) == counted


def test_a_kernel_that_nobody_counts_for_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = leanconv.plan(**LAYER, algorithm="direct", threads=1)
    known = model.seconds(plan)
    monkeypatch.setattr(model, "phase_cost", lambda phase, host: None)
    assert known < model.seconds(plan) < 10 * known


def test_figures_are_remembered_and_damaged_ones_are_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from leanconv.planning.records import Records, machine_key

    store = Records(tmp_path, "rw")
    monkeypatch.setattr(figures, "records", lambda: store)
    count = []
    monkeypatch.setattr(figures, "measure", lambda: count.append(1) or figures.Figures(50.0, 60.0, 40.0, 10.0))
    fresh = figures.figures.__wrapped__
    assert fresh() == fresh() == figures.Figures(50.0, 60.0, 40.0, 10.0) and len(count) == 1
    store.put(machine_key("figures"), {"figures": {"gflops": -1.0}})
    assert fresh().gflops == 50.0 and len(count) == 2
    monkeypatch.setattr(figures, "records", lambda: Records(tmp_path / "none", "ro"))
    assert not fresh().measured and len(count) == 2


def test_figures_that_look_slow_are_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from leanconv.planning.records import Records, machine_key

    store, now = Records(tmp_path, "rw"), [1000.0]
    monkeypatch.setattr(figures, "records", lambda: store)
    monkeypatch.setattr(figures.time, "time", lambda: now[0])
    busy, quiet = figures.Figures(90.0, 95.0, 70.0, 6.0), figures.Figures(100.0, 90.0, 75.0, 24.0)
    answers = [busy, quiet]
    monkeypatch.setattr(figures, "measure", lambda: answers.pop(0))
    fresh = figures.figures.__wrapped__
    assert fresh() == fresh() == busy and answers == [quiet]  # not at once: what disturbs may go on
    now[0] += 100
    assert fresh() == fresh() == figures.Figures(100.0, 95.0, 75.0, 24.0)  # the fastest of both
    now[0] += 100
    assert fresh().memory == 24.0 and not answers
    # A machine that is like that is not measured for ever, and not at all where nothing may be written.
    store.put(machine_key("figures"), {"figures": figures.asdict(busy)})
    monkeypatch.setattr(figures, "records", lambda: Records(tmp_path, "ro"))
    assert fresh() == busy
    monkeypatch.setattr(figures, "records", lambda: store)
    monkeypatch.setattr(figures, "measure", lambda: answers.append(busy) or busy)
    for _ in range(20):
        now[0] += 100
        assert fresh() == busy
    assert len(answers) == 5


def test_choices_of_the_model_are_quick_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = leanconv.plan(**LAYER, threads=2)
    for weighing in ("candidates", "fastest_candidate"):
        monkeypatch.setattr(choice, weighing, lambda *a, **k: pytest.fail("asked again"))
    again = leanconv.plan(**LAYER, threads=2)
    assert (again.algorithm, again.threads) == (first.algorithm, first.threads) and again is not first


def test_what_was_decided_is_found_by_other_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("LEANCONV_CACHE_DIR", str(tmp_path))
    script = f"""
import sys, leanconv
plan = leanconv.plan(**{LAYER!r}, threads=2, memory_limit="1MiB")
print(plan.algorithm, plan.threads, plan.extra_bytes, "leanconv.planning.model" in sys.modules)
"""
    *first, weighed = run_python(script).split()
    *again, weighed_again = run_python(script).split()
    assert first == again and (weighed, weighed_again) == ("True", "False")


def test_decisions_depend_on_the_machine_and_on_added_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (leanconv.plan(**LAYER).problem, "auto", "standard", False, 1, None, True)
    key = decisions._key(asked)
    assert key == decisions._key(asked) != decisions._key((*asked[:4], 2, None, True))
    monkeypatch.setattr(figures, "figures", lambda: figures.Figures(50.0, 60.0, 40.0, 10.0))
    assert decisions._key(asked) != key
    monkeypatch.setattr(decisions, "_known", {})
    monkeypatch.setattr(decisions, "_disk", lambda: pytest.fail("the disk knows nothing of algorithms of a program"))
    monkeypatch.setitem(decisions.REGISTRY._added, "more", decisions.REGISTRY["direct"])
    assert decisions.recalled(asked) is None
    decisions.keep(asked, ("more", 1))
    assert decisions.recalled(asked) == ("more", 1)


# -- lock files --------------------------------------------------------------------------------------------------


def test_lock_files(tmp_path: Any) -> None:
    path = tmp_path / "model.lock"
    with leanconv.record_plans() as pins:
        first = leanconv.plan(**LAYER, threads=1, algorithm="im2row_strip", parameters={"strip": 3})
        leanconv.plan(**LAYER, threads=2)
    assert pins.save(path) == 2
    with leanconv.pinned(path):
        # What is asked for now does not matter: the file decides.
        plan = leanconv.plan(**LAYER, threads=1)
        assert plan.algorithm == "im2row_strip" and dict(plan.parameters) == dict(first.parameters)
        with pytest.raises(CacheError, match="pins no plan"):
            leanconv.plan(**LAYER, threads=3)
    with leanconv.pinned(path, strict=False):
        assert leanconv.plan(**LAYER, threads=3).threads <= 3
    text = path.read_text()
    path.write_text(text.replace("im2row_strip", "gone"))
    with leanconv.pinned(path), pytest.raises(CacheError, match="does not apply"):
        leanconv.plan(**LAYER, threads=1)
    for bad in ("", "[]", "{}", text.replace("leanconv lock 1", "other"), text.replace('"threads": 1', '"threads": 0')):
        path.write_text(bad)
        with pytest.raises(CacheError), leanconv.pinned(path):
            pass
    with pytest.raises(CacheError), leanconv.pinned(tmp_path / "missing"):
        pass


# -- explanations ------------------------------------------------------------------------------------------------


def test_explanations() -> None:
    found = leanconv.explain(**LAYER, memory_limit="64KiB", threads=2)
    assert found.flops == 2 * 48 * 28 * 28 * 32 * 9
    assert found.compulsory_bytes == 4 * (32 * 784 + 48 * 32 * 9 + 48 * 784)
    assert found.intensity == pytest.approx(found.flops / found.compulsory_bytes)
    assert 0 < found.roofline_gflops <= found.peak_gflops
    assert [row.name for row in found.rows if row.verdict == "chosen"] == [found.plan.algorithm]
    assert found.rows[0].verdict == "chosen"
    assert {row.name for row in found.rows} == {a.name for a in REGISTRY}
    by_name = {row.name: row for row in found.rows}
    assert by_name["pointwise"].verdict == "not applicable" and "9 taps" in by_name["pointwise"].reason
    assert by_name["winograd_f4"].verdict == "over the limit" and by_name["winograd_f4"].needed_bytes > 64 << 10
    assert by_name["im2col"].verdict == "not allowed" and by_name["im2col"].needed_bytes > 64 << 10
    assert by_name["reference"].verdict == "not allowed"
    needed = [offer.needed_bytes for offer in found.offers]
    assert needed == sorted(needed) and all(n > 64 << 10 for n in needed)
    speeds = [offer.speedup for offer in found.offers]
    assert speeds == sorted(speeds) and all(s > 1 for s in speeds)
    text = str(found)
    for word in ("MFLOP", "FLOP/B", "64.0 KiB", "chosen", found.plan.steps[0], "pointwise takes one"):
        assert word in text
    free = leanconv.explain(**LAYER)
    assert free.offers == () and not any(row.verdict == "over the limit" for row in free.rows)


def test_the_lesson() -> None:
    from leanconv.planning.lesson import lesson

    found = lesson(problem(x_shape=(1, 8, 10, 10), w_shape=(16, 8, 3, 3)))
    assert found.redundancy == 9 and found.matrix_bytes == 9 * found.image_bytes == 9 * 8 * 100 * 4
    assert found.loop_lines == 8 * 3 and found.loop_intensity == 0.25 < found.tile_intensity
    assert [rate.name for rate in found.rates][:4] == ["reference", "im2col", "im2row_strip", "direct"]
    assert found.counters_missing or all(rate.counters for rate in found.rates)
    assert "times the loops" in str(found) and all(rate.gflops > 0 for rate in found.rates)


# -- networks ----------------------------------------------------------------------------------------------------


def small_network() -> list[leanconv.Problem]:
    return [
        problem(),
        problem(x_shape=(1, 48, 28, 28), w_shape=(20, 48, 1, 1), padding=0),
        problem(x_shape=(1, 20, 28, 28), w_shape=(30, 20, 3, 3)),
        problem(),
    ]


def test_networks_share_one_workspace() -> None:
    layers = small_network()
    free = leanconv.plan_network(layers, threads=1)
    assert free.workspace_bytes == max(step.plan.workspace_bytes for step in free.steps)
    assert free.packed_weight_bytes == sum(step.plan.packed_weight_bytes for step in free.steps)
    assert free.predicted_seconds == pytest.approx(sum(step.predicted_seconds for step in free.steps))
    assert [step.plan.problem for step in free.steps] == layers
    assert str(free).count("\n") >= 4 + len(layers)
    for limit in (free.needed_bytes, 1 << 16, 1 << 14, 1 << 12, 0):
        found = leanconv.plan_network(layers, threads=1, memory_limit=limit)
        assert found.needed_bytes <= limit
        assert found.predicted_seconds >= free.predicted_seconds * 0.999
        assert len({id(step.plan.arena) for step in found.steps}) == 1
        for step in found.steps[:2]:
            rng = np.random.default_rng(0)
            x = rng.standard_normal(step.plan.problem.x_shape).astype(np.float32)
            w = rng.standard_normal(step.plan.problem.w_shape).astype(np.float32)
            assert np.isfinite(step.plan.bind(w)(x)).all()
        assert found.steps[0].plan.arena.peak_bytes <= found.workspace_bytes
    points = leanconv.network_frontier(layers, threads=1)
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert [p[1] for p in points] == sorted((p[1] for p in points), reverse=True)
    assert points[-1] == (free.needed_bytes, pytest.approx(free.predicted_seconds))
    assert leanconv.plan_network([]).steps == ()
    with pytest.raises(ArgumentTypeError):
        leanconv.plan_network(["layer"])  # type: ignore[list-item]


def test_a_network_of_one_layer_uses_its_limit_as_the_layer_does() -> None:
    layer = {"x_shape": (1, 28, 28, 64), "w_shape": (64, 64, 3, 3), "padding": 1, "layout": "NHWC", "threads": 1}
    for limit in (1000, 60_000, 100_000, 256_000, 700_000, 1 << 21):
        alone = leanconv.plan(**layer, memory_limit=limit)
        together = leanconv.plan_network([alone], threads=1, memory_limit=limit)
        assert together.needed_bytes <= limit and together.predicted_seconds <= model.seconds(alone)


def test_the_path_through_a_chain_is_the_shortest() -> None:
    """Against all combinations, with random times."""
    draw = random.Random(0)
    layers = [(str(i), p) for i, p in enumerate(small_network())]
    for _ in range(50):
        rows = [
            [
                network.LayerOption(None, layout, 0, draw.randrange(4), draw.random() * 1e-4)  # type: ignore[arg-type]
                for layout in network.LAYOUTS
                for _ in range(2)
            ]
            for _ in layers
        ]
        price = draw.choice([0.0, 1e-5])

        def cost(chosen: Any, price: float = price) -> float:
            return layer_choices.total_seconds(layers, list(chosen), "NCHW", True) + price * sum(
                o.weights for o in chosen
            )

        best = min(map(cost, itertools.product(*rows)))
        assert cost(layer_choices.cheapest_path(layers, rows, price, True, "NCHW")) == pytest.approx(best)


def test_chains_choose_layouts() -> None:
    found = leanconv.plan_network(small_network(), threads=1, chain=True)
    assert {step.layout for step in found.steps} <= set(network.LAYOUTS)
    fixed = leanconv.plan_network(small_network(), threads=1)
    assert found.predicted_seconds <= fixed.predicted_seconds * 1.0001
    layout = "NCHW"
    for step in found.steps:
        assert (step.conversion_seconds > 0) == (step.layout != layout)
        layout = step.layout
