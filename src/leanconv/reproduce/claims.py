"""What the papers claim, as data: one entry a claim, with where it is from and the check that judges it.

Marks say how the claim was read: [A] in the abstract or on the first page, the rest of the paper was not at hand;
[R] in the source that is named; [D] derived from the algorithm's definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leanconv.problem import Problem
from leanconv.reproduce.checks import Check, Peak, Range, Speed, Untestable
from leanconv.reproduce.memory import Saving, Smaller, Workspace


@dataclass(frozen=True)
class Claim:
    """One claim: what is claimed, the figure, where it stands, how it was read, and how it is judged."""

    text: str
    value: str
    source: str
    mark: str
    check: Check


@dataclass(frozen=True)
class Experiment:
    """What is measured for some claims.

    Attributes:
        name: what checks call it.
        layers: words that the bench knows: networks.
        algorithms: names; those that do not exist are left out.
        batch: images, as in the paper; fewer if memory is short.
        layouts: of the arrays.
        threads: numbers of threads.
        peers: other libraries, if they are installed.
    """

    name: str
    layers: tuple[str, ...]
    algorithms: tuple[str, ...]
    batch: int = 1
    layouts: tuple[str, ...] = ("NHWC",)
    threads: tuple[int, ...] = (1,)
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper: its authors and title, what is measured, what it claims, and what to know about the comparison."""

    title: str
    experiments: tuple[Experiment, ...]
    claims: tuple[Claim, ...]
    note: str = ""


def _mec(p: Problem) -> float:
    """N * Q * H * S * C of one image."""
    height = p.in_size[0] + p.pad_low[0] + p.pad_high[0]
    return p.out_size[1] * height * p.kernel[1] * p.in_channels * p.itemsize


def _im2win(p: Problem) -> float:
    """P * W * R * C of one image."""
    width = p.in_size[1] + p.pad_low[1] + p.pad_high[1]
    return p.out_size[0] * width * p.kernel[0] * p.in_channels * p.itemsize


def _one_map(p: Problem) -> float:
    return p.out_channels * math.prod(p.in_size) * p.itemsize


