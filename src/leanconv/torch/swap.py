"""`swap(model)`: let leanconv compute a model's convolutions, and `unswap` to undo it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.torch import modules, timing
from leanconv.torch.engine import limit_of
from leanconv.torch.fusion import Chain, Modules, chains, hooked
from leanconv.torch.layer import FusedLayer, Network
from leanconv.torch.network import Fused, Tracer, build
from leanconv.torch.options import LayerOptions, options
from leanconv.torch.parked import Parked
from leanconv.torch.ready import Ready
from leanconv.torch.recipe import recipe_of
from leanconv.torch.report import SwappedLayer, SwapReport
from leanconv.torch.tensors import DTYPES
from leanconv.torch.whole import Whole

_REPORT = "_leanconv_swapped"


def swap(
    model: nn.Module,
    *,
    memory_limit: int | str | None = None,
    algorithm: Any = "auto",
    accuracy: str = "standard",
    deterministic: bool = False,
    threads: int | None = None,
    example_input: Any = None,
    fuse: bool = True,
    measure: bool | None = None,
    release_weights: bool | str = False,
) -> SwapReport:
    """Let leanconv compute the convolutions of a model, in place.

    In evaluation without gradients the model runs as a graph in which batch norms are folded into the convolutions,
    additions and activations are done in the same pass, images are channels last, and all layers share one workspace.
    In training, or where gradients are recorded, the model's own code runs, with convolutions and their gradients by
    leanconv. Parameters, buffers and `state_dict` stay what they were; changed weights are packed again.

    Args:
        model: any module. If it cannot be traced by `torch.fx`, its convolutions are replaced one by one and nothing is
            fused; the report says so.
        memory_limit: most bytes of the one workspace, and of packed weights of all layers beyond the size of the plain
            ones, together, for each shape of inputs; per layer if the model could not be traced.
        algorithm: as in `leanconv.plan`; so are accuracy, deterministic and threads.
        accuracy: see there.
        deterministic: see there.
        threads: see there; None for what holds when the model runs.
        example_input: a tensor, or a tuple of what the model takes. With it the report has algorithms and bytes, and
            additions can be fused (whose operands' shapes must be known).
        fuse: whether to trace and fuse at all.
        measure: whether to time every layer before and after; by default if there is an example.
        release_weights: whether to move parameters and buffers from memory to a file without a name, in the folder of
            temporary files or in one that is named, which should be on a disk. Everything works as before; what the
            model runs with are packed weights, and the plain ones are read from the file when they are asked for.
            Memory that other models share with this one is not shared any more.

    Returns:
        What has been done; a table when printed.

    Raises:
        ArgumentTypeError: not a module, or an argument of the wrong type.
        ArgumentValueError: a value that is not allowed; a model that is swapped already.
        MemoryLimitError: no plans fit the limit; says the least that would do. The model is as before.
        AllocationError: weights cannot be moved to a file. The model is as before.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", model, "must be a torch.nn.Module")
    if _REPORT in vars(model):
        raise ArgumentValueError("model", type(model).__name__, "is swapped already; call unswap first")
    settings = {
        "algorithm": algorithm,
        "accuracy": accuracy,
        "deterministic": deterministic,
        "memory_limit": memory_limit,
        "threads": threads,
    }
    common = options(2, **settings)
    example = example_input if isinstance(example_input, tuple) or example_input is None else (example_input,)
    if measure and example is None:
        raise ArgumentValueError("measure", measure, "needs an example_input")
    timed = example if measure is not False else None
    found, left = _convolutions(model)
    fused, report = None, None
    parked = None
    folder = _folder(release_weights)
    training = [module for module in model.modules() if module.training]
    converted: list[nn.Module] = []
    model.eval()
    try:
        graph, whole, reason = _trace(model, example, common) if fuse else (None, None, "fuse=False")
        before = timing.nodes(model, graph, timed) if timed is not None and graph is not None else {}
        alone = timing.whole(model, timed) if timed is not None else None
        if folder is not None:
            parked = Parked(model, folder)
        for module in found.values():
            converted.append(modules.convert(module, **settings))
        if graph is None or whole is None:
            rows = [SwappedLayer(name, "conv") for name in found]
            report = SwapReport(tuple(rows), left, False, reason, limit_of(common))
        else:
            fused, layers = _fused(model, graph, found, settings, common, whole)
            whole.parked = parked
            report = _report(fused, layers, left, common, example, before, timed is not None)
            fused.install()
        if timed is not None and alone is not None:
            report = replace(report, before_seconds=alone, after_seconds=timing.whole(model, timed))
    except BaseException:
        if fused is not None and vars(model).get("forward") is fused:
            fused.remove()
        for module in converted:
            modules.revert(module)
        if parked is not None:
            parked.restore()
        raise
    finally:
        for module in training:
            module.training = True
    if parked is not None:
        parked.rest()
        report = replace(report, released_bytes=parked.nbytes)
    vars(model)[_REPORT] = converted
    return report


def _folder(release_weights: Any) -> str | None:
    """Where a file for the weights is to be."""
    if not isinstance(release_weights, bool | str):
        raise ArgumentTypeError("release_weights", release_weights, "must be a bool, or the path of a folder")
    if isinstance(release_weights, str):
        if not os.path.isdir(release_weights):
            raise ArgumentValueError("release_weights", release_weights, "must be a folder that exists")
        return release_weights
    return tempfile.gettempdir() if release_weights else None


def unswap(model: nn.Module) -> nn.Module:
    """Undo `swap`: the model is PyTorch's again.

    Raises:
        ArgumentTypeError: not a module.
        ArgumentValueError: the model is not swapped.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("model", model, "must be a torch.nn.Module")
    if _REPORT not in vars(model):
        raise ArgumentValueError("model", type(model).__name__, "is not swapped")
    for module in vars(model).pop(_REPORT):
        modules.revert(module)
    forward = vars(model).get("forward")
    if isinstance(forward, Fused):
        forward.remove()
        if forward.whole.parked is not None:
            forward.whole.parked.restore()
    return model


def _convolutions(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Modules that can be computed here, by name, and why others cannot."""
    found: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd):
            continue
        if type(module) not in modules.REPLACEMENTS:
            left[name] = f"{type(module).__name__} is not a class that leanconv has a twin of"
        elif isinstance(module.weight, nn.parameter.UninitializedParameter):
            left[name] = "its weights are not initialised"
        elif module.weight.dtype not in DTYPES:
            left[name] = f"its element type is {module.weight.dtype}"
        elif module.weight.device.type != "cpu":
            left[name] = f"it is on {module.weight.device}"
        else:
            found[name] = module
    return found, left


