"""Small images joined: the batch as one more axis of the output, so that a tile takes pixels of several images.

    one image, 1 x 1 outputs     x                    a tile of one pixel waits for its own sums
    eight images                 x x x x x x | x x    six pixels share each row of weights

The images become a spatial axis along which the kernel has one tap: the first one, or the last if an image has one
output pixel, since pixels are then evenly spaced.  Sums keep their terms and their order, and so their bits.
"""

from __future__ import annotations

import math

from leanconv.algorithms.blocking import MANY, blocking, few_weights, panels_of, tile_heights
from leanconv.algorithms.dense import output_refusal, rows_input, store_columns
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cost import issue_slots
from leanconv.problem import Problem

WORTH = 1.1  # times as many issue slots image by image


def joined(problem: Problem, host: Host, *, first: bool = False) -> Problem:
    """The problem with its images as an axis, if they fill tiles that one image does not; else as it is.

    `first`: as the first axis in any case.
    """
    p = problem
    pixels = math.prod(p.out_size)
    if p.batch < 2 or not pixels or slots(p, host, pixels, p.batch) < WORTH * slots(p, host, pixels * p.batch, 1):
        return p
    together = with_images(p, last=pixels == 1 and not first)
    return p if store_columns(together) or output_refusal(together) is not None else together


def one_matrix(problem: Problem, host: Host, threads: int) -> Problem:
    """A pointwise problem of stride 1 with its images as one matrix, if weights that many of them read pass by once.

    Image by image they all stream from the last-level cache for each. Eight images of 7 x 7, 512 to 2048 channels, take
    0.99 of the time so, and 0.95 where weights have to come from memory. Blocks must still be as many as threads want.
    """
    p, panels = problem, panels_of(problem, host)
    if p.batch < 2 or store_columns(p) or few_weights(p, host) or set(p.stride) != {1}:
        return p
    matrix = with_images(p)
    rows = rows_input(matrix)
    if rows is None or not rows.unit_channel or output_refusal(matrix) is not None:
        return p
    heights = tile_heights(math.prod(matrix.out_size), host, panels, apart=rows.fields["x_row"], even=True)
    cut = blocking(matrix, host, threads, heights)
    chunks = cut.blocks * -(-panels.total // cut.group) * p.groups
    return matrix if threads == 1 or chunks >= MANY * threads else p


def together(problem: Problem, images: Problem) -> str:
    """What `joined` did, in words."""
    return "" if images is problem else f", {problem.batch} images together"


def slots(problem: Problem, host: Host, pixels: int, images: int) -> float:
    """Issue slots of one term of the sums of so many images of so many pixels."""
    panels, total = panels_of(problem, host), 0.0
    for vectors, count in ((panels.vectors, panels.count), (panels.last, 1)):
        if vectors and count:
            tiles = -(-pixels // host.target.tile_rows(vectors))
            total += images * count * tiles * issue_slots(pixels / tiles, vectors)
    return total


def with_images(problem: Problem, *, last: bool = False) -> Problem:
    """The same problem with the batch as its first or last spatial axis, along which there is one tap."""
    p = problem

    def axis(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values, value) if last else (value, *values)

    def strides(values: tuple[int, ...]) -> tuple[int, ...]:
        batch, channel, *spatial = values
        return (0, channel, *axis(tuple(spatial), batch))

    return replace(
        p,
        ndim=p.ndim + 1,
        batch=1,
        in_size=axis(p.in_size, p.batch),
        kernel=axis(p.kernel, 1),
        stride=axis(p.stride, 1),
        dilation=axis(p.dilation, 1),
        pad_low=axis(p.pad_low, 0),
        pad_high=axis(p.pad_high, 0),
        x_strides=strides(p.x_strides),
        w_strides=(*p.w_strides[:2], *axis(p.w_strides[2:], 0)),
        out_strides=strides(p.out_strides),
        residual_strides=None if p.residual_strides is None else strides(p.residual_strides),
    )
