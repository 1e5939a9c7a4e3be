"""The straight-line half of the builder: names, integers, addresses, loads and stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leanconv.codegen.types import I1, I32, I64, ITEMSIZE, PTR, Index, Value, scalar_of

if TYPE_CHECKING:
    from leanconv.codegen.ir import Module


class Body:
    """One function under construction; every method appends instructions at the current point."""

    def __init__(
        self, module: Module, name: str, params: Sequence[tuple[str, str]], result: str, *, internal: bool
    ) -> None:
        self.module = module
        self.args = [Value(f"%{label.rstrip('!')}", kind) for kind, label in params]
        shown = ", ".join(
            f"{kind}{' noalias' if label.endswith('!') else ''} %{label.rstrip('!')}" for kind, label in params
        )
        linkage = "internal " if internal else ""
        self._head = f"define {linkage}{result} @{name}({shown}) nounwind {{\nentry:"
        self._allocas: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._block = "entry"

    def text(self) -> str:
        """The function as LLVM assembly."""
        return "\n".join([self._head, *self._allocas, *self._lines, "}"])

    def _name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def op(self, type_: str, text: str) -> Value:
        """Append `%new = text`, a value of the given type."""
        name = self._name()
        self._lines.append(f"  {name} = {text}")
        return Value(name, type_)

    def do(self, text: str) -> None:
        """Append an instruction without a result."""
        self._lines.append(f"  {text}")

    def label(self, label: str) -> None:
        """Start a block; the one before must have ended with a branch."""
        self._lines.append(f"{label}:")
        self._block = label

    def new_label(self, hint: str) -> str:
        """A block label that is free in this function."""
        self._count += 1
        return f"{hint}{self._count}"

    def alloca(self, nbytes: int) -> Value:
        """A block on the stack, aligned to 64 bytes, for the whole life of the function."""
        name = self._name()
        self._allocas.append(f"  {name} = alloca [{nbytes} x i8], align 64")
        return Value(name, PTR)

    def entry_load(self, type_: str, pointer: Value, offset: Index) -> Value:
        """Load in the entry block, whatever the current point is, from an argument or what was loaded from one.

        A constant offset counts bytes, a value counts elements of 8 bytes.
        """
        address, name = self._name(), self._name()
        unit = "i8" if isinstance(offset, int) else "i64"
        self._allocas.append(f"  {address} = getelementptr {unit}, ptr {pointer.name}, i64 {self.i64(offset).name}")
        self._allocas.append(f"  {name} = load {type_}, ptr {address}, align {ITEMSIZE.get(scalar_of(type_), 8)}")
        return Value(name, type_)

    def entry_moved(self, pointer: Value, offset: Value) -> Value:
        """An address so many bytes further on, worked out in the entry block from what was loaded there."""
        name = self._name()
        self._allocas.append(f"  {name} = getelementptr i8, ptr {pointer.name}, i64 {offset.name}")
        return Value(name, PTR)

    def i64(self, value: Index) -> Value:
        """The value as an i64 operand."""
        return Value(str(value), I64) if isinstance(value, int) else value

    def _int(self, opcode: str, a: Index, b: Index) -> Value:
        return self.op(I64, f"{opcode} i64 {self.i64(a).name}, {self.i64(b).name}")

    def add(self, a: Index, b: Index) -> Index:
        """A + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if b == 0:
            return a
        return b if a == 0 else self._int("add", a, b)

    def sub(self, a: Index, b: Index) -> Index:
        """A - b."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self._int("sub", a, b)

    def mul(self, a: Index, b: Index) -> Index:
        """A * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if b == 1:
            return a
        return b if a == 1 else self._int("mul", a, b)

    def udiv(self, a: Index, b: Index) -> Index:
        """A // b for unsigned operands."""
        if b == 1:
            return a
        return a // b if isinstance(a, int) and isinstance(b, int) else self._int("udiv", a, b)

    def urem(self, a: Index, b: Index) -> Index:
        """A % b for unsigned operands."""
        if b == 1:
            return 0
        return a % b if isinstance(a, int) and isinstance(b, int) else self._int("urem", a, b)

    def cmp(self, predicate: str, a: Index, b: Index) -> Value:
        """Compare two i64: predicate is one of eq ne ult ule ugt uge slt sle sgt sge."""
        return self.op(I1, f"icmp {predicate} i64 {self.i64(a).name}, {self.i64(b).name}")

    def both(self, a: Value, b: Value) -> Value:
        """Logical and of two i1."""
        return self.op(I1, f"and i1 {a.name}, {b.name}")

    def either(self, a: Value, b: Value) -> Value:
        """Logical or of two i1."""
        return self.op(I1, f"or i1 {a.name}, {b.name}")

    def negate(self, a: Value) -> Value:
        """Logical not of an i1."""
        return self.op(I1, f"xor i1 {a.name}, true")

    def select(self, condition: Value, a: Index, b: Index) -> Value:
        """A if condition else b (any type; integers are i64)."""
        x, y = self.i64(a), self.i64(b)
        return self.op(x.type, f"select {condition.type} {condition.name}, {x.type} {x.name}, {y.type} {y.name}")

    def smin(self, a: Index, b: Index) -> Index:
        """The lesser of two signed i64."""
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.select(self.cmp("slt", a, b), a, b)

    def smax(self, a: Index, b: Index) -> Index:
        """The greater of two signed i64."""
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.select(self.cmp("sgt", a, b), a, b)

    def gep(self, pointer: Value, offset: Index) -> Value:
        """Pointer plus an offset in bytes."""
        if offset == 0:
            return pointer
        return self.op(PTR, f"getelementptr i8, ptr {pointer.name}, i64 {self.i64(offset).name}")

    def opaque(self, pointer: Value) -> Value:
        """The same address, its origin forgotten: LLVM then keeps it in a register instead of working it out anew."""
        return self.op(PTR, f"freeze ptr {pointer.name}")

    def hidden(self, value: Value) -> Value:
        """The same integer or address, of which LLVM does not know what it is."""
        return self.op(value.type, f'call {value.type} asm "", "=r,0"({value.type} {value.name})')

    def behind(self, value: Value, results: Sequence[Value]) -> Value:
        """The same integer, which LLVM takes to follow from vectors too: what needs it stands behind their code.

        x86-64 with AVX-512 only; nothing waits for the vectors when it runs.
        """
        inputs = ", ".join(f"{result.type} {result.name}" for result in results)
        constraints = "=r,0" + ",v" * len(results)
        return self.op(value.type, f'call {value.type} asm "", "{constraints}"({value.type} {value.name}, {inputs})')

    def anew(self, pointer: Value) -> Value:
        """The same address, which LLVM takes for another: what lies there is loaded again, not kept in a register."""
        return self.hidden(pointer)

    def load(self, type_: str, pointer: Value, offset: Index = 0) -> Value:
        """Load a scalar or vector aligned to its element only."""
        align = ITEMSIZE.get(scalar_of(type_), 8)
        return self.op(type_, f"load {type_}, ptr {self.gep(pointer, offset).name}, align {align}")

    def store(self, value: Value, pointer: Value, offset: Index = 0) -> None:
        """Store a scalar or vector aligned to its element only."""
        align = ITEMSIZE.get(scalar_of(value.type), 8)
        self.do(f"store {value.type} {value.name}, ptr {self.gep(pointer, offset).name}, align {align}")

    def stream(self, value: Value, pointer: Value, nbytes: int) -> None:
        """Store a vector at a multiple of its `nbytes`, past the caches: `stream_end` before others may read it."""
        self.do(f"store {value.type} {value.name}, ptr {pointer.name}, align {nbytes}, !nontemporal !{{i32 1}}")

    def stream_end(self, triple: str) -> None:
        """Let what was streamed be seen before what this thread stores next; only x86 has to be told."""
        if triple.startswith("x86_64"):
            self.do(f"call void @{self.module.declare('llvm.x86.sse.sfence', 'void', [])}()")

    def load_integer(self, nbytes: int, pointer: Value, offset: Index = 0) -> Value:
        """Load a signed integer of 4 or 8 bytes as an i64."""
        if nbytes == 8:
            return self.load(I64, pointer, offset)
        return self.op(I64, f"sext i32 {self.load(I32, pointer, offset).name} to i64")

    def store_integer(self, value: Index, nbytes: int, pointer: Value, offset: Index = 0) -> None:
        """Store the low 4 or 8 bytes of an i64."""
        whole = self.i64(value)
        self.store(whole if nbytes == 8 else self.op(I32, f"trunc i64 {whole.name} to i32"), pointer, offset)

    def prefetch(self, pointer: Value, offset: Index = 0, *, write: bool = False, level: int = 1) -> None:
        """Ask for the cache line of an address to be fetched into a level of cache.

        `write`: to be written, so other cores give it up.
        """
        name = self.module.declare("llvm.prefetch.p0", "void", ["ptr", I32, I32, I32])
        self.do(f"call void @{name}(ptr {self.gep(pointer, offset).name}, i32 {int(write)}, i32 {4 - level}, i32 1)")