def _trace(
    model: nn.Module, example: tuple[Any, ...] | None, common: LayerOptions
) -> tuple[fx.Graph | None, Whole | None, str | None]:
    """The model's graph, with shapes if there is an example, and what compiles it whole; or why there is none."""
    if hooked(model) or model._forward_hooks_with_kwargs:
        return None, None, "the model itself has hooks"
    try:
        graph = Tracer().trace(model)
        whole = Whole(recipe_of(graph), model, common)
        if example is not None:
            types = whole.types(example)
            if types is None:
                with torch.no_grad():
                    types = timing.types(model, graph, example)
            for node in graph.nodes:
                node.meta["type"] = types.get(node.name)
    except Exception as error:  # whatever the model's code does with what stands in for tensors
        return None, None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return graph, whole, None


def _fused(
    model: nn.Module,
    graph: fx.Graph,
    found: dict[str, nn.Module],
    settings: dict[str, Any],
    common: LayerOptions,
    whole: Whole,
) -> tuple[Fused, list[tuple[Chain, str, FusedLayer]]]:
    named = dict(model.named_modules())
    shared = Network()

    def make(chain: Chain) -> FusedLayer:
        conv = named[str(chain.conv.target)]
        ndim = len(conv.kernel_size)
        chosen = options(
            ndim,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.kernel_size,
            conv.padding_mode,
            chain.activation,
            chain.residual_order,
            channels_last=True if ndim > 1 else None,
            output_padding=conv.output_padding if conv.transposed else None,
            **settings,
        )
        return FusedLayer(conv, None if chain.norm is None else named[str(chain.norm.target)], chosen, shared)

    plain = {name: module for name, module in found.items() if not hooked(module)}
    module, layers = build(model, graph, chains(graph, Modules(named, plain)), make)
    return Fused(model, module, shared, common, whole), layers


