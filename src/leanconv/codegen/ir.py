"""A small structured builder of LLVM IR text; it knows nothing of convolution.

Values are SSA names with a type.  Plain Python integers stand for i64 constants and are folded where both operands are
constant, so that kernels can be written once for extents known when the kernel is made and extents known when it runs.
Control flow is structured (`loop`, `if_`): values that change are carried explicitly and become phi nodes, never memory.
No fast-math flag is ever emitted: the order of every sum is the order in which it is written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

I1, I32, I64, PTR = "i1", "i32", "i64", "ptr"
SCALARS = {"float32": "float", "float64": "double"}
ITEMSIZE = {"float": 4, "double": 8}


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value: its printed name and its LLVM type."""

    name: str
    type: str


Index = Value | int


def vector(scalar: str, lanes: int) -> str:
    """The LLVM type of a vector of `lanes` scalars."""
    return f"<{lanes} x {scalar}>"


def lanes_of(type_: str) -> int:
    """How many lanes a vector type has (1 for a scalar)."""
    return int(type_[1:].split(" ", 1)[0]) if type_.startswith("<") else 1


def scalar_of(type_: str) -> str:
    """The element type of a vector type (a scalar type is its own)."""
    return type_[1:-1].split(" x ")[1] if type_.startswith("<") else type_


def literal(number: float, scalar: str) -> str:
    """An exact LLVM floating-point literal (both widths are written as the bits of a double)."""
    if scalar == "float":
        number = struct.unpack("<f", struct.pack("<f", number))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


class Module:
    """The text of one compilation unit: declarations, constants and functions."""

    def __init__(self) -> None:
        self._declared: dict[str, str] = {}
        self._constants: list[str] = []
        self._functions: list[Function] = []
        self._notes: list[int] = []

    def declare(self, name: str, result: str, params: Sequence[str]) -> str:
        """Declare an external function or intrinsic once; returns its callable name."""
        self._declared.setdefault(name, f"declare {result} @{name}({', '.join(params)})")
        return name

    def zeros(self, nbytes: int) -> Value:
        """A constant block of `nbytes` zero bytes, aligned to a cache line."""
        name = f"zeros{nbytes}"
        line = f"@{name} = private unnamed_addr constant [{nbytes} x i8] zeroinitializer, align 64"
        if line not in self._constants:
            self._constants.append(line)
        return Value(f"@{name}", PTR)

    def loop_note(self, align: int) -> str:
        """Metadata for the branch that closes a loop, asking for its alignment in bytes."""
        self._notes.append(align)
        return f", !llvm.loop !{2 * len(self._notes) - 2}"

    def function(
        self, name: str, params: Sequence[tuple[str, str]], result: str = "void", *, inline: bool = False
    ) -> Function:
        """Open a function; `params` are (type, name) pairs; a name that ends in `!` is a pointer without aliases."""
        function = Function(self, name, params, result, internal=inline)
        self._functions.append(function)
        return function

    def text(self) -> str:
        """The whole module as LLVM assembly."""
        notes = [
            f"!{2 * i} = distinct !{{!{2 * i}, !{2 * i + 1}}}\n!{2 * i + 1} = !{{!\"llvm.loop.align\", i32 {align}}}"
            for i, align in enumerate(self._notes)
        ]
        functions = [function.text() for function in self._functions]
        return "\n".join([*self._constants, *self._declared.values(), *functions, *notes, ""])


