"""A plan for filters that were taken apart, and the plan bound to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leanconv.arrays import Array
from leanconv.blocks.base import BlockPlan
from leanconv.errors import ArgumentValueError
from leanconv.plan import Plan
from leanconv.problem import Problem


class FilterPlan:
    """How filters are applied to images of one shape; made by `plan` of the filters.

    Attributes:
        method: how: one of the filters' `.methods`, or "whole".
        problem: the whole convolution.
        inner: the plan of the block of factors, or of the whole convolution.
    """

    def __init__(self, method: str, problem: Problem, inner: BlockPlan | Plan, weights: Sequence[Array]) -> None:
        """Made by `plan` of the filters."""
        self.method, self.problem, self.inner = method, problem, inner
        self._weights = tuple(weights)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, in the image's layout."""
        return self.problem.out_shape

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a call needs beyond its arrays and the packed factors; exact."""
        return self.inner.workspace_bytes

    @property
    def packed_weight_bytes(self) -> int:
        """Bytes of the factors (or filters) in the order the kernels read them."""
        return self.inner.packed_weight_bytes

    @property
    def extra_bytes(self) -> int:
        """What counts against a memory limit."""
        return self.inner.extra_bytes

    @property
    def intermediate_bytes(self) -> int:
        """Bytes of the tensor that layers apart would write between them; 0 for a whole convolution."""
        return self.inner.intermediate_bytes if isinstance(self.inner, BlockPlan) else 0

    @property
    def flops(self) -> int:
        """Multiplications and additions of the definitions of what is computed; of boxes those of the whole filters."""
        return self.inner.flops if isinstance(self.inner, BlockPlan) else self.problem.flops

    @property
    def whole_flops(self) -> int:
        """Those of the whole convolution."""
        return self.problem.flops

    @property
    def steps(self) -> list[str]:
        """What a call does, in words, in order."""
        return self.inner.steps

    def __repr__(self) -> str:
        """One line: method, problem, bytes."""
        return (
            f"<FilterPlan {self.method}, {self.problem.describe()}: workspace {self.workspace_bytes} B, packed weights "
            f"{self.packed_weight_bytes} B>"
        )

    def bind(self, bias: Any = None) -> BoundFilter:
        """Pack the factors, for many calls.

        Args:
            bias: (K,), if the plan has a bias; later changes to it are not seen.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a bias the plan does not have, or none where it has one.
            AllocationError: no memory for the packed factors.
        """
        p = self.problem
        if bias is not None and not p.has_bias:
            raise ArgumentValueError("bias", bias, "must be None, the plan has no bias")
        if bias is None and p.has_bias:
            raise ArgumentValueError("bias", bias, "must be given, the plan has one")
        weights = [w.astype(p.dtype) for w in self._weights]
        if isinstance(self.inner, Plan):
            return BoundFilter(self, self.inner.bind(weights[0], bias))
        biases = (*(None for _ in weights[1:]), bias)
        return BoundFilter(self, self.inner.bind(*weights, biases=biases))


class BoundFilter:
    """Filters ready to be applied: call it with images. Safe to call from several threads at once."""

    def __init__(self, plan: FilterPlan, run: Any) -> None:
        """Made by `FilterPlan.bind`."""
        self.plan, self._run = plan, run

    def __call__(self, x: Any, out: Any = None, residual: Any = None) -> Any:
        """Apply the filters to an image.

        Args:
            x: of the plan's shape, strides and element type.
            out: dense array for the result, or None for a new one.
            residual: array of the result's shape, if the plan adds one.

        Returns:
            The result, in the kind of array that x is; `out` itself if given.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a shape or strides that are not the plan's; out not writable or overlapping an input.
            MemoryLimitError: concurrent calls together would pass the plan's memory limit.
            AllocationError: no memory for workspace or result.
        """
        return self._run(x, out=out, residual=residual)
