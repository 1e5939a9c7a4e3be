"""MEC, memory-efficient convolution: only rows of windows are copied, and windows of neighbouring rows overlap.

Idea        for each output column a strip of the image as wide as the kernel is laid out row by row: [Q][H][S][C]; the
            windows of the column lie in it one stride of rows apart, each in one run of R * S * C elements
Workspace   Q * H * S * C elements (H with padding): of one image at a time (solution B), or of N images (A)
Good for    channels last, kernels higher than their stride: im2row needs R / stride times as much; solution A for
            batches of images with few output pixels and many weights (fully connected layers run as convolutions)
Bad for     1x1 kernels and strides as large as the kernel, where nothing overlaps

    image        tensor [Q][H][S][C], 2 x 2 taps, one channel
    a b c d      column 0   | a b e f i j |      windows a b e f, and one row further on e f i j
    e f g h             1   | b c f g j k |
    i j k l             2   | c d g h k l |

The paper's solution A takes the batch as one matrix, which leaves rows of the images interleaved in the output; they
are put in order through the tensor's memory.  Here every tile is stored at its place, so nothing is left to reorder and
the two differ in what they hold: solution A fetches weights once for many images, solution B needs the memory of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.batchjoin import with_images
from leanconv.algorithms.dense import output_refusal
from leanconv.algorithms.windowed import whole
from leanconv.host import Host
from leanconv.problem import Problem

PAPER = "M. Cho, D. Brand: MEC: Memory-efficient Convolution for Deep Neural Network, ICML 2017"


class Mec(Algorithm):
    """MEC image by image."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "mec"
    title: ClassVar[str] = "MEC (solution B): strips of the image, one image at a time"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases an image: copy, then the core."""
        return whole(problem, host, threads, 0, "MEC")


class MecA(Algorithm):
    """MEC with the batch as one matrix."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "mec_a"
    title: ClassVar[str] = "MEC (solution A): strips of all images at once"
    paper: ClassVar[str] = PAPER

    def refusal(self, problem: Problem) -> str | None:
        """Outputs whose pixels are evenly spaced from image to image too: channels last."""
        if problem.batch > 1 and output_refusal(problem) is None and output_refusal(with_images(problem)) is not None:
            return f"the output's pixels are not evenly spaced from one of the {problem.batch} images to the next"
        return output_refusal(problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """Two phases: copy, then the core."""
        return whole(problem, host, threads, 0, "MEC", together=True)