class Function:
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

    # -- plumbing ------------------------------------------------------------------------------------------------

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
        self._allocas.append(
            f"  {address} = getelementptr {unit}, ptr {pointer.name}, i64 {self.i64(offset).name}"
        )
        self._allocas.append(f"  {name} = load {type_}, ptr {address}, align {ITEMSIZE.get(scalar_of(type_), 8)}")
        return Value(name, type_)

    # -- integers ------------------------------------------------------------------------------------------------

    def i64(self, value: Index) -> Value:
        """The value as an i64 operand."""
        return Value(str(value), I64) if isinstance(value, int) else value

    def _int(self, opcode: str, a: Index, b: Index) -> Value:
        return self.op(I64, f"{opcode} i64 {self.i64(a).name}, {self.i64(b).name}")

    def add(self, a: Index, b: Index) -> Index:
        """a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if b == 0:
            return a
        return b if a == 0 else self._int("add", a, b)

    def sub(self, a: Index, b: Index) -> Index:
        """a - b."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self._int("sub", a, b)

    def mul(self, a: Index, b: Index) -> Index:
        """a * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if b == 1:
            return a
        return b if a == 1 else self._int("mul", a, b)

    def udiv(self, a: Index, b: Index) -> Index:
        """a // b for unsigned operands."""
        if b == 1:
            return a
        return a // b if isinstance(a, int) and isinstance(b, int) else self._int("udiv", a, b)

    def urem(self, a: Index, b: Index) -> Index:
        """a % b for unsigned operands."""
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

    # -- memory --------------------------------------------------------------------------------------------------

    def gep(self, pointer: Value, offset: Index) -> Value:
        """Pointer plus an offset in bytes."""
        if offset == 0:
            return pointer
        return self.op(PTR, f"getelementptr i8, ptr {pointer.name}, i64 {self.i64(offset).name}")

    def load(self, type_: str, pointer: Value, offset: Index = 0) -> Value:
        """Load a scalar or vector aligned to its element only."""
        align = ITEMSIZE.get(scalar_of(type_), 8)
        return self.op(type_, f"load {type_}, ptr {self.gep(pointer, offset).name}, align {align}")

    def store(self, value: Value, pointer: Value, offset: Index = 0) -> None:
        """Store a scalar or vector aligned to its element only."""
        align = ITEMSIZE.get(scalar_of(value.type), 8)
        self.do(f"store {value.type} {value.name}, ptr {self.gep(pointer, offset).name}, align {align}")

    def prefetch(self, pointer: Value, offset: Index = 0, *, write: bool = False) -> None:
        """Ask for the cache line of an address to be fetched, for reading or for writing."""
        name = self.module.declare("llvm.prefetch.p0", "void", ["ptr", I32, I32, I32])
        where = self.gep(pointer, offset).name
        self.do(f"call void @{name}(ptr {where}, i32 {int(write)}, i32 3, i32 1)")

    # -- floating point and vectors ------------------------------------------------------------------------------

    def const(self, type_: str, number: float) -> Value:
        """A floating-point constant, splatted if the type is a vector."""
        scalar, lanes = scalar_of(type_), lanes_of(type_)
        text = literal(number, scalar)
        if lanes == 1 and not type_.startswith("<"):
            return Value(text, type_)
        return Value(f"splat ({scalar} {text})", type_)

    def binary(self, opcode: str, a: Value, b: Value) -> Value:
        """fadd, fsub, fmul or fdiv."""
        return self.op(a.type, f"{opcode} {a.type} {a.name}, {b.name}")

    def call(self, name: str, result: str, *args: Value) -> Value:
        """Call a declared function or intrinsic."""
        return self.op(result, f"call {result} @{name}({', '.join(f'{a.type} {a.name}' for a in args)})")

    def intrinsic(self, stem: str, *args: Value) -> Value:
        """Call the intrinsic `llvm.<stem>` overloaded on the type of its first operand, which it also returns."""
        kind = args[0].type
        scalar = {"float": "f32", "double": "f64", I32: "i32", I64: "i64"}[scalar_of(kind)]
        suffix = f"v{lanes_of(kind)}{scalar}" if kind.startswith("<") else scalar
        name = self.module.declare(f"llvm.{stem}.{suffix}", kind, [a.type for a in args])
        return self.call(name, kind, *args)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """A * b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def multiply_add(self, a: Value, b: Value, c: Value, *, fused: bool) -> Value:
        """A * b + c, rounded once if fused (a target without the instruction would call a slow function for it)."""
        return self.fma(a, b, c) if fused else self.binary("fadd", self.binary("fmul", a, b), c)

    def fcmp(self, predicate: str, a: Value, b: Value) -> Value:
        """Compare two floating-point values or vectors (predicates oeq olt ogt ule uno ...)."""
        lanes = lanes_of(a.type)
        kind = vector(I1, lanes) if a.type.startswith("<") else I1
        return self.op(kind, f"fcmp {predicate} {a.type} {a.name}, {b.name}")

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A vector all of whose lanes hold the scalar."""
        kind = vector(scalar.type, lanes)
        first = self.op(kind, f"insertelement {kind} poison, {scalar.type} {scalar.name}, i32 0")
        return self.shuffle(first, first, [0] * lanes)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Pick lanes from a (0 ...) and b (lanes of a ...); -1 leaves a lane undefined."""
        mask = ", ".join(f"i32 {lane}" if lane >= 0 else "i32 poison" for lane in lanes)
        result = vector(scalar_of(a.type), len(lanes))
        return self.op(
            result, f"shufflevector {a.type} {a.name}, {b.type} {b.name}, <{len(lanes)} x i32> <{mask}>"
        )

    def lane_mask(self, lanes: int, count: Index) -> Value:
        """The <lanes x i1> mask whose first `count` lanes are set."""
        if isinstance(count, int):
            bits = ", ".join(f"i1 {'true' if lane < count else 'false'}" for lane in range(lanes))
            return Value(f"<{bits}>", vector(I1, lanes))
        narrow = self.op(I32, f"trunc i64 {count.name} to i32")
        spread = self.splat(narrow, lanes)
        steps = ", ".join(f"i32 {lane}" for lane in range(lanes))
        kind = vector(I32, lanes)
        return self.op(vector(I1, lanes), f"icmp slt {kind} <{steps}>, {spread.name}")

    def masked_load(self, type_: str, pointer: Value, mask: Value) -> Value:
        """Load the lanes under the mask, zero elsewhere; lanes outside the mask touch no memory."""
        lanes, align = lanes_of(type_), ITEMSIZE[scalar_of(type_)]
        suffix = f"v{lanes}{'f32' if scalar_of(type_) == 'float' else 'f64'}.p0"
        name = self.module.declare(f"llvm.masked.load.{suffix}", type_, [PTR, I32, mask.type, type_])
        zero = self.const(type_, 0.0)
        return self.op(
            type_,
            f"call {type_} @{name}(ptr {pointer.name}, i32 {align}, {mask.type} {mask.name}, {type_} {zero.name})",
        )

    def masked_store(self, value: Value, pointer: Value, mask: Value) -> None:
        """Store the lanes under the mask; lanes outside it touch no memory."""
        lanes, align = lanes_of(value.type), ITEMSIZE[scalar_of(value.type)]
        suffix = f"v{lanes}{'f32' if scalar_of(value.type) == 'float' else 'f64'}.p0"
        name = self.module.declare(f"llvm.masked.store.{suffix}", "void", [value.type, PTR, I32, mask.type])
        self.do(
            f"call void @{name}({value.type} {value.name}, ptr {pointer.name}, i32 {align}, {mask.type} {mask.name})"
        )

    # -- control flow --------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Start a new block here: LLVM schedules instructions and spills registers block by block."""
        label = self.new_label("cut")
        self.do(f"br label %{label}")
        self.label(label)

    def loop(
        self,
        start: Index,
        stop: Index,
        step: Index,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
        *,
        guard: bool = False,
        hint: str = "loop",
        align: int = 0,
    ) -> list[Value]:
        """Run `body(index, carried)` for start, start + step, ... below stop; returns the carried values after it.

        Without `guard` the body runs at least once (the caller knows that start < stop). `align`: bytes that the loop's
        first instruction is to be aligned to.
        """
        before = self._block
        head, after = self.new_label(hint), self.new_label(f"{hint}_end")
        if guard:
            self.do(f"br i1 {self.cmp('slt', start, stop).name}, label %{head}, label %{after}")
        else:
            self.do(f"br label %{head}")
        self.label(head)
        index = Value(self._name(), I64)
        phis = [Value(self._name(), value.type) for value in carried]
        at = len(self._lines)
        self._lines.extend([""] * (1 + len(phis)))
        results = list(body(index, phis))
        following = self.add(index, step)
        note = self.module.loop_note(align) if align else ""
        self.do(f"br i1 {self.cmp('slt', following, stop).name}, label %{head}, label %{after}{note}")
        latch = self._block
        first = self.i64(start).name
        self._lines[at] = f"  {index.name} = phi i64 [ {first}, %{before} ], [ {self.i64(following).name}, %{latch} ]"
        for offset, (phi, old, new) in enumerate(zip(phis, carried, results, strict=True), 1):
            self._lines[at + offset] = (
                f"  {phi.name} = phi {phi.type} [ {old.name}, %{before} ], [ {new.name}, %{latch} ]"
            )
        self.label(after)
        if not guard:
            return results
        return [
            self.op(new.type, f"phi {new.type} [ {old.name}, %{before} ], [ {new.name}, %{latch} ]")
            for old, new in zip(carried, results, strict=True)
        ]

    def if_(
        self,
        condition: Value,
        then: Callable[[], Sequence[Value]],
        orelse: Callable[[], Sequence[Value]] = tuple,
        *,
        hint: str = "if",
    ) -> list[Value]:
        """Branch on an i1; both arms give values of the same types, and the values of the arm taken are returned."""
        yes, no, after = self.new_label(hint), self.new_label(f"{hint}_else"), self.new_label(f"{hint}_end")
        self.do(f"br i1 {condition.name}, label %{yes}, label %{no}")
        self.label(yes)
        first = list(then())
        first_block = self._block
        self.do(f"br label %{after}")
        self.label(no)
        second = list(orelse())
        second_block = self._block
        self.do(f"br label %{after}")
        self.label(after)
        return [
            self.op(a.type, f"phi {a.type} [ {a.name}, %{first_block} ], [ {b.name}, %{second_block} ]")
            for a, b in zip(first, second, strict=True)
        ]

    def ret(self, value: Value | None = None) -> None:
        """Return from the function."""
        self.do(f"ret {value.type} {value.name}" if value else "ret void")
