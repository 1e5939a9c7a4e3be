"""A block: layers that one program computes, its exact bytes, and the block bound to its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from leanconv.algorithms.base import WeightPacking
from leanconv.arrays import (
    Array,
    address_of,
    as_array,
    check_bias,
    check_out,
    check_overlap,
    check_residual,
    check_strides,
)
from leanconv.bound import Runner
from leanconv.classes import dataclass
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError
from leanconv.memory import Block, Buffer, arena_bytes
from leanconv.outputs import new_output
from leanconv.plan import arena_for, packed_block
from leanconv.problem import Problem
from leanconv.program import Compiled, Phase, Program


@dataclass(frozen=True, slots=True)
class BlockLowering:
    """A block as phases over declared buffers.

    `packings` has for each layer the name of the buffer of its packed weights, and how they are packed.
    """

    phases: tuple[Phase, ...]
    workspace: tuple[Buffer, ...]
    packings: tuple[tuple[str, WeightPacking], ...]
    steps: tuple[str, ...]
    parameters: Mapping[str, int | str] = field(default_factory=dict)


def plain_weight_bytes(layers: Sequence[Problem]) -> int:
    """Bytes of all weights and biases as they are given."""
    return sum(p.w_bytes + (p.out_channels * p.itemsize if p.has_bias else 0) for p in layers)


def left_for_workspace(limit: int | None, layers: Sequence[Problem], packings: Iterable[WeightPacking]) -> int | None:
    """What a memory limit leaves beside packed weights that are larger than the plain ones."""
    if limit is None:
        return None
    return max(0, limit - max(0, sum(p.nbytes for p in packings) - plain_weight_bytes(layers)))


class BlockPlan:
    """A block, decided: how it is computed, on how many threads, in how many bytes.

    Attributes:
        layers: what each layer computes, in order.
        names: what the weights of each layer are called.
        threads: how many threads a call uses at most.
        memory_limit: bytes that workspace and packed weights beyond the plain ones may take together, or None.
        adds_image: whether the residual is the image itself, so that calls take none.
    """

    def __init__(
        self,
        layers: Sequence[Problem],
        names: Sequence[str],
        lowering: BlockLowering,
        threads: int,
        memory_limit: int | None,
        adds_image: bool = False,
    ) -> None:
        """Made by `plan_separable` and `plan_inverted_residual`.

        Raises:
            MemoryLimitError: the block needs more than the limit, even with the lowest bands.
        """
        self.layers, self.names = tuple(layers), tuple(names)
        self.threads, self.memory_limit = threads, memory_limit
        self.adds_image = adds_image
        self._lowering = lowering
        if memory_limit is not None and self.extra_bytes > memory_limit:
            raise MemoryLimitError(memory_limit, self.extra_bytes, f"the block {' -> '.join(self.names)}")
        packed = self.extra_bytes - self.workspace_bytes
        self.arena = arena_for(None if memory_limit is None else memory_limit - packed)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the image, channels last."""
        return self.layers[0].x_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, channels last."""
        return self.layers[-1].out_shape

    @property
    def lowering(self) -> BlockLowering:
        """The program as phases, and what they need."""
        return self._lowering

    @property
    def parameters(self) -> Mapping[str, int | str]:
        """The settings chosen."""
        return dict(self._lowering.parameters)

    @property
    def steps(self) -> list[str]:
        """What a call does, in words, in order."""
        return list(self._lowering.steps)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The program of a bound call."""
        return self._lowering.phases

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a call of the bound block needs beyond its arrays and the packed weights; exact."""
        return arena_bytes(self._lowering.workspace, self.threads)

    @property
    def packed_weight_bytes(self) -> int:
        """Bytes of all weights and biases in the order the kernels read them."""
        return sum(packing.nbytes for _, packing in self._lowering.packings)

    @property
    def plain_weight_bytes(self) -> int:
        """Bytes of all weights and biases as they are given."""
        return plain_weight_bytes(self.layers)

    @property
    def extra_bytes(self) -> int:
        """What counts against a memory limit: workspace, and packed weights beyond the plain ones."""
        return self.workspace_bytes + max(0, self.packed_weight_bytes - self.plain_weight_bytes)

    @property
    def intermediate_bytes(self) -> int:
        """Bytes of the tensors that the layers, one after another, would write between them."""
        return sum(math.prod(p.out_shape) * p.itemsize for p in self.layers[:-1])

    @property
    def flops(self) -> int:
        """Multiplications and additions of the layers' definitions."""
        return sum(p.flops for p in self.layers)

    def __repr__(self) -> str:
        """One line: layers, threads, bytes."""
        return (
            f"<BlockPlan {' -> '.join(self.names)}, {self.x_shape} -> {self.out_shape}: {self.threads} threads, "
            f"workspace {self.workspace_bytes} B, packed weights {self.packed_weight_bytes} B>"
        )

    def bind(self, *weights: Any, biases: Sequence[Any] | None = None) -> BoundBlock:
        """Pack the weights once, for many calls.

        Args:
            *weights: of each layer, in order, (K, C/groups, *kernel); later changes to them are not seen.
            biases: of each layer (K,), or None for a layer without; None if no layer has one.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: not as many as layers; a shape that is not the plan's; a bias the plan does not have,
                or none where it has.
            AllocationError: no memory for the packed weights.
        """
        count = len(self.layers)
        if len(weights) != count:
            raise ArgumentValueError("weights", len(weights), f"must be {count}: {', '.join(self.names)}")
        shifts = (None,) * count if biases is None else tuple(biases)
        if len(shifts) != count:
            raise ArgumentValueError("biases", len(shifts), f"must be {count}, one a layer (None for none)")
        checked = [
            (_weights(name, w, p), _bias(f"biases[{i}]", b, p))
            for i, (name, w, b, p) in enumerate(zip(self.names, weights, shifts, self.layers, strict=True))
        ]
        blocks = {
            role: packed_block(packing, w, b, self.threads)
            for (role, packing), (w, b) in zip(self._lowering.packings, checked, strict=True)
        }
        return BoundBlock(self, blocks)

    def compiled(self, blocks: Mapping[str, Block]) -> Compiled:
        """The program on packed weights that lie in these blocks."""
        addresses = {role: block.address for role, block in blocks.items()}
        return Compiled(Program(self._lowering.phases, self._lowering.workspace, self.threads, addresses))


