"""The exceptions leanconv raises.

All of them are `LeanconvError`; each is also the built-in exception a caller would expect (`ValueError`,
`TypeError`, `MemoryError`, `RuntimeError`), so code that does not know this package can still catch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LONGEST_VALUE = 80


class LeanconvError(Exception):
    """Base of every exception this package raises on purpose."""


class ArgumentError(LeanconvError):
    """An argument breaks a rule; nothing has been computed or written.

    Attributes:
        argument: name of the argument as the caller spells it, such as `"stride"`.
        value: what was passed.
        rule: what is required, with the numbers of this call.
    """

    def __init__(self, argument: str, value: Any, rule: str) -> None:
        """Keep the three parts; the message is `argument=value: rule`."""
        super().__init__(argument, value, rule)
        self.argument = argument
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        """Return the message on one line."""
        return f"{self.argument}={_show(self.value)}: {self.rule}"


class ArgumentValueError(ArgumentError, ValueError):
    """An argument has the right type and a value that is not allowed."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has the wrong type, element type or device."""


class NotApplicableError(LeanconvError, ValueError):
    """The algorithm that was asked for cannot compute this problem.

    Attributes:
        algorithm: its name.
        reason: one sentence.
    """

    def __init__(self, algorithm: str, reason: str) -> None:
        """Keep the name and the reason."""
        super().__init__(algorithm, reason)
        self.algorithm = algorithm
        self.reason = reason

    def __str__(self) -> str:
        """Return the message on one line."""
        return f"algorithm {self.algorithm!r} does not apply: {self.reason}"


class MemoryLimitError(LeanconvError, MemoryError):
    """More memory is needed than the limit allows.

    Attributes:
        limit: bytes allowed.
        needed: bytes needed.
        what: what needs them.
    """

    def __init__(self, limit: int, needed: int, what: str = "the workspace") -> None:
        """Keep the two numbers, both in bytes."""
        super().__init__(limit, needed, what)
        self.limit = limit
        self.needed = needed
        self.what = what

    def __str__(self) -> str:
        """Return the message on one line; exact bytes, because the two may differ by little."""
        return f"{self.what} needs {self.needed:,} bytes; the memory limit is {self.limit:,} bytes"


class AllocationError(LeanconvError, MemoryError):
    """The system did not give the memory that was asked for."""


class CompileError(LeanconvError, RuntimeError):
    """A kernel could not be compiled or loaded."""


class CacheError(LeanconvError, RuntimeError):
    """The cache on disk cannot do what was asked for."""


class MissingPackageError(LeanconvError, ImportError):
    """A package that this needs is not installed.

    Attributes:
        package: its name.
        why: what it is needed for.
        remedy: what installs it.
    """

    def __init__(self, package: str, why: str, remedy: str) -> None:
        """Keep the three parts."""
        super().__init__(package, why, remedy)
        self.package = package
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the message on one line."""
        return f"the package {self.package} is not installed; {self.why}: {self.remedy}"


class ModelError(LeanconvError, ValueError):
    """A model is malformed, or breaks a rule of its format."""


class UnsupportedModelError(ModelError):
    """A model is sound, but holds what leanconv has not got.

    Attributes:
        reasons: one sentence for each thing that is not supported; all of them, found before anything ran.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        """Keep the reasons."""
        super().__init__(tuple(reasons))
        self.reasons = tuple(reasons)

    def __str__(self) -> str:
        """Return all reasons, a line each."""
        return "the model is not supported:\n" + "\n".join(f"  {reason}" for reason in self.reasons)


def _show(value: Any) -> str:
    """Return a short `repr`: arrays by shape and element type, long texts cut."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"<{type(value).__name__} {tuple(shape)} {dtype}>"
    try:
        text = repr(value)
    except Exception:
        # A broken __repr__ of a stranger's object must not hide the rule it broke.
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
