"""MEC's twin along the other dimension: rows of the kernel are laid out, and each column of the output is a matrix.

Idea        the window tensor of im2win, [P][W][R][C], multiplied as MEC multiplies its own: the windows of one output
            column, one in each row of the tensor, are the rows of a matrix whose rows lie W * R * C elements apart
Workspace   N * P * W * R * C elements (W with padding), the batch in one tensor
Good for    channels last, kernels wider than their stride, many output rows
Bad for     few output rows; neighbouring windows of a row share most of their elements and are read apart: see im2win

    image        tensor [P][W][R][C], 2 x 2 taps, one channel
    a b c d      row 0   | a e b f c g d h |      column 0 of the output: a e b f of one row, e i f j of the next
    e f g h          1   | e i f j g k h l |
    i j k l
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.batchjoin import with_images
from leanconv.algorithms.blocking import blocking, panels_of, tile_heights
from leanconv.algorithms.dense import CoreInput, dense_phase, even_stride, output_refusal, pack_weights, store_columns
from leanconv.algorithms.mec import PAPER
from leanconv.algorithms.windowed import stage_phase, term_order
from leanconv.algorithms.windowtensor import TENSOR, Tensor, runs_of
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.image import Rows
from leanconv.memory import Buffer
from leanconv.problem import Problem


class MecRows(Algorithm):
    """MEC along rows."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "mec_rows"
    title: ClassVar[str] = "MEC along rows: a matrix for each column of the output"
    paper: ClassVar[str] = PAPER + " (the twin: mec-row-partition in triNNity's list)"

    def refusal(self, problem: Problem) -> str | None:
        """Outputs with channels last whose rows are evenly spaced, over all images."""
        reason = output_refusal(problem)
        if reason is not None:
            return reason
        if store_columns(problem):
            return "a column of the output has neither its channels nor its pixels adjacent in memory"
        p = with_images(problem)
        for name, strides in (("output", p.out_strides), ("residual", p.residual_strides)):
            if strides is not None and even_stride(strides[2:-1], p.out_size[:-1]) is None:
                return f"the {name}'s rows are not evenly spaced in memory"
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases: copy, then the core column by column."""
        p = with_images(replace(problem, batch=max(1, problem.batch)))
        slide = p.ndim - 1
        tensor = Tensor.of(p, slide)
        runs, depth = runs_of(p, tensor)
        source = CoreInput(
            source=Rows(None),
            kernel=(runs,),
            channels=depth,
            unit_channel=True,
            merged=False,
            fields={
                "x_n": p.stride[slide] * tensor.steps[slide],
                "x_g": tensor.nbytes,
                "x_row": tensor.extents[slide] * tensor.steps[slide],
                "tap0": p.dilation[slide] * tensor.steps[slide],
            },
            buffer=TENSOR,
        )
        column = _column(p)
        rows = column.out_size[0]
        heights = tile_heights(rows, host, panels_of(p, host))
        cut = blocking(column, host, threads, heights, depth * runs * p.itemsize)
        core, parameters = dense_phase(column, host, source, heights, cut)
        # Panels of weights outermost: each is fetched once, and all columns pass by.
        fields = dict(core.fields)
        fields |= {"b_div": 1, "n_div": cut.blocks, "g_div": cut.blocks * column.batch}
        fields["k_div"] = cut.blocks * column.batch * p.groups
        phases = (stage_phase(p, host, threads, tensor, 0), replace(core, fields=fields))
        return Lowering(
            phases if problem.batch else (),
            (Buffer(TENSOR, p.groups * tensor.nbytes if problem.batch else 0),),
            pack_weights(problem, host, term_order(problem, problem.ndim - 1)),
            (
                f"MEC: copy all images into a window tensor of {' x '.join(map(str, tensor.extents))} entries"
                f" of {p.groups * tensor.entry}",
                f"core {parameters['tile']} multiplies {column.batch} matrices of {rows} x {depth * runs},"
                " one for each column of the output",
            ),
            parameters,
        )


def _column(problem: Problem) -> Problem:
    """What the core is to do: as many images as the output has columns, with one row of pixels each."""
    p = problem
    rows = math.prod(p.out_size[:-1])

    def turned(strides: tuple[int, ...]) -> tuple[int, ...]:
        step = even_stride(strides[2:-1], p.out_size[:-1])
        assert step is not None
        return (strides[-1], strides[1], step)

    return replace(
        p,
        ndim=1,
        batch=p.out_size[-1],
        in_size=(rows + p.taps - 1,),
        kernel=(p.taps,),
        stride=(1,),
        dilation=(1,),
        pad_low=(0,),
        pad_high=(0,),
        out_strides=turned(p.out_strides),
        residual_strides=None if p.residual_strides is None else turned(p.residual_strides),
    )
