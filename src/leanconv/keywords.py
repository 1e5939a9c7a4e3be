"""What functions take by keyword: one table for each kind, that type checkers, `help` and the checks of names share.

A function that takes `**options: Unpack[CallOptions]` is decorated with `@takes(CallOptions)`, so that its signature
shows them all with their defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypedDict, TypeVar

from numpy.typing import DTypeLike

from leanconv.errors import ArgumentTypeError
from leanconv.options import ActivationLike, Ints, Padding
from leanconv.planning.wanted import AlgorithmLike

F = TypeVar("F", bound=Callable[..., Any])


class Choice(TypedDict, total=False):
    """How the algorithm is chosen; see `leanconv.plan`."""

    algorithm: AlgorithmLike
    accuracy: str
    deterministic: bool
    choose: str
    memory_limit: int | str | None
    threads: int | None


class CallOptions(Choice, total=False):
    """What a call of a convolution takes beside its geometry; see `leanconv.conv2d`."""

    layout: str
    pad_mode: str
    activation: ActivationLike
    residual: Any
    residual_order: str
    out: Any


class ProblemOptions(TypedDict, total=False):
    """What describes a problem beside its shapes; see `leanconv.plan`."""

    bias: bool
    stride: Ints
    padding: Padding
    dilation: Ints
    groups: int
    layout: str
    pad_mode: str
    activation: ActivationLike
    residual: bool
    residual_order: str


class AnyProblemOptions(ProblemOptions, total=False):
    """The same for any direction; `output_padding` is for "transposed" only."""

    output_padding: Ints


class PlanOptions(AnyProblemOptions, Choice, total=False):
    """What plans of other directions than forward take; see `leanconv.plan_transpose`."""

    dtype: DTypeLike
    budget: float
    workspace_limit: int | str | None
    parameters: Mapping[str, int] | None


class WeightOptions(TypedDict, total=False):
    """What a call for the gradient with respect to weights takes; see `leanconv.conv2d_backward_weights`."""

    layout: str
    bias: bool
    algorithm: AlgorithmLike
    accuracy: str
    memory_limit: int | str | None
    threads: int | None
    out: Any
    bias_out: Any


_DEFAULTS: dict[str, Any] = {
    "accuracy": "standard",
    "algorithm": "auto",
    "bias": False,
    "budget": 1.0,
    "choose": "model",
    "deterministic": False,
    "dilation": 1,
    "dtype": "float32",
    "groups": 1,
    "layout": "NCHW",
    "output_padding": 0,
    "pad_mode": "zeros",
    "padding": 0,
    "residual_order": "before",
    "stride": 1,
}  # None for the others


def takes(table: type, *, without: Iterable[str] = (), **defaults: Any) -> Callable[[F], F]:
    """Show the names of a table in a function's signature, in place of its `**options`.

    Args:
        table: what the function's `**options` are unpacked from.
        without: names that it refuses.
        **defaults: where the function differs from the others.
    """
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in table.__annotations__.items()}
    names = [name for name in kinds if name not in without]

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        kept = [entry for entry in own.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
        known = {**dict.fromkeys(names), **_DEFAULTS, **defaults}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=known[name], annotation=kinds[name])
            for name in names
        ]
        function.__signature__ = own.replace(parameters=kept + more)  # type: ignore[attr-defined]
        return function

    return decorate


def refuse(options: Mapping[str, Any], names: Iterable[str]) -> NoReturn:
    """Raise an error for the first of `options` that is none of `names`.

    Raises:
        ArgumentTypeError: always; it says which name may have been meant.
    """
    import difflib

    known = sorted(names)
    name, value = next((name, value) for name, value in options.items() if name not in known)
    close = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    meant = f"did you mean {close[0]}?" if close else f"the options are {', '.join(known)}"
    raise ArgumentTypeError(name, value, f"there is no such option; {meant}")
