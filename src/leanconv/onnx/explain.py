"""What a model would cost, step by step, without running it: `leanconv explain model.onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import MemoryLimitError
from leanconv.host import this_host
from leanconv.network.choose import Choice, plan_network
from leanconv.network.graph import Graph, ValueType
from leanconv.network.profile import StepInfo, describe
from leanconv.network.steps.base import Setting
from leanconv.sizes import format_bytes
from leanconv.threads import get_num_threads

if TYPE_CHECKING:
    from leanconv.onnx.session import Session

_BAR = 20  # characters of the memory timeline
_POINTS = 12  # of the frontier
_AMPLE = 1 << 62  # bytes; without any limit large weights would be avoided


@dataclass(frozen=True, slots=True)
class ModelExplanation:
    """A model planned for given shapes.

    Attributes:
        inputs: name and shape of each.
        outputs: likewise.
        steps: what would run, in order, with the bytes alive at each.
        peak_bytes: of the arena: values between the layers, and workspace.
        kept_bytes: packed weights and tables.
        extra_bytes: what of these is beyond the plain weights.
        memory_limit: what peak and extra bytes together may take; None for any number.
        predicted_seconds: of a run, by the cost model; steps of NumPy are not predicted.
        frontier: bytes (peak and extra) and predicted seconds at the limits worth knowing, most bytes first.
        threads: of a run.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    steps: list[StepInfo]
    peak_bytes: int
    kept_bytes: int
    extra_bytes: int
    memory_limit: int | None
    predicted_seconds: float
    frontier: list[tuple[int, float]]
    threads: int

    def data(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)

    def __str__(self) -> str:
        """A table of the steps with a timeline of memory, sums, and the frontier."""
        most = max((step.live_bytes + step.workspace_bytes for step in self.steps), default=0) or 1
        width = min(max((len(step.name) for step in self.steps), default=4), 40)
        lines = [
            f"{'step':<{width}} {'operator':<20} {'how':<22} {'output':>18} {'ms':>8} {'kept':>10} {'live':>10} "
            f"{'workspace':>10}  memory"
        ]
        for step in self.steps:
            values, work = (round(_BAR * n / most) for n in (step.live_bytes, step.workspace_bytes))
            shape, how = "x".join(map(str, step.shape)), step.how
            predicted = f"{1e3 * step.predicted_seconds:8.3f}" if step.predicted_seconds else f"{'':>8}"
            lines.append(
                f"{step.name[:width]:<{width}} {step.op:<20} {how:<22} {shape:>18} {predicted} "
                f"{format_bytes(step.kept_bytes):>10} {format_bytes(step.live_bytes):>10} "
                f"{format_bytes(step.workspace_bytes):>10}  {'#' * values}{'+' * work}"
            )
        lines += [
            "",
            f"peak {format_bytes(self.peak_bytes)} (# values between the layers, + workspace)   "
            f"packed weights {format_bytes(self.kept_bytes)}, {format_bytes(self.extra_bytes)} beyond the plain ones",
            f"predicted {1e3 * self.predicted_seconds:.2f} ms on {self.threads} threads",
        ]
        numpy = sorted({step.op for step in self.steps if step.how == "numpy"})
        if numpy:
            lines.append(f"left to NumPy, and not predicted: {', '.join(numpy)}")
        lines += ["", "memory limit    predicted"]
        lines += [f"{format_bytes(nbytes):>12} {1e3 * seconds:9.2f} ms" for nbytes, seconds in self.frontier]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw memory over the steps, and time against memory.

        Args:
            path: a .png, .svg or .pdf file.

        Raises:
            PlotError: matplotlib is missing, or the file's format is not known.
        """
        from leanconv.bench.plot import check, save

        check(Path(path))
        from matplotlib.figure import Figure

        figure = Figure(figsize=(min(max(8.0, 2 + 0.12 * len(self.steps)), 24.0), 7.0), layout="constrained")
        upper, lower = figure.subplots(2, 1)
        places, mib = range(len(self.steps)), 1 << 20
        values = [step.live_bytes / mib for step in self.steps]
        upper.bar(places, values, width=1.0, label="values between the layers")
        upper.bar(places, [s.workspace_bytes / mib for s in self.steps], width=1.0, bottom=values, label="workspace")
        upper.axhline(self.peak_bytes / mib, color="0.5", lw=1, ls="--", label="arena")
        upper.set(xlabel="step", ylabel="MiB", ylim=(0, None))
        upper.legend(frameon=False)
        lower.plot(
            [n / mib for n, _ in self.frontier], [1e3 * s for _, s in self.frontier], marker="o", drawstyle="steps-pre"
        )
        lower.set(xlabel="memory limit, MiB", ylabel="predicted ms", ylim=(0, None))
        save(figure, path)


def explain_model(
    session: Session, shapes: Mapping[str, tuple[int, ...]], *, threads: int | None = None
) -> ModelExplanation:
    """Plan a model for given shapes; nothing is compiled, packed or run.

    Args:
        session: the model, with its limit and threads.
        shapes: of each input.
        threads: most threads; those of the session, or `get_num_threads()`, if None.

    Raises:
        ModelError: a node breaks a rule of its operator with these shapes, or shapes depend on values of inputs.
        MemoryLimitError: nothing fits the session's limit; says the least that would do.
    """
    ports = {port.name: port for port in session.inputs}
    graph = session.graph({name: ValueType(tuple(shape), str(ports[name].dtype)) for name, shape in shapes.items()})
    count = threads or session.threads or get_num_threads()
    limit = session.memory_limit
    setting = Setting(this_host(), count, limit is not None, "auto", session.accuracy, False)
    found, choice = plan_network(graph, setting, limit)
    return ModelExplanation(
        inputs={name: type_.shape for name, type_ in graph.inputs.items()},
        outputs={name: graph.types[name].shape for name in graph.outputs},
        steps=describe(found, choice, count),
        peak_bytes=choice.arena.nbytes,
        kept_bytes=sum(option.kept_bytes for option in choice.options if option is not None),
        extra_bytes=choice.extra_bytes,
        memory_limit=limit,
        predicted_seconds=choice.seconds,
        frontier=_frontier(graph, replace(setting, limited=True)),
        threads=count,
    )


def _frontier(graph: Graph, setting: Setting) -> list[tuple[int, float]]:
    """Ever lower limits, down to the least that does, and the time of each."""
    points: list[tuple[int, float]] = []
    limit = _AMPLE
    while len(points) < _POINTS:
        try:
            choice: Choice = plan_network(graph, setting, limit)[1]
        except MemoryLimitError as error:
            if not points or error.needed >= points[-1][0]:
                break
            choice = plan_network(graph, setting, error.needed)[1]
            limit = 0
        points.append((choice.needed_bytes, choice.seconds))
        if limit == 0:
            break
        limit = choice.needed_bytes * 3 // 4
    return points
