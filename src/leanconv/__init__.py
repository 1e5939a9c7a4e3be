"""Convolution on CPUs: the published algorithms side by side, each with its exact bytes and its time."""

from leanconv.api import algorithms, conv1d, conv2d, conv3d, plan
from leanconv.bandwidth import memory_bandwidth
from leanconv.bound import BoundPlan
from leanconv.compiled import cache_clear, cache_info
from leanconv.errors import (
    AllocationError,
    ArgumentError,
    ArgumentTypeError,
    ArgumentValueError,
    CacheError,
    CompileError,
    LeanconvError,
    MemoryLimitError,
    NotApplicableError,
)
from leanconv.layouts import to_layout
from leanconv.mapped import mapped_conv2d, regular_map
from leanconv.peak import fma_peak
from leanconv.plan import Plan
from leanconv.problem import Activation, Problem
from leanconv.select import AlgorithmInfo
from leanconv.threads import get_num_threads, set_num_threads, threads

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "AlgorithmInfo",
    "AllocationError",
    "ArgumentError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "BoundPlan",
    "CacheError",
    "CompileError",
    "LeanconvError",
    "MemoryLimitError",
    "NotApplicableError",
    "Plan",
    "Problem",
    "__version__",
    "algorithms",
    "cache_clear",
    "cache_info",
    "conv1d",
    "conv2d",
    "conv3d",
    "fma_peak",
    "get_num_threads",
    "mapped_conv2d",
    "memory_bandwidth",
    "plan",
    "regular_map",
    "set_num_threads",
    "threads",
    "to_layout",
]