def _kernel_rows(p: Problem) -> float:
    """The two guards of (R // 2) * W + S // 2 elements; at least one row of them."""
    return 2 * max(p.kernel[0] // 2 * p.in_size[1] + p.kernel[1] // 2, p.in_size[1]) * p.itemsize


def _pointers(p: Problem) -> float:
    """A pointer of 8 bytes for each tap and output pixel, filled up to tiles of 8, and a row of zeros."""
    return 8 * p.taps * -(-math.prod(p.out_size) // 8) * 8 + p.in_channels * p.itemsize


def _needs_im2col(p: Problem) -> bool:
    return p.taps > 1 or any(step > 1 for step in p.stride)


def _pointwise(p: Problem) -> bool:
    return not _needs_im2col(p)


_IM2WIN_1 = "arXiv:2306.14320, abstract"
_IM2WIN_2 = "arXiv:2408.00278, abstract"
_IM2WIN_GPU = "arXiv:2306.14316, abstract"
_LOWMEM = "arXiv:1709.03395, abstract"
_INDIRECT = "arXiv:1907.02129, abstract"
_GPU = "needs an NVIDIA GPU; leanconv makes code for CPUs"

_IM2COL = ("torch_im2col", "im2col_blas")
_PATCHES = ("im2col_blas", "im2row_blas", "im2col", "im2row")
_MEC = ("mec", "mec_a", "mec_rows")
_KN2 = ("kn2row_as", "kn2row_aa", "kn2col_as", "kn2col_aa", "kn2row", "kn2col")

_PATCHED = (_needs_im2col, "that need patches")
_PLAIN = (_pointwise, "of 1x1 and stride 1")
_NETWORKS = "The networks are those of the paper as far as we know; its text was not at hand."

PAPERS = {
    "im2win": Paper(
        "S. Lu, J. Chu, X. T. Liu: Im2win, 2022 (arXiv:2306.14320); X. Fu et al.: im2win in three layouts, 2024 "
        "(arXiv:2408.00278)",
        (
            Experiment("main", ("mec",), ("im2win", "direct", "im2col_blas"), 128, ("NCHW", "NHWC"),
                       peers=("torch_im2col",)),
            Experiment("naive", ("mec",), ("im2win", "reference"), 1, ("NCHW",)),
        ),
        (
            Claim("less memory than PyTorch's im2col", "-41.6 %", _IM2WIN_1, "[A]",
                  Saving("im2win", ("im2col_blas",), 0.416, 128, "NCHW")),
            Claim("faster than PyTorch's im2col", "3.6 x", _IM2WIN_1, "[A]",
                  Speed(("im2win",), _IM2COL, 3.6, layout="NCHW")),
            Claim("faster than naive direct loops", "5.3 x", _IM2WIN_1, "[A]",
                  Speed(("im2win",), ("reference",), 5.3, "naive", layout="NCHW")),
            Claim("channels last faster than channels first", "+11 % to +355 %", _IM2WIN_2, "[A]",
                  Range(("im2win",), 1.11, 4.55, "NHWC", "NCHW")),
            Claim("im2win's part of the machine's peak, at most", "95 %", _IM2WIN_2, "[A]", Peak(("im2win",), 95)),
            Claim("tuned direct's part of the peak, at most", "94 %", _IM2WIN_2, "[A]", Peak(("direct",), 94)),
            Claim("window tensor of P W R C elements an image", "P W R C", "definition", "[D]",
                  Workspace("im2win", _im2win, "NHWC")),
            Claim("GPU: memory below cuBLAS-based convolution", "-23.1 %", _IM2WIN_GPU, "[A]", Untestable(_GPU)),
            Claim("GPU: faster than cuBLAS-based convolution", "3.5 x", _IM2WIN_GPU, "[A]", Untestable(_GPU)),
            Claim("GPU: faster than the best of cuDNN", "1.8 x", _IM2WIN_GPU, "[A]", Untestable(_GPU)),
            Claim("GPU: faster than naive direct", "155 x", _IM2WIN_GPU, "[A]", Untestable(_GPU)),
        ),
        "Naive loops are our reference, which sums in float64; they run at batch 1. Our im2win and im2col lower one "
        "image at a time.",
    ),
    "mec": Paper(
        "M. Cho, D. Brand: MEC: Memory-efficient Convolution for Deep Neural Network, 2017 (arXiv:1706.06873)",
        (
            Experiment("main", ("mec",), (*_MEC, "im2row_blas", "im2col_blas"), peers=("torch_im2col",)),
        ),
        (
            Claim("lowered matrices smaller than im2col's, sum of 12 layers", "3.26 x", "sum of the formulas", "[D]",
                  Smaller("mec", "im2row_blas", 3.26, "NHWC")),
            Claim("lowered matrix of Q H S C elements an image", "Q H S C", "definition", "[D]",
                  Workspace("mec", _mec, "NHWC")),
            Claim("a third-party port against im2col, 1 thread: 35 to 28 ms", "1.25 x", "BBuf's port", "[R]",
                  Speed(_MEC, ("im2row_blas", "im2col_blas"), 1.25)),
            Claim("the same port, memory: 26.5 to 11.7 MB", "2.26 x", "BBuf's port", "[R]",
                  Untestable("the source does not say which layer this is; see the sum above")),
            Claim("the same port, 1 to 4 threads: 28 to 7 ms", "4.0 x", "BBuf's port", "[R]",
                  Untestable("the layer is not named, and the scaling is that of its machine")),
        ),
        "The port's figures are of one layer, which is not named: ours are means of the twelve.",
    ),
    "lowmem": Paper(
        "A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based convolution algorithms, 2017 "
        "(arXiv:1709.03395)",
        (
            Experiment("main", ("alexnet_one_tower", "vgg16", "googlenet"), (*_KN2, *_PATCHES), 1, ("NCHW", "NHWC"),
                       (1, 2)),
        ),
        (
            Claim("as fast as the best patch-building methods, 1 thread", "1.0 x", _LOWMEM, "[A]",
                  Speed(_KN2, _PATCHES, 1.0, best_of=True, only=_PATCHED)),
            Claim("with several threads often faster: on half of the layers", "50 %", _LOWMEM, "[A]",
                  Speed(_KN2, _PATCHES, 0.5, best_of=True, how="share", threads=2, only=_PATCHED)),
            Claim("accumulating variant needs memory of O(M H W)", "M H W", _LOWMEM, "[A]",
                  Workspace("kn2row_as", _one_map)),
            Claim("hole-punching variant needs memory of O(K W)", "K W", _LOWMEM, "[A]",
                  Workspace("kn2row_aa", _kernel_rows)),
        ),
        "O() is taken as one map of K H W elements, and as the method's two guards of R / 2 rows of the image each. "
        + _NETWORKS,
    ),
    "indirect": Paper(
        "M. Dukhan: The Indirect Convolution Algorithm, 2019 (arXiv:1907.02129)",
        (
            Experiment("main", ("resnet18", "squeezenet1_0"), ("indirect", "im2row_blas", "im2row", "pointwise"),
                       peers=("torch_im2col",)),
        ),
        (
            Claim("faster than im2col and GEMM where im2col is needed, at most", "+62 %", _INDIRECT, "[A]",
                  Speed(("indirect",), ("im2row_blas",), 1.62, how="most", only=_PATCHED, percent=True)),
            Claim("the same, against im2row over the same core", "+62 %", _INDIRECT, "[A]",
                  Speed(("indirect",), ("im2row",), 1.62, how="most", only=_PATCHED, percent=True)),
            Claim("slightly slower on 1x1 with stride 1", "below 0 %", _INDIRECT, "[A]",
                  Speed(("indirect",), ("pointwise", "im2row"), 0.97, only=_PLAIN, percent=True)),
            Claim("table of R S pointers a pixel, and C zeros", "8 B each", "XNNPACK's source", "[R]",
                  Workspace("indirect", _pointers)),
            Claim("int8 on ARM64: loses below C = 32 or 128", "-", "ONNX Runtime, commit", "[R]",
                  Untestable("needs int8 and ARM; leanconv computes in float32 and float64")),
        ),
        "The paper measures on mobile ARM processors; we measure on this one. " + _NETWORKS,
    ),
}  # fmt: skip
