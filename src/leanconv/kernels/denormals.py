"""Numbers below the normal range count as 0 while a thread's mode says so."""

from __future__ import annotations

from collections.abc import Callable

from leanconv.codegen.ir import I32, I64, PTR, Function, Value
from leanconv.codegen.targets import Target


def flush_denormals(fn: Function, target: Target, wanted: Value) -> Callable[[], None]:
    """Set the thread's mode for numbers below the normal range if it is wanted; returns what restores it.

    MXCSR's bits 15 and 6 (results and operands count as 0) on x86, FPCR's bit 24 on ARM.
    """
    arm = target.triple.startswith(("aarch64", "arm64"))
    if not arm and not target.triple.startswith("x86_64"):
        return lambda: None
    kept, changed = fn.alloca(8), fn.alloca(8)
    flush = fn.cmp("ne", wanted, 0)
    if arm:
        before = fn.op(I64, f"call i64 @{fn.module.declare('llvm.aarch64.get.fpcr', I64, [])}()")
        fn.store(before, kept)
    else:
        fn.do(f"call void @{fn.module.declare('llvm.x86.sse.stmxcsr', 'void', [PTR])}(ptr {kept.name})")
        before = fn.load(I32, kept)
    bits = fn.op(before.type, f"or {before.type} {before.name}, {1 << 24 if arm else 0x8040}")
    fn.store(
        fn.op(before.type, f"select i1 {flush.name}, {before.type} {bits.name}, {before.type} {before.name}"), changed
    )

    def put(place: Value) -> None:
        if arm:
            value = fn.load(I64, place)
            fn.do(f"call void @{fn.module.declare('llvm.aarch64.set.fpcr', 'void', [I64])}(i64 {value.name})")
        else:
            fn.do(f"call void @{fn.module.declare('llvm.x86.sse.ldmxcsr', 'void', [PTR])}(ptr {place.name})")

    put(changed)
    return lambda: put(kept)
