"""What the steps of a compiled network take: bytes known beforehand, and time when asked for."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.network.arrangement import Arrangement, live
from leanconv.network.choose import Choice
from leanconv.network.native import Linked, LinkedStep, NativeJob

if TYPE_CHECKING:
    from leanconv.network.compile import CompiledNetwork


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step.

    Attributes:
        name: of its node, or of a copy that no node asks for.
        op: its operator.
        how: an algorithm, what the kernel is, or "numpy".
        reason: why it is left to NumPy; `""` if it is not.
        shape: of its output.
        live_bytes: values in the arena while it runs.
        workspace_bytes: its workspace, also in the arena.
        kept_bytes: packed weights and tables.
        predicted_seconds: by the cost model; 0 for NumPy.
    """

    name: str
    op: str
    how: str
    reason: str
    shape: tuple[int, ...]
    live_bytes: int
    workspace_bytes: int
    kept_bytes: int
    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Runs measured step by step.

    Attributes:
        outputs: of the last run.
        steps: what ran.
        seconds: of each step, the median of the runs.
    """

    outputs: dict[str, Array]
    steps: list[StepInfo]
    seconds: list[float]

    def __str__(self) -> str:
        """A table, the steps in order."""
        from leanconv.sizes import format_bytes

        total = sum(self.seconds) or 1.0
        lines = [f"{'ms':>9} {'share':>6}  {'live':>10} {'workspace':>10}  step"]
        for step, seconds in zip(self.steps, self.seconds, strict=True):
            lines.append(
                f"{1e3 * seconds:9.3f} {seconds / total:6.1%}  {format_bytes(step.live_bytes):>10} "
                f"{format_bytes(step.workspace_bytes):>10}  {step.name} ({step.op}, {step.how})"
            )
        return "\n".join([*lines, f"{1e3 * total:9.3f}  total"])

    def trace(self) -> str:
        """The run as JSON in the format of Chrome's trace viewer and of Perfetto."""
        events: list[dict[str, Any]] = []
        start = 0.0
        for step, seconds in zip(self.steps, self.seconds, strict=True):
            common = {"pid": 1, "tid": 1, "ts": 1e6 * start}
            details = {"how": step.how, "shape": list(step.shape), "workspace_bytes": step.workspace_bytes}
            events.append(
                {"name": step.name, "cat": step.op, "ph": "X", "dur": 1e6 * seconds, "args": details, **common}
            )
            memory = {"values": step.live_bytes, "workspace": step.workspace_bytes}
            events.append({"name": "arena bytes", "ph": "C", "args": memory, **common})
            start += seconds
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def describe(found: Arrangement, choice: Choice, threads: int) -> list[StepInfo]:
    """What runs."""
    result = []
    for step, option, alive in zip(found.steps, choice.options, live(found), strict=True):
        out = next(place for place in step.call.outputs if place is not None)
        workspace = 0 if option is None else option.workspace_bytes(threads)
        kept, seconds = (0, 0.0) if option is None else (option.kept_bytes, option.seconds)
        how = "numpy" if option is None else option.name
        result.append(StepInfo(step.name, step.op, how, step.reason, out.shape, alive, workspace, kept, seconds))
    return result


def measure(network: CompiledNetwork, inputs: Mapping[str, Array], repeat: int) -> Profile:
    """Run each step as a program of its own."""
    parts = [
        Linked([step], network.threads, network._index) if isinstance(step, LinkedStep) else step
        for step in network._linked
    ]
    given, results = network._checked(inputs), network._results(inputs, None)
    times: list[list[float]] = [[] for _ in parts]
    with network._contexts.lent() as context:
        context.place(given, results)
        addresses = context.addresses()
        jobs = [NativeJob(part) if isinstance(part, Linked) else part for part in parts]
        for _ in range(repeat):
            for job, taken in zip(jobs, times, strict=True):
                start = time.perf_counter()
                if isinstance(job, NativeJob):
                    job.run(context.bases)
                else:
                    job.run(addresses)
                taken.append(time.perf_counter() - start)
    return Profile(results, network.steps, [statistics.median(taken) for taken in times])