def _report(
    fused: Fused,
    layers: list[tuple[Chain, str, FusedLayer]],
    left: dict[str, str],
    common: LayerOptions,
    example: tuple[Any, ...] | None,
    before: dict[str, float],
    timed: bool,
) -> SwapReport:
    """What runs for the example."""
    if example is None:
        rows = [SwappedLayer(str(chain.conv.target), chain.text) for chain, _, _ in layers]
        return SwapReport(tuple(rows), left, True, None, limit_of(common))
    with torch.no_grad():
        tensors = fused.whole.tensors(example, {})
        ready = "an input that is no tensor" if tensors is None else fused.ready(tensors)
        if tensors is not None and isinstance(ready, Ready):
            return _whole_report(ready, tensors, layers, left, common, before, timed)
        network = fused.plan(example, {})
    after = timing.nodes(fused.model, fused.module, example) if timed else {}
    rows = []
    ran = [node for node in fused.module.graph.nodes if node.op == "call_module"]
    by_name = {name: (chain, layer) for chain, name, layer in layers}
    steps = iter(network.steps)
    for node in ran:
        if node.target in by_name:
            chain, _ = by_name[node.target]
            step = next(steps)
            names = [inner.name for inner in chain.nodes]
            rows.append(
                SwappedLayer(
                    str(chain.conv.target),
                    chain.text,
                    step.plan.problem.describe(),
                    step.plan.algorithm,
                    step.plan.workspace_bytes,
                    step.plan.packed_weight_bytes,
                    sum(before[name] for name in names) if timed else None,
                    after[node.name] if timed else None,
                )
            )
    return SwapReport(
        tuple(rows),
        left,
        True,
        None,
        limit_of(common),
        network.workspace_bytes,
        network.packed_weight_bytes,
        network.needed_bytes,
        whole=False,
        apart=str(ready),
    )


def _whole_report(
    ready: Ready,
    tensors: dict[str, Tensor],
    layers: list[tuple[Chain, str, FusedLayer]],
    left: dict[str, str],
    common: LayerOptions,
    before: dict[str, float],
    timed: bool,
) -> SwapReport:
    """What runs for the example, compiled as a whole."""
    network = ready.network
    steps = network.steps
    after = network.profile(ready.arrays(tensors), timing.ROUNDS).seconds if timed else []
    nodes = {str(chain.conv.target): [node.name for node in chain.nodes] for chain, _, _ in layers}
    rows = []
    for layer in ready.layers:
        step = steps[layer.step]
        names = [name for conv in layer.names for name in nodes.get(conv, ())]
        rows.append(
            SwappedLayer(
                ", ".join(layer.names),
                ", ".join(layer.fused),
                "; ".join(layer.problems),
                step.how,
                step.workspace_bytes,
                step.kept_bytes,
                sum(before.get(name, 0.0) for name in names) if timed else None,
                after[layer.step] if timed else None,
            )
        )
    return SwapReport(
        tuple(rows),
        left,
        True,
        None,
        limit_of(common),
        network.workspace_bytes,
        network.kept_bytes,
        network.peak_bytes - ready.activation_bytes + network.extra_bytes,
        whole=True,
        activation_bytes=ready.activation_bytes,
    )


def is_swapped(model: nn.Module) -> bool:
    """Whether a model was swapped and not unswapped."""
    return isinstance(model, nn.Module) and _REPORT in vars(model)
