"""What a dense kernel may do first in every chunk: copy what it will read into the thread's own memory."""

from __future__ import annotations

from typing import Protocol

from leanconv.codegen.ir import Function, Value
from leanconv.kernels.fields import Fields


class Stage(Protocol):
    """A copy of what some output pixels read; hashable, because kernels are kept by what they are made for."""

    def emit(self, fn: Function, fields: Fields, x: Value, scratch: Value, first: Value, end: Value) -> None:
        """Copy what the output pixels [first, end) of the image at `x` read to `scratch`."""
