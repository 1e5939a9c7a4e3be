"""im2col + BLAS and im2row + BLAS, as the papers measure them: the whole matrix of an image, then SciPy's ?GEMM.

    im2row   matrix [P * Q][R * S * C]   *   weights [R * S * C][K]   ->   output [P * Q][K]
    im2col   weights [K][R * S * C]   *   matrix [R * S * C][P * Q]   ->   output [K][P * Q]

The baseline that most papers compare with.  BLAS uses as many threads as it is set to (OPENBLAS_NUM_THREADS,
threadpoolctl), which is not ours to change in a user's process.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering, WeightPacking
from leanconv.algorithms.dense import even_stride, output_refusal, store_columns
from leanconv.algorithms.im2row import PAPER
from leanconv.algorithms.lowered import MATRIX, stage_phase
from leanconv.blas import gemm_address
from leanconv.host import Host
from leanconv.kernels.blas import FinishSpec, GemmSpec
from leanconv.kernels.copy import CopySpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.memory import Buffer
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase

PRODUCT = "product"
_LARGEST = 2**31 - 1  # BLAS counts in 32 bits


class _Blas(Algorithm):
    """Stage, multiply by BLAS, finish; `rows` says which matrix."""

    automatic: ClassVar[bool] = False
    rows: ClassVar[bool]
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Needs SciPy, and sizes that BLAS can count."""
        p = problem
        if importlib.util.find_spec("scipy") is None:
            return "SciPy, whose BLAS it calls, is not installed (pip install leanconv[blas])"
        if max(p.taps * p.group_in, math.prod(p.out_size), p.out_channels, *p.out_strides) > _LARGEST:
            return "a matrix is larger than 32-bit BLAS can count"
        return output_refusal(p)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Per image: stage all groups, one ?GEMM a group; then one pass for bias, residual and activation."""
        p, item = problem, problem.itemsize
        pixels, depth = math.prod(p.out_size), p.taps * p.group_in
        group_bytes = depth * pixels * item
        columns = store_columns(p)
        weights = {"g": p.group_out * depth * item, "ld": depth}
        matrix = {"g": group_bytes, "ld": depth if self.rows else pixels}
        first, second = (matrix, weights) if columns else (weights, matrix)
        # Column-major: C is (pixels x K) for "columns" and (K x pixels) for "rows"; weights are (depth x K)
        # as they lie.
        transpose_matrix = self.rows if columns else not self.rows
        gemm = GemmSpec(
            host.target,
            p.dtype,
            transpose_matrix if columns else True,
            False if columns else transpose_matrix,
        )
        # The residual may be the output itself: then the product must not be written over it.
        product = "out"
        buffers: tuple[Buffer, ...] = (Buffer(MATRIX, p.groups * group_bytes),)
        strides = p.out_strides
        if p.residual:
            product, buffers = PRODUCT, (*buffers, Buffer(PRODUCT, p.out_bytes))
            strides = dense_strides((p.batch, p.out_channels, *p.out_size), "NCHW" if columns else "NHWC")
        row = strides[1] if columns else _row(p, strides)
        roles = {"a": MATRIX if columns else "w", "b": "w" if columns else MATRIX, "c": product, "gemm": "gemm"}
        phases: list[Phase] = []
        for image in range(p.batch):
            phases.append(stage_phase(p, host, threads, image, rows=self.rows))
            fields = {
                "g_div": 1,
                "g_count": p.groups,
                "m": pixels if columns else p.group_out,
                "n": p.group_out if columns else pixels,
                "k": depth,
                "lda": first["ld"],
                "ldb": second["ld"],
                "ldc": max(row, pixels if columns else p.group_out),
                "a_g": first["g"],
                "b_g": second["g"],
                "c_g": p.group_out * strides[1] * item,
                "c_first": image * strides[0] * item,
            }
            phases.append(Phase("gemm", gemm, fields, p.groups, roles))
        finish = self._finish(p, host, columns, product, strides)
        if finish is not None:
            phases.append(finish)
        name = "im2row" if self.rows else "im2col"
        return Lowering(
            tuple(phases),
            buffers,
            self._packing(p, host),
            (
                f"{name}: copy all windows of an image into a matrix of {p.groups * depth} x {pixels}",
                "multiply it by SciPy's BLAS",
                *(["one pass over the output for bias, residual and activation"] if finish else []),
            ),
            {},
            {"gemm": gemm_address(p.dtype) or 0},
        )

    def _packing(self, p: Problem, host: Host) -> WeightPacking:
        """Weights in the order of the matrix: (K, taps, C)."""
        item, c, taps = p.itemsize, p.group_in, p.taps
        target = (taps * c, 1, *(c * s for s in dense_strides((1, 1, *p.kernel), "NCHW")[2:]))
        fields = {"c_div": 1, "c_count": c, "n_div": c, "n_count": p.out_channels, "group_out": p.group_out}
        for letter, strides in (("s", p.w_strides), ("t", target)):
            for axis, stride in zip(["n", "c", *range(p.ndim)], strides, strict=True):
                fields[f"{letter}_{axis}"] = stride * item
        fields |= {f"size{d}": size for d, size in enumerate(p.kernel)}
        spec = CopySpec(host.target, p.dtype, p.ndim)
        phase = Phase("reorder weights", spec, fields, p.out_channels * c, {"source": "weights", "target": "w"})
        return WeightPacking(p.w_bytes, phase, bias_apart=p.has_bias)

    def _finish(self, p: Problem, host: Host, columns: bool, product: str, inner: tuple[int, ...]) -> Phase | None:
        if not p.has_bias and p.activation is None and p.residual is None:
            return None
        item, pixels = p.itemsize, math.prod(p.out_size)
        lines, length = (p.out_channels, pixels) if columns else (pixels, p.out_channels)
        spec = FinishSpec(host.target, p.dtype, columns, p.has_bias, Epilogue(p.activation, p.residual))
        fields = {"l_div": 1, "l_count": lines, "n_div": lines, "n_count": p.batch, "length": length}
        for letter, strides in (("p", inner), ("o", p.out_strides), ("r", p.residual_strides or inner)):
            fields[f"{letter}_n"] = strides[0] * item
            fields[f"{letter}_l"] = (strides[1] if columns else _row(p, strides)) * item
        return Phase("finish", spec, fields, lines * p.batch, {"product": product})


def _row(p: Problem, strides: tuple[int, ...]) -> int:
    return even_stride(strides[2:], p.out_size) or 0


class Im2colBlas(_Blas):
    """im2col + BLAS."""

    name: ClassVar[str] = "im2col_blas"
    title: ClassVar[str] = "im2col, the whole patch matrix, then BLAS"
    rows: ClassVar[bool] = False


class Im2rowBlas(_Blas):
    """im2row + BLAS."""

    name: ClassVar[str] = "im2row_blas"
    title: ClassVar[str] = "im2row, the whole patch matrix, then BLAS"
    rows: ClassVar[bool] = True
