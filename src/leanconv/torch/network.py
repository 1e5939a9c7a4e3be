"""A model whose evaluation runs as a graph of fused layers; everything else about it stays as it is."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, fx, nn

from leanconv.errors import LeanconvError
from leanconv.locks import new_lock
from leanconv.plan import arena_for
from leanconv.planning.network import NetworkPlan, plan_layers
from leanconv.torch.engine import limit_of
from leanconv.torch.functional import unobserved
from leanconv.torch.fusion import Chain, hooked, views_as_reshapes
from leanconv.torch.layer import FusedLayer, Network
from leanconv.torch.options import LayerOptions
from leanconv.torch.ready import Ready
from leanconv.torch.threads import num_threads
from leanconv.torch.whole import Whole

SIGNATURES_KEPT = 8  # kinds of inputs whose plans a model keeps


class ChangedModelError(LeanconvError, RuntimeError):
    """A swapped model's modules were exchanged, so that its graph is not its own any more."""


class Tracer(fx.Tracer):  # type: ignore[misc]
    """Records modules of PyTorch, and those with hooks, as one node each."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        """PyTorch's rule, and hooks."""
        return hooked(m) or type(m).__module__.startswith("leanconv.torch") or super().is_leaf_module(m, qualified_name)


class Fused:
    """The `forward` of a swapped model: compiled as a whole where evaluation allows it, else the model's own.

    What no network can say (see `lowering.py`) runs as a graph of fused layers between PyTorch's operators.
    """

    def __init__(
        self, model: nn.Module, module: fx.GraphModule, shared: Network, options: LayerOptions, whole: Whole
    ) -> None:
        """`options`: of all layers; their geometry means nothing here."""
        self.model = model
        self.module = module
        self.whole = whole
        self.shared = shared
        self.options = options
        self.parts = [
            (parent, name, child) for parent in model.modules() for name, child in parent._modules.items() if child
        ]
        self.own = vars(model).get("forward")
        self._start()

    def _start(self) -> None:
        self._lock = new_lock()
        self._networks: dict[Any, tuple[NetworkPlan, dict[Any, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_networks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        if not self.applies(args, kwargs):
            return self.original(*args, **kwargs)
        self.check()
        with torch.no_grad():
            tensors = self.whole.tensors(args, kwargs)
            if tensors is not None:
                ready = self.ready(tensors)
                if isinstance(ready, Ready):
                    return ready.run(tensors)
            self.plan(args, kwargs)
            return self.module(*args, **kwargs)

    def ready(self, tensors: dict[str, Tensor]) -> Ready | str:
        """The model as one network for such inputs; or why it runs layer by layer."""
        return self.whole.ready(tensors, self.options.threads or num_threads(), limit_of(self.options))

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's class computes, module by module."""
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.model).forward(self.model, *args, **kwargs)

    def applies(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the fused graph computes what the model would: in evaluation, without gradients."""
        if self.model.training or any(child.training for _, _, child in self.parts) or not unobserved():
            return False
        if not torch.is_grad_enabled():
            return True
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        return not any(t.requires_grad for t in (*tensors, *self.model.parameters()))

    def check(self) -> None:
        """Raise if the model has got other modules since it was traced."""
        for parent, name, child in self.parts:
            if parent._modules.get(name) is not child:
                raise ChangedModelError(
                    f"module {name!r} of {type(parent).__name__} was exchanged since leanconv.torch.swap; "
                    "call unswap and swap again"
                )

    def plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NetworkPlan:
        """The plan of all layers together for inputs of such shapes, made when they are first seen.

        Raises:
            MemoryLimitError: no plans fit the limit; says the least that would do.
        """
        options = self.options
        threads, limit = options.threads or num_threads(), limit_of(options)
        signature = (threads, limit, *map(_kind, args), *((name, _kind(value)) for name, value in kwargs.items()))
        known = self._networks.get(signature)
        if known is not None:
            return known[0]
        with self._lock:
            recorded = self._problems(args, kwargs)
            found = plan_layers(
                [(str(number), problem) for number, (_, problem) in enumerate(recorded, 1)],
                threads,
                limit,
                algorithm=options.algorithm,
                accuracy=options.accuracy,
                deterministic=options.deterministic,
            )
            plans = {}
            for (layer, problem), step in zip(recorded, found.steps, strict=True):
                if limit is None:
                    step.plan.arena = arena_for(None)
                plans[id(layer), problem, threads, limit] = step.plan
            if len(self._networks) >= SIGNATURES_KEPT:
                self._networks.clear()
            self._networks[signature] = found, plans
            self.shared.plans = {key: plan for _, some in self._networks.values() for key, plan in some.items()}
            return found

    def _problems(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[FusedLayer, Any]]:
        """The layers and their problems in the order they run, seen by tensors that have shapes only."""
        from torch._subclasses import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
            named = {n: mode.from_tensor(v) if isinstance(v, Tensor) else v for n, v in kwargs.items()}
            self.shared.recorded = []
            try:
                self.module(*fake, **named)
                return self.shared.recorded
            finally:
                self.shared.recorded = None

    def install(self) -> None:
        """Become the model's `forward`."""
        vars(self.model)["forward"] = self

    def remove(self) -> None:
        """Give the model its own `forward` back."""
        del vars(self.model)["forward"]
        if self.own is not None:
            vars(self.model)["forward"] = self.own


def build(
    model: nn.Module, graph: fx.Graph, found: list[Chain], make: Any
) -> tuple[fx.GraphModule, list[tuple[Chain, str, FusedLayer]]]:
    """The graph with each chain replaced by a `FusedLayer`; modules are shared with the model."""
    module = fx.GraphModule(model, graph)
    layers = []
    instead: dict[fx.Node | None, fx.Node] = {}
    for number, chain in enumerate(found):
        name = f"leanconv_{number}"
        layer = make(chain)
        module.add_submodule(name, layer)
        last = chain.nodes[-1]
        with graph.inserting_after(last):
            residual = instead.get(chain.residual, chain.residual)
            node = graph.call_module(name, (chain.conv.args[0], *([] if residual is None else [residual])))
        last.replace_all_uses_with(node)
        instead[last] = node
        for old in reversed(chain.nodes):
            graph.erase_node(old)
        layers.append((chain, name, layer))
    views_as_reshapes(graph)
    for node in graph.nodes:
        node.type = None  # annotations that are texts cannot be pickled
    graph.lint()
    module.recompile()
    module.eval()
    return module, layers


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (tuple(value.shape), tuple(value.stride()), value.dtype)
    return value if isinstance(value, int | float | str | bool | types.NoneType) else type(value)
