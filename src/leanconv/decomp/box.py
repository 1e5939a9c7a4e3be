"""Box filters: `leanconv.box_filter`, and the boxes among filters that `separable` is given."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from leanconv.algorithms.box import box_phase, box_refusal
from leanconv.arrays import as_array, check_same_dtype, element_strides
from leanconv.blocks.base import BlockLowering, BlockPlan, BoundBlock, left_for_workspace
from leanconv.checks import flag, integer, one_of, per_axis
from leanconv.classes import dataclass
from leanconv.errors import ArgumentValueError, NotApplicableError
from leanconv.host import this_host
from leanconv.options import ActivationLike, Ints, Padding, make_activation, make_problem
from leanconv.planning.limits import resolve_limit
from leanconv.problem import Problem, to_canonical
from leanconv.threads import get_num_threads

BOUND_KEPT = 64


@dataclass(frozen=True, slots=True)
class Boxes:
    """A depthwise convolution whose filters are constant, by sums over boxes; `uniform`: all have the same value."""

    whole: Problem
    uniform: bool

    def refusal(self) -> str | None:
        """Why boxes cannot compute it, or None."""
        return box_refusal(self.whole, self.uniform)

    def plan(self, threads: int, memory_limit: int | None) -> BlockPlan:
        """The kernel, decided.

        Raises:
            MemoryLimitError: the narrowest strip needs more than the limit.
        """
        layers, host = (self.whole,), this_host()
        packing = box_phase(self.whole, host, threads, None)[2]
        workspace = left_for_workspace(memory_limit, layers, [packing])
        phase, buffers, packing, parameters = box_phase(self.whole, host, threads, workspace)
        lowering = BlockLowering(
            (phase,),
            buffers,
            (("box weights", packing),),
            (
                f"for blocks of {self.whole.kernel[0]} rows of a strip of {parameters['strip']} columns: sums of rows "
                "from each row of a block to its end, and from the start of the next block",
                f"two of them are a column sum; sums of 4, 16 ... of those are added up to {self.whole.kernel[1]}",
            ),
            parameters,
        )
        return BlockPlan(layers, ("box",), lowering, threads, memory_limit)


def box_filter(
    x: Any,
    size: Ints,
    stride: Ints = 1,
    padding: Padding = "same",
    *,
    normalize: bool = True,
    pad_mode: str = "zeros",
    layout: str = "NCHW",
    activation: ActivationLike = None,
    memory_limit: int | str | None = None,
    threads: int | None = None,
    out: Any = None,
) -> Any:
    """Mean (or sum) over boxes of any size, channel by channel, in a time that hardly depends on the size.

    A box of R x S pixels takes about three additions a pixel for its height, whatever R, and log4(S) passes for its
    width.  Nothing is subtracted (as in summed-area tables and running sums), so that there is no cancellation: the
    error of a sum is at most R + 6 log4(S) + 8 roundings of the sum of its own pixels' absolute values, and a pixel
    that is not finite shows in those outputs only whose boxes cover it.

    F. Crow: Summed-Area Tables for Texture Mapping, SIGGRAPH 1984 (the problem); M. van Herk, Pattern Recognition
    Letters 13, 1992, J. Gil, M. Werman, IEEE PAMI 15, 1993 (sums of blocks from both ends, which they use for maxima).

    Args:
        x: image, (N, C, H, W), or (N, H, W, C) with layout="NHWC"; without N for a single image.  A NumPy array or
            anything that offers DLPack on the CPU; float32 or float64; the pixels of a row adjacent in memory.
        size: R and S, or one int for both.
        stride: an int, or one for each spatial axis.
        padding: as in `leanconv.conv2d`; "same" for a result as large as the image.
        normalize: whether sums are divided by R * S, padding included.
        pad_mode: what padding holds: "zeros", "reflect", "replicate" or "circular".
        layout: "NCHW" or "NHWC".
        activation: as in `leanconv.conv2d`.
        memory_limit: most bytes (an int, or text such as "256KiB") that workspace may take; strips get narrower to fit.
        threads: most threads of the call; `get_num_threads()` if None.
        out: dense array for the result, or None for a new one.

    Returns:
        (N, C, P, Q) or (N, P, Q, C), in the kind of array that x is; `out` if given.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed, or shapes that do not fit; out overlapping x.
        NotApplicableError: the image's pixels are not adjacent in memory, or no box reaches into the image.
        MemoryLimitError: the narrowest strip needs more than the limit; says how much.
        AllocationError: no memory for workspace or result.
    """
    image, restore = as_array(x, "x")
    target = None if out is None else as_array(out, "out")[0]
    check_same_dtype(image, out=target)
    if image.ndim not in (3, 4):
        raise ArgumentValueError("x", image, "must have 4 axes, or 3 for a single image")
    single = image.ndim == 3
    if single:
        image, target = image[None], None if target is None else target[None]
    order = one_of("layout", layout, ("NCHW", "NHWC"))
    channels = to_canonical(image.shape, order)[1]
    taps = per_axis("size", size, 2)
    problem = make_problem(
        2,
        image.shape,
        (channels, 1, *taps),
        dtype=image.dtype,
        stride=stride,
        padding=padding,
        groups=channels,
        layout=order,
        pad_mode=pad_mode,
        activation=make_activation(activation),
        x_strides=element_strides(image),
    )
    count = get_num_threads() if threads is None else integer("threads", threads, 1)
    bound = _bound(problem, flag("normalize", normalize), count, resolve_limit(memory_limit))
    result = bound(image, out=target)
    if out is not None:
        return out
    return restore(result[0] if single else result)


@functools.lru_cache(maxsize=BOUND_KEPT)
def _bound(problem: Problem, normalize: bool, threads: int, memory_limit: int | None) -> BoundBlock:
    """The box filter of a problem, ready to run; its weights are one number, repeated."""
    boxes = Boxes(problem, uniform=True)
    reason = boxes.refusal()
    if reason is not None:
        raise NotApplicableError("box", reason)
    value = 1.0 / problem.taps if normalize else 1.0
    weights = np.broadcast_to(np.array(value, problem.dtype), problem.w_shape)
    return boxes.plan(threads, memory_limit).bind(weights)
