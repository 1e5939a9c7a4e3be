"""What a layer asks for besides its tensors, checked once and kept; each remembers the plans made for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from leanconv.algorithms import REGISTRY
from leanconv.checks import flag, integer, one_of, per_axis
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.options import PAD_MODES, RESIDUAL_ORDERS, ActivationLike, Ints, Padding, make_activation
from leanconv.planning.limits import UNLIMITED, resolve_limit
from leanconv.planning.wanted import ACCURACIES, CHOICES, named
from leanconv.problem import Activation

NO_LIMIT = -1  # of an operator's argument: no limit, whatever holds by default


class LayerOptions:
    """The options of one kind of layer. Equal options are one object while they are remembered.

    Attributes:
        ndim: spatial axes.
        output_padding: of a transposed convolution, for each axis; None if it is an ordinary one.
        channels_last: whether outputs are channels last whatever the image is; None for the image's format.
        stride: for each axis.
        pads: (low, high) for each axis.
        dilation: for each axis.
        groups: of channels.
        pad_mode: what padding holds.
        activation: or None.
        residual_order: "before" or "after" the activation.
        algorithm: a name, or several; or a function.
        accuracy: as in `leanconv.plan`; so are deterministic, choose, memory_limit and threads.
        deterministic: see there.
        choose: see there.
        memory_limit: bytes; NO_LIMIT; None for what holds by default when the layer runs.
        threads: see there.
        calls: what was decided for tensors of a kind, by their shapes and strides.
    """

    __slots__ = (
        "accuracy",
        "activation",
        "algorithm",
        "calls",
        "channels_last",
        "choose",
        "deterministic",
        "dilation",
        "groups",
        "memory_limit",
        "ndim",
        "output_padding",
        "pad_mode",
        "pads",
        "residual_order",
        "stride",
        "threads",
    )

    def __init__(
        self,
        ndim: int,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        kernel: tuple[int, ...] | None = None,
        pad_mode: str = "zeros",
        activation: ActivationLike = None,
        residual_order: str = "before",
        algorithm: Any = "auto",
        accuracy: str = "standard",
        deterministic: bool = False,
        choose: str = "model",
        memory_limit: int | str | None = None,
        threads: int | None = None,
        channels_last: bool | None = None,
        output_padding: Ints | None = None,
    ) -> None:
        """Check the options; `kernel` is needed where padding is "same"."""
        self.ndim = ndim
        self.stride = per_axis("stride", _single(stride), ndim)
        self.dilation = per_axis("dilation", _single(dilation), ndim)
        self.groups = integer("groups", groups, 1)
        self.pads = _pads(padding, ndim, self.stride, self.dilation, kernel)
        self.pad_mode = one_of("pad_mode", pad_mode, PAD_MODES)
        self.activation = make_activation(activation)
        self.residual_order = one_of("residual_order", residual_order, RESIDUAL_ORDERS)
        self.algorithm = tuple(algorithm) if isinstance(algorithm, list) else algorithm
        named(self.algorithm, REGISTRY.names)
        self.accuracy = one_of("accuracy", accuracy, ACCURACIES)
        self.deterministic = flag("deterministic", deterministic)
        self.choose = one_of("choose", choose, CHOICES)
        if isinstance(memory_limit, str) and memory_limit.strip().lower() == UNLIMITED:
            self.memory_limit: int | None = NO_LIMIT
        else:
            self.memory_limit = None if memory_limit is None else resolve_limit(memory_limit)
        self.threads = None if threads is None else integer("threads", threads, 1)
        self.channels_last = channels_last
        self.output_padding = None if output_padding is None else self._output_padding(output_padding)
        self.calls: dict[Any, Any] = {}

    def _output_padding(self, value: Any) -> tuple[int, ...]:
        """What is added to a transposed convolution's output at its end."""
        entries = _single(value)
        entries = entries if isinstance(entries, tuple | list) else (entries,) * self.ndim
        if len(entries) != self.ndim:
            rule = f"must be an int or a tuple of {self.ndim}, one for each spatial axis"
            raise ArgumentValueError("output_padding", value, rule)
        more = tuple(integer("output_padding", entry, 0, shown=value, what="entries") for entry in entries)
        if any(n >= max(s, d) for n, s, d in zip(more, self.stride, self.dilation, strict=True)):
            rule = f"must be smaller than stride {self.stride} or dilation {self.dilation}"
            raise ArgumentValueError("output_padding", value, rule)
        return more

    def output_size(self, in_size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Extents of the output; of symbols as well."""
        if self.output_padding is not None:
            steps = zip(in_size, kernel, self.stride, self.dilation, self.pads, self.output_padding, strict=True)
            return [(n - 1) * s + d * (k - 1) + 1 - low - high + more for n, k, s, d, (low, high), more in steps]
        axes = zip(in_size, kernel, self.stride, self.dilation, self.pads, strict=True)
        return [(n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, d, (low, high) in axes]

    def arguments(self) -> tuple[Any, ...]:
        """The options as arguments of an operator: ints, texts and lists of ints only."""
        algorithm = self.algorithm
        if callable(algorithm):
            rule = "must be a name or several: a function cannot be kept in a graph or for a backward pass"
            raise ArgumentTypeError("algorithm", algorithm, rule)
        return (
            list(self.stride),
            [end for pair in self.pads for end in pair],
            list(self.dilation),
            self.groups,
            self.pad_mode,
            _spelt(self.activation),
            self.residual_order,
            algorithm if isinstance(algorithm, str) else ",".join(algorithm),
            self.accuracy,
            self.deterministic,
            self.choose,
            self.memory_limit,
            self.threads,
            self.channels_last,
        )

    def adjoint(self) -> LayerOptions:
        """The ordinary convolution whose gradient with respect to the image a transposed one is; see `maps.py`."""
        more = self.output_padding or (0,) * self.ndim
        pads = tuple((low, max(0, high - extra)) for (low, high), extra in zip(self.pads, more, strict=True))
        return self.with_(
            padding=pads, output_padding=None, activation=None, residual_order="before", channels_last=None
        )

    def plain(self) -> LayerOptions:
        """The options of the bilinear map alone, without what is done to its result."""
        if self.activation is None and self.residual_order == "before":
            return self
        return self.with_(activation=None, residual_order="before")

    def unpadded(self) -> LayerOptions:
        """The same options for an image that is padded already."""
        return self.with_(padding=0, pad_mode="zeros")

    def grouped(self, times: int) -> LayerOptions:
        """The same options for so many layers side by side as groups of one."""
        return self.with_(groups=self.groups * times)

    def with_(self, **changes: Any) -> LayerOptions:
        """The same options but for some."""
        names = (name for name in self.__slots__ if name not in ("calls", "pads"))
        values = {name: getattr(self, name) for name in names} | {"padding": self.pads}
        return options(**{**values, **changes})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled without what was decided."""
        return _from_arguments, (self.ndim, *self.arguments(), self.output_padding)


def _spelt(activation: Activation | None) -> str:
    return "" if activation is None else " ".join([activation.name, *(repr(number) for number in activation.params)])


def _from_arguments(ndim: int, *arguments: Any) -> LayerOptions:
    stride, ends, dilation, groups, pad_mode, activation, order, algorithm, *rest = arguments
    words = activation.split()
    return options(
        ndim,
        tuple(stride),
        tuple(zip(ends[::2], ends[1::2], strict=True)),
        tuple(dilation),
        groups,
        None,
        pad_mode,
        (words[0], *map(float, words[1:])) if words else None,
        order,
        tuple(algorithm.split(",")) if "," in algorithm else algorithm,
        *rest,
    )


def from_arguments(ndim: int, arguments: tuple[Any, ...]) -> LayerOptions:
    """The options that `LayerOptions.arguments` has given."""
    key = tuple(tuple(value) if isinstance(value, list) else value for value in arguments)
    return _remembered(ndim, *key)


_remembered = lru_cache(maxsize=1024)(_from_arguments)
_kept = lru_cache(maxsize=1024, typed=True)(LayerOptions)


def options(*args: Any, **kwargs: Any) -> LayerOptions:
    """`LayerOptions` of these arguments; those made before if the arguments are equal.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a value that is not allowed.
    """
    try:
        return _kept(*args, **kwargs)
    except ArgumentTypeError:
        raise
    except TypeError:  # lists cannot be keys
        return _kept(*map(_frozen, args), **{name: _frozen(value) for name, value in kwargs.items()})


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    try:
        hash(value)
    except TypeError:
        raise ArgumentTypeError("options", value, "must be numbers, texts or lists of them") from None
    return value


def _single(value: Any) -> Any:
    """PyTorch takes a list of one number for that number."""
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def _pads(
    padding: Any, ndim: int, stride: Sequence[int], dilation: Sequence[int], kernel: Sequence[int] | None
) -> tuple[tuple[int, int], ...]:
    """(low, high) for each axis, by PyTorch's rules, which allow "same" without a stride only."""
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * ndim
        if padding != "same":
            raise ArgumentValueError("padding", padding, "must be 'same', 'valid' or numbers")
        if any(step != 1 for step in stride):
            raise ArgumentValueError("padding", padding, f"needs stride 1, as in PyTorch; stride is {tuple(stride)}")
        assert kernel is not None
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    padding = padding if ndim == 1 else _single(padding)
    if not isinstance(padding, tuple | list):
        return ((integer("padding", padding, 0),) * 2,) * ndim
    pairs = [entry if isinstance(entry, tuple | list) else (entry, entry) for entry in padding]
    if len(pairs) != ndim or any(len(pair) != 2 for pair in pairs):
        rule = f"must be an int or a tuple of {ndim}: for each spatial axis an int or a (low, high) pair"
        raise ArgumentValueError("padding", padding, rule)
    low_high = [[integer("padding", end, 0, shown=padding, what="entries") for end in pair] for pair in pairs]
    return tuple((low, high) for low, high in low_high)
