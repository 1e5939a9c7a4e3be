"""Shift convolution: every channel is moved by its own number of pixels, then a 1x1 layer mixes them.

Idea        A thread copies some output rows at a time, every channel from where its shift says, and the
            register-tiled core multiplies them while they are in the cache; there is no shifted image.
            Under a low memory limit the core reads the image in place, through a table of shifts.
Workspace   C * strip elements a thread; none in place.
Good for    Networks trained with shifts in place of windows, channels of one shift side by side.
Bad for     Channels last with a shift of its own for every channel: they are copied one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar

import numpy as np

from leanconv.algorithms import columns
from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import Blocking
from leanconv.algorithms.dense import (
    CoreInput,
    core_phase,
    dense_phase,
    image_input,
    output_refusal,
    pack_weights,
    store_columns,
)
from leanconv.algorithms.lowered import fitting_strips, matrix_steps, patch_fields, strip_pixels
from leanconv.arrays import Array, address_of
from leanconv.classes import dataclass, replace
from leanconv.host import Host
from leanconv.kernels.image import Rows
from leanconv.kernels.shift import ShiftedRows
from leanconv.kernels.shift_inplace import Shifted
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem


@dataclass(frozen=True)
class Shift(Algorithm):
    """Shift convolution with given shifts; not in the registry, because a problem alone does not describe it.

    `shifts` are (rows, columns) of each channel; the problem is that of the 1x1 layer.
    """

    shifts: tuple[tuple[int, int], ...]
    pad_mode: str
    table: Array = field(init=False, compare=False, repr=False)
    runs: Array = field(init=False, compare=False, repr=False)

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "shift convolution: channels moved by whole pixels, then mixed"
    paper: ClassVar[str] = (
        "B. Wu et al.: Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions, CVPR 2018, "
        "arXiv:1711.08141"
    )

    def __post_init__(self) -> None:
        """The tables that kernels read; they live as long as the algorithm, which its plans hold."""
        object.__setattr__(self, "table", np.array(self.shifts, np.int64))
        groups = [(shift, len(list(same))) for shift, same in itertools.groupby(self.shifts)]
        first = itertools.accumulate((count for _, count in groups), initial=0)
        runs = [(*shift, channel, count) for (shift, count), channel in zip(groups, first, strict=False)]
        object.__setattr__(self, "runs", np.array(runs, np.int64))

    def refusal(self, problem: Problem) -> str | None:
        """A 1x1 layer of one group whose output the core can store into."""
        if problem.taps != 1 or problem.groups != 1 or problem.ndim != 2:
            return "a shift is followed by a two-dimensional 1x1 layer of one group"
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: strips of whole rows, or the image in place if the workspace does not hold one."""
        p, rows = problem, not store_columns(problem)
        heights, cut = fitting_strips(p, host, *strip_pixels(p, host, threads, workspace, None, whole_rows=True))
        scratch = Buffer("scratch", cut.block * p.in_channels * p.itemsize, per_thread=True)
        if workspace is not None and arena_bytes((scratch,), threads) > workspace:
            return self._in_place(p, host, threads)
        steps = matrix_steps(p, cut.block, rows=rows)
        fields = patch_fields(p, steps) | {"x_n": p.x_strides[0] * p.itemsize, "x_g": 0, "run_count": len(self.runs)}
        fields |= {"x_row": steps["m_pixel"], "x_c": steps["m_c"]}
        stage = ShiftedRows(
            host.target,
            p.dtype,
            p.kernel,
            p.stride,
            p.dilation,
            p.pad_low,
            True,
            self.pad_mode,
            rows,
            p.x_strides[1] == 1,
            rows,
            False,
            len(self.runs) == p.in_channels,
        )
        source = CoreInput(Rows(None if rows else p.itemsize), (1,), p.in_channels, rows, False, fields, "x", stage)
        turned = columns.applies(p, source)
        if turned:
            cut = Blocking(cut.block, cut.blocks, columns.heights(p, host)[1])
            phase, parameters = columns.column_phase(p, host, source, cut)
        else:
            phase, parameters = dense_phase(p, host, source, heights, cut)
        return Lowering(
            phases=(phase,),
            workspace=(scratch,),
            packing=columns.pack_rows(p, host) if turned else pack_weights(p, host),
            steps=(
                f"each thread copies the shifted channels of {cut.block} output pixels into its own memory",
                f"core {parameters['tile']} multiplies them while they are in the cache",
            ),
            parameters={**parameters, "strip": cut.block},
            addresses={"runs": address_of(self.runs)},
        )

    def _in_place(self, problem: Problem, host: Host, threads: int) -> Lowering:
        """The core over the image in place."""
        p = problem
        source = image_input(p)
        fields = dict(source.fields)
        for d in range(2):
            least, most = int(self.table[:, d].min()), int(self.table[:, d].max())
            fields[f"low{d}"] = -(min(0, least) // p.stride[d])
            fields[f"high{d}"] = max(0, -(-(p.in_size[d] - max(0, most)) // p.stride[d]))
        width = source.source.width_bytes if hasattr(source.source, "width_bytes") else None
        shifted = Shifted(p.stride, p.dilation, p.pad_low, True, self.pad_mode, width)
        source = replace(source, source=shifted, kernel=(1,), unit_channel=False, merged=False, fields=fields)
        phase, parameters = core_phase(p, host, threads, source)
        return Lowering(
            phases=(phase,),
            packing=pack_weights(p, host),
            steps=(f"core {parameters['tile']} reads every channel of the image where its shift says",),
            parameters=parameters,
            addresses={"shifts": address_of(self.table)},
        )
