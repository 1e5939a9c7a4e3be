"""Convolution on CPUs: the published algorithms side by side, each with its exact bytes and its time."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from leanconv.api import algorithms, conv1d, conv2d, conv3d, plan
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
from leanconv.plan import Plan
from leanconv.planning.limits import get_memory_limit, memory_limit, set_memory_limit
from leanconv.problem import Activation, Problem
from leanconv.threads import get_num_threads, set_flush_denormals, set_num_threads, threads

if TYPE_CHECKING:
    from leanconv.api_planning import explain, network_frontier, plan_network
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
    from leanconv.layouts import to_layout
    from leanconv.mapped import mapped_conv2d, regular_map
    from leanconv.outputs import empty
    from leanconv.peak import fma_peak
    from leanconv.planning.explain import Explanation
    from leanconv.planning.network import NetworkPlan
    from leanconv.planning.pins import pinned, record_plans
    from leanconv.registry import register_algorithm, unregister_algorithm
    from leanconv.select import AlgorithmInfo
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

# Where the other names are. Most programs need few of them, and each module takes a third of a millisecond to import.
_PLACES = {
    "api_planning": "explain network_frontier plan_network",
    "backward": "BackwardWeightsPlan conv1d_backward_weights conv2d_backward_weights conv3d_backward_weights "
    "plan_backward_weights",
    "bandwidth": "memory_bandwidth",
    "blocks": "inverted_residual separable_conv2d",
    "bound": "BoundPlan",
    "compiled": "cache_clear cache_info",
    "decomp": "Cp FusedFilter Separable box_filter cp flipped fuse_filters separable shift_conv2d "
    "shuffle_channels shuffle_inputs",
    "layouts": "to_layout",
    "mapped": "mapped_conv2d regular_map",
    "outputs": "empty",
    "peak": "fma_peak",
    "planning.explain": "Explanation",
    "planning.network": "NetworkPlan",
    "planning.pins": "pinned record_plans",
    "registry": "register_algorithm unregister_algorithm",
    "select": "AlgorithmInfo",
    "transposed_api": "conv1d_backward_data conv2d_backward_data conv3d_backward_data conv_transpose1d "
    "conv_transpose2d conv_transpose3d plan_backward_data plan_transpose",
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names.split()}

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


def __getattr__(name: str) -> Any:
    """Import what is not imported yet, once; what there is none of is an error as ever."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def __dir__() -> list[str]:
    """All names, imported or not."""
    return list(__all__)
