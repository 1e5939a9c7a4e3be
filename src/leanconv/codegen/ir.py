"""A small structured builder of LLVM IR text; it knows nothing of convolution.

Values are SSA names with a type.  Plain Python integers stand for i64 constants and are folded where both
operands are constant, so that kernels can be written once for extents known when the kernel is made and
extents known when it runs. Control flow is structured (`loop`, `if_`): values that change are carried
explicitly and become phi nodes, never memory. No fast-math flag is ever emitted: the order of every sum is
the order in which it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.codegen.body import Body
from leanconv.codegen.types import (
    I1,
    I32,
    I64,
    ITEMSIZE,
    PTR,
    SCALARS,
    Index,
    Value,
    lanes_of,
    literal,
    scalar_of,
    vector,
)

__all__ = [
    "I1",
    "I32",
    "I64",
    "PTR",
    "SCALARS",
    "Function",
    "Index",
    "Module",
    "Value",
    "lanes_of",
    "scalar_of",
    "vector",
]


class Module:
    """The text of one compilation unit: declarations, constants and functions.

    Attributes:
        hides: whether loops keep from LLVM how their counters and addresses go on from turn to turn. It then leaves
            them as they are written, and takes half the time over large kernels.
    """

    def __init__(self) -> None:
        self.hides = False
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

    def table(self, numbers: Sequence[float], scalar: str) -> Value:
        """A constant block of floating-point numbers, aligned to a cache line."""
        text = ", ".join(f"{scalar} {literal(number, scalar)}" for number in numbers)
        body = f"private unnamed_addr constant [{len(numbers)} x {scalar}] [{text}], align 64"
        for line in self._constants:
            if line.endswith(body):
                return Value(line.split(" ", 1)[0], PTR)
        name = f"@table{len(self._constants)}"
        self._constants.append(f"{name} = {body}")
        return Value(name, PTR)

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
            f'!{2 * i} = distinct !{{!{2 * i}, !{2 * i + 1}}}\n!{2 * i + 1} = !{{!"llvm.loop.align", i32 {align}}}'
            for i, align in enumerate(self._notes)
        ]
        functions = [function.text() for function in self._functions]
        return "\n".join([*self._constants, *self._declared.values(), *functions, *notes, ""])


class Function(Body):
    """One function under construction: vectors and structured control flow on top of `Body`."""

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
        return self.op(result, f"shufflevector {a.type} {a.name}, {b.type} {b.name}, <{len(lanes)} x i32> <{mask}>")

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

        Without `guard` the body runs at least once (the caller knows that start < stop). `align`: bytes that
        the loop's first instruction is to be aligned to.
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
        hide = self.module.hides
        count = self.hidden(index) if hide else index
        results = list(body(count, [self.hidden(phi) if hide and phi.type in (I64, PTR) else phi for phi in phis]))
        following = self.add(count, step)
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
