"""kn2row and kn2col with an accumulating product: no map, and holes where a shifted row would run into the next.

Idea        the product of a tap with the image is added to the output in place, at a distance of rows and columns:
            image and output are one line of pixels each, and a tap is a shift of one against the other.  What leaves
            a row on one side would enter the next on the other; the paper punches holes there, zeros written into
            the image and taken back.  Here nobody writes the image: a table says where the holes are, and the core
            reads zeros for them.  What the paper's guards catch, pixels shifted beyond the image, is not computed
Workspace   S * W elements, the table (a residual after the activation: also partial sums of a block and a panel for
            each thread)
Good for    many channels, and memory for almost nothing else
Bad for     narrow images, where most tiles have a hole; the output must be as wide as the image

    rows of four pixels; the tap to the right of the middle adds to output pixel i what image pixel i + 1 gives
    output   0 1 2 3 | 4 5 6 7 | ...
    reads    1 2 3 . | 5 6 7 . | ...       . is a hole: pixel 4 is none of the row of pixel 3, and zero is read

A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based convolution algorithms for deep neural
networks, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import pack_weights
from leanconv.algorithms.tapwise import PAPER, Walk, affordable, cut, phase, pixels_of, refusal, sum_bytes, sums
from leanconv.host import Host
from leanconv.kernels.holes import HolesSpec
from leanconv.kernels.steps import Punched
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

HOLES = "holes"


class _Punching(Algorithm):
    """The accumulating product; `layout` says how the output lies."""

    automatic: ClassVar[bool] = False
    layout: ClassVar[str]
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Its layout, stride 1, padding by zeros, an output as wide as the image."""
        reason = refusal(problem, self.layout)
        if reason is None and problem.out_size[-1] != problem.in_size[-1]:
            wide = f"rows of the image have {problem.in_size[-1]} pixels, those of the output {problem.out_size[-1]}"
            reason = f"{wide}: a tap is a shift of one line of pixels only where these are equal"
        return reason

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """The table of holes, then one phase: a block of outputs goes through all taps."""
        p, walk = problem, Walk.of(problem)
        columns, width = walk.kernel[2], walk.size[2]
        table = Buffer(HOLES, columns * width * p.itemsize)
        most = affordable(workspace, threads, table, sum_bytes(p, host))
        blocks = cut(p, host, threads, walk, p.batch, most)
        core, parameters = phase(p, host, walk, Punched(pixels_of(p, host)), blocks)
        sizes = {name: core.fields[name] for name in ("in2", "dilation2", "pad2")}
        holes = Phase("holes", HolesSpec(host.target, p.dtype), {"j_div": 1, "j_count": columns, **sizes}, columns)
        return Lowering(
            (holes, core),
            (table, *sums(p, host, blocks)),
            pack_weights(p, host),
            (
                f"mark the holes: {columns} x {width} numbers",
                f"core {parameters['tile']} adds one tap after the other to a block of outputs, zeros for the holes",
            ),
            parameters,
        )


class Kn2rowAa(_Punching):
    """Outputs are planes of pixels."""

    name: ClassVar[str] = "kn2row_aa"
    title: ClassVar[str] = "kn2row by an accumulating product with holes; channels first"
    layout: ClassVar[str] = "NCHW"


class Kn2colAa(_Punching):
    """Outputs are rows of channels."""

    name: ClassVar[str] = "kn2col_aa"
    title: ClassVar[str] = "kn2col by an accumulating product with holes; channels last"
    layout: ClassVar[str] = "NHWC"
