"""What a dense kernel may do first in every chunk: copy what it will read into the thread's own memory."""

from __future__ import annotations

from typing import Protocol

from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.fields import Fields


class Stage(Protocol):
    """A copy of what some output pixels read; hashable, because kernels are kept by what they are made for."""

    def emit(
        self, fn: Function, fields: Fields, x: Value, scratch: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Copy what the output pixels [first, end) of the image at `x` read to `scratch`.

        Returns where the source of the core finds its pixel 0, and which of its pixels `first` is.
        """
