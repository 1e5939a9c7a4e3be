"""Convolution on CPUs: the published algorithms side by side, each with its exact bytes and its time."""

from leanconv.api import algorithms, conv1d, conv2d, conv3d, explain, network_frontier, plan, plan_network
from leanconv.backward import (
    BackwardWeightsPlan,
    conv1d_backward_weights,
    conv2d_backward_weights,
    conv3d_backward_weights,
    plan_backward_weights,
)
from leanconv.bandwidth import memory_bandwidth
from leanconv.blocks import inverted_residual, separable_conv2d
from leanconv.bound import BoundPlan
from leanconv.compiled import cache_clear, cache_info
from leanconv.decomp import (
    Cp,
    FusedFilter,
    Separable,
    box_filter,
    cp,
    flipped,
    fuse_filters,
    separable,
    shift_conv2d,
    shuffle_channels,
    shuffle_inputs,
)
from leanconv.errors import (
    AllocationError,
    ArgumentError,
    ArgumentTypeError,
    ArgumentValueError,
    CacheError,
    CompileError,
    LeanconvError,
    MemoryLimitError,
    MissingPackageError,
    ModelError,
    NotApplicableError,
    UnsupportedModelError,
)
from leanconv.layouts import to_layout
from leanconv.mapped import mapped_conv2d, regular_map
from leanconv.outputs import empty
from leanconv.peak import fma_peak
from leanconv.plan import Plan
from leanconv.planning.explain import Explanation
from leanconv.planning.limits import get_memory_limit, memory_limit, set_memory_limit
from leanconv.planning.network import NetworkPlan
from leanconv.planning.pins import pinned, record_plans
from leanconv.problem import Activation, Problem
from leanconv.registry import register_algorithm, unregister_algorithm
from leanconv.select import AlgorithmInfo
from leanconv.threads import get_num_threads, set_flush_denormals, set_num_threads, threads
from leanconv.transposed_api import (
    conv1d_backward_data,
    conv2d_backward_data,
    conv3d_backward_data,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    plan_backward_data,
    plan_transpose,
)

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "AlgorithmInfo",
    "AllocationError",
    "ArgumentError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "BackwardWeightsPlan",
    "BoundPlan",
    "CacheError",
    "CompileError",
    "Cp",
    "Explanation",
    "FusedFilter",
    "LeanconvError",
    "MemoryLimitError",
    "MissingPackageError",
    "ModelError",
    "NetworkPlan",
    "NotApplicableError",
    "Plan",
    "Problem",
    "Separable",
    "UnsupportedModelError",
    "__version__",
    "algorithms",
    "box_filter",
    "cache_clear",
    "cache_info",
    "conv1d",
    "conv1d_backward_data",
    "conv1d_backward_weights",
    "conv2d",
    "conv2d_backward_data",
    "conv2d_backward_weights",
    "conv3d",
    "conv3d_backward_data",
    "conv3d_backward_weights",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cp",
    "empty",
    "explain",
    "flipped",
    "fma_peak",
    "fuse_filters",
    "get_memory_limit",
    "get_num_threads",
    "inverted_residual",
    "mapped_conv2d",
    "memory_bandwidth",
    "memory_limit",
    "network_frontier",
    "pinned",
    "plan",
    "plan_backward_data",
    "plan_backward_weights",
    "plan_network",
    "plan_transpose",
    "record_plans",
    "register_algorithm",
    "regular_map",
    "separable",
    "separable_conv2d",
    "set_flush_denormals",
    "set_memory_limit",
    "set_num_threads",
    "shift_conv2d",
    "shuffle_channels",
    "shuffle_inputs",
    "threads",
    "to_layout",
    "unregister_algorithm",
]
