"""Small kernels written with the IR builder, compiled for this machine and called on arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from leanconv.codegen import jit
from leanconv.codegen.ir import I64, PTR, SCALARS, Function, Module, Value, vector
from leanconv.codegen.targets import Target

Array = np.ndarray[Any, Any]


class Compiled:
    """A function `void name(pointers and integers)` built by `write`; called with arrays and ints."""

    def __init__(self, parameters: str, write: Callable[..., None], target: Target | None = None) -> None:
        """`parameters` names each argument's kind: "p" a pointer, "i" an integer."""
        module = Module()
        names = [({"p": PTR, "i": I64}[kind], f"a{n}") for n, kind in enumerate(parameters)]
        function = module.function("tested", names)
        write(function, *function.args)
        function.ret()
        self.text = module.text()
        code = jit.compile_object(self.text, target or jit.host_target())
        self._linked = jit.Linked(code, ("tested",))
        kinds = [{"p": ctypes.c_void_p, "i": ctypes.c_int64}[kind] for kind in parameters]
        self._call = ctypes.CFUNCTYPE(None, *kinds)(self._linked.addresses["tested"])

    def __call__(self, *arguments: Any) -> None:
        self._call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))


def elementwise(
    dtype: str, emit: Callable[[Function, Value], Value], lanes: int | None = None
) -> Callable[[Array], Array]:
    """A vector function as a function of arrays of any length (padded with the last element to whole vectors)."""
    width = lanes or jit.host_target().lanes(dtype)
    item = np.dtype(dtype).itemsize
    kind = vector(SCALARS[dtype], width)

    def write(fn: Function, source: Value, target: Value, count: Value) -> None:
        def body(index: Value, _: list[Value]) -> list[Value]:
            at = fn.mul(index, item)
            fn.store(emit(fn, fn.load(kind, fn.gep(source, at))), fn.gep(target, at))
            return []

        fn.loop(0, count, width, [], body)

    compiled = Compiled("ppi", write)

    def call(x: Array) -> Array:
        padded = np.pad(x.astype(dtype), (0, -len(x) % width), mode="edge")
        result = np.full_like(padded, np.nan)
        compiled(padded, result, len(padded))
        return result[: len(x)]

    return call
