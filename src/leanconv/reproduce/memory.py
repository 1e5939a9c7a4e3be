"""Checks of what papers claim about memory: judged by declared bytes, which are exact and need no measurement."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leanconv.bench.report import PEER, Row
from leanconv.problem import Problem
from leanconv.reproduce.checks import EXCEEDED, NOT, NOT_HERE, REPRODUCED, TOLERANCE, Check, Measured, Outcome
from leanconv.sizes import format_bytes

# Bytes by which a buffer may be larger than what it holds: it begins and ends with a cache line.
_FILLING = 128


@dataclass(frozen=True)
class Saving(Check):
    """How much less memory a layer takes in all (image, weights, output, workspace), averaged over the layers.

    Bytes are those of one image, which papers that lower a batch at once multiply by its size; `images` is that size,
    over which the weights are shared.

    Attributes:
        ours: the algorithm.
        over: the algorithm it is compared with; its workspace, too, is that of one image.
        expected: the claimed part, such as 0.416.
        beside: the library that the paper compares with; its measured memory is told, too, if it was there.
    """

    ours: str
    over: tuple[str, ...]
    expected: float
    images: int
    layout: str
    experiment: str = "main"
    beside: str = "torch_im2col"

    @property
    def needs(self) -> tuple[str, ...]:
        """The algorithm that the claim is about."""
        return (self.ours,)

    def judge(self, measured: Measured) -> Outcome:
        """Average over the layers that both ran on."""
        ours = _rows(measured, self.ours, self.layout)
        for name in self.over:
            over = _rows(measured, name, self.layout)
            layers = [layer for layer in ours if layer in over]
            if layers:
                break
        else:
            return Outcome(NOT_HERE, why=f"{self.ours} and {' or '.join(self.over)} ran on no layer in common")
        savings = [1 - self._total(measured, ours[layer]) / self._total(measured, over[layer]) for layer in layers]
        value = statistics.fmean(savings)
        why = f"against {name}, declared bytes an image, weights shared by {self.images} images, {len(layers)} layers"
        verdict = NOT if value < self.expected * (1 - TOLERANCE) else REPRODUCED
        why += self._measured(measured)
        return Outcome(EXCEEDED if value > self.expected * (1 + TOLERANCE) else verdict, f"{-value:+.1%}", why)

    def _measured(self, measured: Measured) -> str:
        """Return the same by the measured rise of memory, batch as it was run, against the other library's."""
        ours = _rows(measured, self.ours, self.layout)
        savings = []
        for row in measured.report.rows:
            own = ours.get(row.layer)
            if row.algorithm == self.beside and own and own.extra_peak_bytes is not None and row.extra_peak_bytes:
                problem = measured.problems[row.layer]
                arrays = problem.x_bytes + problem.out_bytes + problem.w_bytes
                savings.append(1 - (arrays + own.extra_peak_bytes) / (arrays + row.extra_peak_bytes))
        if not savings:
            return ""
        return f"; measured against {self.beside} as run: {-statistics.fmean(savings):+.1%} on {len(savings)} layers"

    def _total(self, measured: Measured, row: Row) -> float:
        problem = measured.problems[row.layer]
        arrays = (problem.x_bytes + problem.out_bytes) / problem.batch
        return arrays + row.workspace_bytes + problem.w_bytes / self.images


@dataclass(frozen=True)
class Smaller(Check):
    """How many times smaller the workspaces of some layers are in sum than those of another algorithm."""

    ours: str
    over: str
    expected: float
    layout: str
    experiment: str = "main"

    @property
    def needs(self) -> tuple[str, ...]:
        """The algorithm that the claim is about."""
        return (self.ours,)

    def judge(self, measured: Measured) -> Outcome:
        """Compare the sums."""
        ours, over = (_rows(measured, name, self.layout) for name in (self.ours, self.over))
        layers = [layer for layer in ours if layer in over]
        sums = [sum(rows[layer].workspace_bytes for layer in layers) for rows in (ours, over)]
        if not layers or not sums[0]:
            return Outcome(NOT_HERE, why=f"{self.ours} and {self.over} ran on no layer in common")
        value = sums[1] / sums[0]
        why = f"{format_bytes(sums[1])} of {self.over}, {format_bytes(sums[0])} of {self.ours}, {len(layers)} layers"
        verdict = NOT if value < self.expected * (1 - TOLERANCE) else REPRODUCED
        return Outcome(EXCEEDED if value > self.expected * (1 + TOLERANCE) else verdict, f"{value:.2f} x", why)


@dataclass(frozen=True)
class Workspace(Check):
    """That the workspace of a call is what a formula says, or less, on every layer.

    Attributes:
        ours: the algorithm.
        formula: bytes of a problem, for one image.
    """

    ours: str
    formula: Callable[[Problem], float]
    layout: str | None = None
    experiment: str = "main"

    @property
    def needs(self) -> tuple[str, ...]:
        """The algorithm that the claim is about."""
        return (self.ours,)

    def judge(self, measured: Measured) -> Outcome:
        """Compare on every layer; what fills a buffer up to cache lines is not counted."""
        rows = _rows(measured, self.ours, self.layout)
        allowed = {name: self.formula(measured.problems[name]) for name in rows}
        used = {name: max(row.workspace_bytes - _FILLING, 0) for name, row in rows.items()}
        if not rows:
            return Outcome(NOT_HERE, why=f"{self.ours} ran on no layer")
        parts = {name: row.workspace_bytes / allowed[name] for name, row in rows.items()}
        largest = max(parts, key=parts.__getitem__)
        mean = statistics.fmean(parts.values())
        found = f"{mean:.2f} of it"
        most = f"{parts[largest]:.2f}, {rows[largest].workspace_bytes} B"
        why = f"mean of {len(parts)} layers; the most on {largest}: {most}"
        if any(used[name] > 1.01 * allowed[name] for name in rows):
            return Outcome(NOT, found, why)
        return Outcome(EXCEEDED if mean < 1 - TOLERANCE else REPRODUCED, found, why)


def _rows(measured: Measured, name: str, layout: str | None) -> Mapping[str, Row]:
    """Return an algorithm's timed rows by layer; those of the first layout that ran, if any will do."""
    rows: dict[str, Row] = {}
    for row in measured.report.rows:
        if row.algorithm == name and row.kind != PEER and row.seconds and layout in (None, row.layout):
            rows.setdefault(row.layer, row)
    return rows
