"""A small constant matrix times a vector as straight-line code, with shared subexpressions found beforehand.

The transforms of fast convolution come in pairs: rows for the points +p and -p have the same even part and odd parts of
opposite sign.  So two rows a + b and a - b cost one a, one b and two additions; and where two *columns* agree but for
signs, the sum and the difference of their inputs are formed once.  What is left are short sums of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import lru_cache

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.cook_toom import ONE, ZERO, Matrix, Surd

Terms = dict[int, Surd]  # a sum: coefficient of each value


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: "add" a + b, "sub" a - b, "mul" factor * a, "fma" factor * a + b; a and b number values."""

    kind: str
    a: int
    b: int
    factor: float = 0.0


@dataclass(frozen=True, slots=True)
class Linear:
    """The product with a matrix: values 0 to `inputs` - 1 are given, each step makes one more; `outputs` picks."""

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def emit(self, fn: Function, values: Sequence[Value], *, fused: bool) -> list[Value]:
        """Emit the steps on vectors (or scalars); `fused` whether multiply-add is one instruction."""
        one = self.lazily(fn, values, fused=fused)
        return [one(i) for i in range(len(self.outputs))]

    def lazily(
        self, fn: Function, values: Sequence[Value] | Callable[[int], Value], *, fused: bool
    ) -> Callable[[int], Value]:
        """A function that emits what one output takes and no output before it has taken, and returns that output.

        `values` may be a function, which is asked once for each value that is used.
        """
        known = {} if callable(values) else dict(enumerate(values))

        def value(i: int) -> Value:
            if i not in known and i < self.inputs:
                assert callable(values)
                known[i] = values(i)
            elif i not in known:
                step = self.steps[i - self.inputs]
                a, b = value(step.a), value(step.b)
                factor = fn.const(a.type, step.factor)
                if step.kind in ("add", "sub"):
                    known[i] = fn.binary(f"f{step.kind}", a, b)
                elif step.kind == "mul":
                    known[i] = fn.binary("fmul", a, factor)
                else:
                    known[i] = fn.multiply_add(a, factor, b, fused=fused)
            return known[i]

        return lambda output: value(self.outputs[output])

    def parts(self, most: int) -> list[list[int]]:
        """Outputs in the fewest parts of at most `most` (or one group's) that have no step in common.

        Outputs with common steps are a group; the largest groups come first.
        """
        groups: list[tuple[list[int], set[int]]] = []
        for output in range(len(self.outputs)):
            together, steps = [output], self.taken(output)
            for group in [group for group in groups if group[1] & steps]:
                groups.remove(group)
                together, steps = [*group[0], *together], steps | group[1]
            groups.append((together, steps))
        parts: list[list[int]] = []
        for together, _ in sorted(groups, key=lambda group: -len(group[0])):
            part = next((part for part in parts if len(part) + len(together) <= most), None)
            if part is None:
                parts.append(part := [])
            part += together
        return parts

    def taken(self, output: int) -> set[int]:
        """The numbers of all values that an output takes, but for those that are given."""

        def of(value: int) -> set[int]:
            if value < self.inputs:
                return set()
            step = self.steps[value - self.inputs]
            return {value} | of(step.a) | of(step.b)

        return of(self.outputs[output])


@dataclass(slots=True)
class _Writer:
    """Collects the steps of one product."""

    count: int
    steps: list[Step] = field(default_factory=list)

    def step(self, kind: str, a: int, b: int, factor: Surd = ZERO) -> int:
        self.steps.append(Step(kind, a, b, float(factor)))
        self.count += 1
        return self.count - 1

    def accumulate(self, total: int | None, terms: Terms) -> int:
        """`total` plus the terms, one step each (the first is free if its coefficient is one)."""
        left = dict(terms)
        if total is None:
            total = next((value for value, factor in left.items() if factor == ONE), None)
            if total is not None:
                del left[total]
        for value, factor in left.items():
            if total is None:
                total = self.step("mul", value, value, factor)
            elif factor in (ONE, -ONE):
                total = self.step("add" if factor == ONE else "sub", total, value)
            else:
                total = self.step("fma", value, total, factor)
        assert total is not None, "a row of zeros"
        return total


