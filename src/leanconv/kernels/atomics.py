"""What code that threads share is made of: atomic words, a clock, a pause, and control flow with labels."""

from __future__ import annotations

from leanconv.codegen.ir import I32, I64, Function, Value
from leanconv.codegen.targets import Target


def atomic_load(fn: Function, pointer: Value, order: str = "acquire") -> Value:
    """An i64 read at once."""
    return fn.op(I64, f"load atomic i64, ptr {pointer.name} {order}, align 8")


def atomic_store(fn: Function, value: Value | int, pointer: Value, order: str = "release") -> None:
    """Write an i64 at once."""
    fn.do(f"store atomic i64 {fn.i64(value).name}, ptr {pointer.name} {order}, align 8")


def atomic(fn: Function, operation: str, pointer: Value, value: int, order: str = "seq_cst") -> Value:
    """Change an i64 at once (add, sub, and, ...); what it was before."""
    return fn.op(I64, f"atomicrmw {operation} ptr {pointer.name}, i64 {value} {order}")


def swap_if(fn: Function, pointer: Value, expected: Value | int, new: Value | int) -> Value:
    """Compare-and-swap; an i1 that says whether it took place."""
    pair = fn.op(
        "{ i64, i1 }",
        f"cmpxchg ptr {pointer.name}, i64 {fn.i64(expected).name}, i64 {fn.i64(new).name} seq_cst seq_cst",
    )
    return fn.op("i1", f"extractvalue {{ i64, i1 }} {pair.name}, 1")


def pause(fn: Function, target: Target) -> None:
    """Tell the core that this is a loop that waits."""
    if target.triple.startswith(("aarch64", "arm64")):
        fn.do(f"call void @{fn.module.declare('llvm.aarch64.hint', 'void', [I32])}(i32 1)")
    else:
        fn.do(f"call void @{fn.module.declare('llvm.x86.sse2.pause', 'void', [])}()")


def clock(fn: Function, target: Target) -> Value:
    """A counter that runs evenly, for comparing durations; always 0 where user code has none."""
    if target.triple.startswith("x86_64"):
        return fn.op(I64, f"call i64 @{fn.module.declare('llvm.readcyclecounter', I64, [])}()")
    if target.triple.startswith(("aarch64", "arm64")):
        return fn.op(I64, f"call i64 @{fn.module.declare('llvm.readsteadycounter', I64, [])}()")
    return fn.i64(0)


class Blocks:
    """Labels and jumps for the few places whose control flow is not structured."""

    def __init__(self, fn: Function) -> None:
        self.fn = fn

    def jump(self, label: str) -> None:
        """Go there."""
        self.fn.do(f"br label %{label}")

    def branch(self, condition: Value, yes: str, no: str) -> None:
        """Go to one of two places."""
        self.fn.do(f"br i1 {condition.name}, label %{yes}, label %{no}")

    def at(self, label: str) -> None:
        """Begin the block of this label."""
        self.fn.label(label)