def _weights(name: str, w: Any, problem: Problem) -> Array:
    array, _ = as_array(w, name)
    if array.shape != problem.w_shape:
        raise ArgumentValueError(name, array, f"must have shape {problem.w_shape}")
    if array.dtype != problem.dtype:
        raise ArgumentTypeError(name, array, f"must have element type {problem.dtype}")
    return array


def _bias(argument: str, bias: Any, problem: Problem) -> Array | None:
    if (bias is not None) != problem.has_bias:
        rule = "must be given, the plan has one" if problem.has_bias else "must be None, the plan has no such bias"
        raise ArgumentValueError(argument, bias, rule)
    if bias is None:
        return None
    array, _ = as_array(bias, argument)
    check_bias(array, problem)
    return array


class BoundBlock:
    """A block with its weights: call it with images. Safe to call from several threads at once."""

    def __init__(self, plan: BlockPlan, blocks: Mapping[str, Block]) -> None:
        self.plan = plan
        self._blocks = dict(blocks)
        self._runner: Runner | None = None

    def _first_runner(self) -> Runner:
        plan = self.plan
        runner = Runner(plan.compiled(self._blocks), plan.threads, plan.arena, {})
        runner.expect(plan.layers[0], plan.layers[-1], residual=self._adds)
        self._runner = runner
        return runner

    @property
    def _adds(self) -> bool:
        """Whether calls bring a residual."""
        return self.plan.layers[-1].residual is not None and not self.plan.adds_image

    def __call__(self, x: Any, out: Any = None, residual: Any = None) -> Any:
        """Compute the block for an image.

        Args:
            x: of the plan's shape and element type, dense.
            out: array for the result, dense, or None for a new one.
            residual: array of the result's shape, dense, if the plan adds one.

        Returns:
            The result, in the kind of array that x is; `out` itself if given.

        Raises:
            ArgumentTypeError: not an array, or of another element type.
            ArgumentValueError: a shape or strides that are not the plan's; out not writable or overlapping an input;
                a residual the plan does not have, or none where it has one.
            MemoryLimitError: concurrent calls together would pass the plan's memory limit.
            AllocationError: no memory for workspace or result.
        """
        first, last, runner = self.plan.layers[0], self.plan.layers[-1], self._runner
        # The usual call: native code compares plain arrays with the plan's, and runs the job.
        if runner is not None and runner.expected is not None and type(x) is np.ndarray:
            usual = new_output(last.out_shape, np.dtype(last.dtype)) if out is None else out
            arrays = (x, usual) if residual is None else (x, usual, residual)
            if runner.try_run(arrays, runner.expected) is not None:
                return usual
        image, restore = as_array(x, "x")
        if image.shape != first.x_shape:
            raise ArgumentValueError("x", image, f"must have shape {first.x_shape}")
        if image.dtype != first.dtype:
            raise ArgumentTypeError("x", image, f"must have element type {first.dtype}")
        check_strides(image, "x", first.x_strides, first)
        extra = self._residual(residual, last)
        result = None
        if out is not None:
            result, _ = as_array(out, "out")
            check_out(result, last)
            check_strides(result, "out", last.out_strides, last)
            check_overlap(result, image, image, None, extra)
        else:
            result = new_output(last.out_shape, np.dtype(last.dtype))
        if result.size:
            (runner or self._first_runner()).run(
                address_of(image), address_of(result), 0 if extra is None else address_of(extra)
            )
        return restore(result) if out is None else out

    def _residual(self, residual: Any, problem: Problem) -> Array | None:
        if (residual is not None) != self._adds:
            rule = "must be None, the plan adds none" if residual is not None else "must be given, the plan adds one"
            raise ArgumentValueError("residual", residual, rule)
        if residual is None:
            return None
        array, _ = as_array(residual, "residual")
        check_residual(array, problem)
        check_strides(array, "residual", problem.out_strides, problem)
        return array