@lru_cache(maxsize=256)
def linear(matrix: Matrix) -> Linear:
    """The straight-line code of a matrix without rows of zeros."""
    inputs = len(matrix[0])
    writer = _Writer(inputs)
    rows = _merge_columns(writer, [{j: c for j, c in enumerate(row) if c} for row in matrix], inputs)
    outputs: dict[int, int] = {}
    for i, row in enumerate(rows):
        if i in outputs:
            continue
        twin = next((k for k in range(i + 1, len(rows)) if k not in outputs and _are_twins(row, rows[k])), None)
        if twin is None:
            outputs[i] = writer.accumulate(None, row)
            continue
        even = {j: c for j, c in row.items() if rows[twin][j] == c}
        odd = {j: c for j, c in row.items() if rows[twin][j] != c}
        factor = next(reversed(odd.values()))
        a = writer.accumulate(None, even)
        b = writer.accumulate(None, {j: c / factor for j, c in odd.items()})
        outputs[i] = writer.accumulate(a, {b: factor})
        outputs[twin] = writer.accumulate(a, {b: -factor})
    return Linear(inputs, tuple(writer.steps), tuple(outputs[i] for i in range(len(rows))))


def _are_twins(a: Terms, b: Terms) -> bool:
    """Whether two rows are a sum and a difference of the same two parts, one of them of several terms."""
    if a.keys() != b.keys() or len(a) < 3 or not all(b[j] in (c, -c) for j, c in a.items()):
        return False
    same = sum(b[j] == c for j, c in a.items())
    return 0 < same < len(a)


def _merge_columns(writer: _Writer, rows: list[Terms], inputs: int) -> list[Terms]:
    """Replace pairs of columns that agree but for signs by the sum and the difference of their inputs."""
    free = list(range(inputs))
    while free:
        j = free.pop(0)
        both = [row for row in rows if j in row]
        for k in free:
            pairs = [(row[j], row.get(k, ZERO)) for row in both]
            if len(both) != sum(k in row for row in rows) or any(d not in (c, -c) for c, d in pairs):
                continue
            plus = sum(c == d for c, d in pairs)
            if plus in (0, len(pairs)) or len(pairs) < 3:
                continue
            free.remove(k)
            total, difference = writer.step("add", j, k), writer.step("sub", j, k)
            merged = []
            for row in rows:
                rest = {value: c for value, c in row.items() if value not in (j, k)}
                if j in row:
                    rest[total if row[j] == row[k] else difference] = row[j]
                merged.append(rest)
            rows = merged
            break
    return rows


def in_registers(
    fn: Function,
    programs: tuple[Linear, Linear],
    parts: Sequence[Sequence[int]],
    load: Callable[[int, int], Value],
    done: Callable[[int, list[Value]], None],
    *,
    fused: bool,
) -> None:
    """Transform along two axes, some outputs of the first at a time, so that nothing between them goes to memory.

    `load(i, j)` is value j along the first axis of line i; `done(o, values)` takes all outputs along the second axis
    of output o along the first.
    """
    first, second = programs
    for part in parts:
        lines: list[list[Value]] = []
        for i in range(second.inputs):

            def taken(j: int, line: int = i) -> Value:
                return load(line, j)

            one = first.lazily(fn, taken, fused=fused)
            lines.append([one(output) for output in part])
        for at, output in enumerate(part):
            done(output, second.emit(fn, [line[at] for line in lines], fused=fused))


def register_parts(target: Target, programs: tuple[Linear, Linear]) -> list[list[int]] | None:
    """The parts for `in_registers`: at most two, whose values take three quarters of the registers; None: the stack.

    With 32 registers F(4, 3) has windows in parts of 3 x 6 values and outputs in 2 x 6, and neither spills.  More parts
    would load too much twice.
    """
    first, second = programs
    most = target.accumulators * 3 // 4 // second.inputs
    parts = first.parts(most)
    return parts if len(parts) <= 2 and all(len(part) <= most for part in parts) else None
