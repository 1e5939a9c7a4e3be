"""The IR builder: what small kernels written with it compute, compared with Python and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from guard import run_python
from kernels import Compiled
from leanconv.codegen import jit
from leanconv.codegen.ir import I64, Function, Index, Module, Value
from leanconv.codegen.targets import AVX2, AVX512, NEON, TARGETS
from leanconv.errors import CompileError

EDGES = [0, 1, 2, 3, 7, 8, 63, -1, -2, -7, (1 << 62), -(1 << 62), (1 << 63) - 1, -(1 << 63)]


def wrap(n: int) -> int:
    """As i64 arithmetic does."""
    return (n + (1 << 63)) % (1 << 64) - (1 << 63)


def integers(write: Any, count: int) -> Any:
    """A function of `count` ints that gives the i64 that `write` computes."""

    def store(fn: Function, target: Value, *values: Value) -> None:
        fn.store(fn.i64(write(fn, *values)), target)

    compiled = Compiled("p" + "i" * count, store)

    def call(*values: int) -> int:
        result = np.zeros(1, np.int64)
        compiled(result, *values)
        return int(result[0])

    return call


BINARY: dict[str, Any] = {
    "add": lambda a, b: wrap(a + b),
    "sub": lambda a, b: wrap(a - b),
    "mul": lambda a, b: wrap(a * b),
    "udiv": lambda a, b: wrap((a % (1 << 64)) // (b % (1 << 64))),
    "urem": lambda a, b: wrap((a % (1 << 64)) % (b % (1 << 64))),
    "smin": min,
    "smax": max,
}


@pytest.mark.parametrize("name", BINARY)
def test_integers(name: str) -> None:
    """Values with values, and constants (folded where both are) with values."""
    want = BINARY[name]
    both = integers(lambda fn, a, b: getattr(fn, name)(a, b), 2)
    for a in EDGES:
        for b in EDGES:
            if b or name not in ("udiv", "urem"):
                assert both(a, b) == want(a, b), (a, b)
    for constant in (0, 1, 5, 8, 64):
        left = integers(lambda fn, b, c=constant: getattr(fn, name)(c, b), 1)
        right = integers(lambda fn, a, c=constant: getattr(fn, name)(a, c), 1)
        for value in EDGES:
            if value or name not in ("udiv", "urem"):
                assert left(value) == want(constant, value), (constant, value)
            if constant or name not in ("udiv", "urem"):
                assert right(value) == want(value, constant), (value, constant)
    function = Module().function("folded", [])
    assert getattr(function, name)(7, 3) == want(7, 3)
    assert "%v" not in function.text()


def test_comparisons_and_selections() -> None:
    signs = {"slt": "<", "sle": "<=", "sgt": ">", "sge": ">=", "eq": "==", "ne": "!=", "ult": "<", "uge": ">="}
    for predicate, sign in signs.items():
        chosen = integers(lambda fn, a, b, p=predicate: fn.select(fn.cmp(p, a, b), a, 42), 2)
        for a in EDGES:
            for b in EDGES:
                left, right = (a % (1 << 64), b % (1 << 64)) if predicate[0] == "u" else (a, b)
                assert chosen(a, b) == (a if eval(f"{left} {sign} {right}") else 42), (predicate, a, b)
    for name, python in (("both", all), ("either", any)):
        logic = integers(
            lambda fn, a, b, n=name: fn.select(getattr(fn, n)(fn.cmp("ne", a, 0), fn.cmp("ne", b, 0)), 1, 0), 2
        )
        assert [logic(a, b) for a in (0, 1) for b in (0, 1)] == [python([a, b]) for a in (0, 1) for b in (0, 1)]
    negated = integers(lambda fn, a: fn.select(fn.negate(fn.cmp("eq", a, 0)), 1, 0), 1)
    assert [negated(0), negated(3)] == [0, 1]


# -- control flow ----------------------------------------------------------------------------------------------------


def counting(guard: bool, start: Index | None, stop: Index | None, step: Index | None) -> Any:
    """Sum and number of a loop's indices; what is None is an argument of the compiled function."""

    def write(fn: Function, *given: Value) -> Index:
        values = iter(given)
        bounds = [next(values) if bound is None else bound for bound in (start, stop, step)]

        def body(i: Value, state: list[Value]) -> list[Value]:
            return [fn.i64(fn.add(state[0], i)), fn.i64(fn.add(state[1], 1000000))]

        total, turns = fn.loop(*bounds, [fn.i64(0), fn.i64(0)], body, guard=guard)
        return fn.add(total, turns)

    return integers(write, [start, stop, step].count(None))


def test_loops() -> None:
    def want(start: int, stop: int, step: int, guard: bool) -> int:
        turns = list(range(start, stop, step)) or ([] if guard else [start])
        return sum(turns) + 1000000 * len(turns)

    for guard in (False, True):
        free = counting(guard, None, None, None)
        for start in (0, 3, -4):
            for stop in (-5, 0, 1, 3, 4, 10):
                for step in (1, 2, 3, 7):
                    assert free(start, stop, step) == want(start, stop, step, guard)
        for stop in (-1, 0, 1, 5):
            assert counting(guard, 0, None, 2)(stop) == want(0, stop, 2, guard)
            assert counting(guard, 0, stop, 1)() == want(0, stop, 1, guard)


def test_nested_control_flow_carries_values_through() -> None:
    def write(fn: Function, n: Value) -> Index:
        def outer(i: Value, state: list[Value]) -> list[Value]:
            def inner(j: Value, state: list[Value]) -> list[Value]:
                odd = fn.cmp("eq", fn.urem(fn.add(i, j), 2), 1)

                def even() -> list[Value]:
                    return fn.if_(
                        fn.cmp("eq", fn.urem(i, 3), 0),
                        lambda: [fn.i64(fn.sub(state[0], j))],
                        lambda: fn.loop(0, 2, 1, state, lambda _, s: [fn.i64(fn.add(s[0], 7))]),
                    )

                return fn.if_(odd, lambda: [fn.i64(fn.add(state[0], fn.mul(i, j)))], even)

            return fn.loop(0, i, 1, state, inner, guard=True)

        return fn.loop(0, n, 1, [fn.i64(5)], outer, guard=True)[0]

    def python(n: int) -> int:
        total = 5
        for i in range(n):
            for j in range(i):
                total += i * j if (i + j) % 2 else -j if i % 3 == 0 else 14
        return total

    compiled = integers(write, 1)
    for n in range(12):
        assert compiled(n) == python(n)


def test_an_if_without_results_or_else() -> None:
    def write(fn: Function, target: Value, n: Value) -> None:
        def store() -> list[Value]:
            fn.store(fn.i64(9), target)
            return []

        assert fn.if_(fn.cmp("sgt", n, 3), store) == []

    compiled = Compiled("pi", write)
    for n, want in ((3, 0), (4, 9)):
        target = np.zeros(1, np.int64)
        compiled(target, n)
        assert target[0] == want


def test_entry_loads_dominate_every_use() -> None:
    def write(fn: Function, target: Value, table: Value, n: Value) -> None:
        def body(i: Value, state: list[Value]) -> list[Value]:
            return [fn.i64(fn.add(state[0], fn.mul(i, fn.entry_load(I64, table, 8))))]

        (total,) = fn.loop(0, n, 1, [fn.i64(0)], body, guard=True)
        fn.store(fn.i64(fn.add(total, fn.entry_load(I64, table, fn.entry_load(I64, table, 0)))), target)

    result, table = np.zeros(1, np.int64), np.array([2, 10, 500], np.int64)
    compiled = Compiled("ppi", write)
    compiled(result, table, 4)
    assert result[0] == 560
    compiled(result, table, 0)
    assert result[0] == 500


# -- targets and the compiler ------------------------------------------------------------------------------------------


def test_tiles_of_targets() -> None:
    registers = {"avx2": 16, "avx512": 32, "neon": 32, "portable": 16}
    for target in TARGETS.values():
        for vectors in (1, 2, 3):
            rows = target.tile_rows(vectors)
            assert rows >= 1
            assert rows * vectors + vectors + 1 <= registers[target.name]
    assert [AVX2.tile_rows(v) for v in (2, 3)] == [6, 4]
    assert (AVX2.lanes("float32"), AVX512.lanes("float64"), NEON.lanes("float32")) == (8, 8, 4)


def test_code_that_llvm_refuses() -> None:
    with pytest.raises(CompileError, match="LLVM refused"):
        jit.compile_object("define void @f( {", jit.host_target())
    module = Module()
    fn = module.function("f", [])
    fn.do("store i64 %nowhere, ptr null")
    fn.ret()
    with pytest.raises(CompileError):
        jit.compile_object(module.text(), jit.host_target())
    with pytest.raises(CompileError):
        jit.Linked(b"not an object", ("f",))


TOTALS = """
import numpy as np, leanconv
from leanconv.host import this_host
rng = np.random.default_rng(0)
print(this_host().target.name)
for layout in ("NCHW", "NHWC"):
    shape = (2, 9, 11, 10) if layout == "NCHW" else (2, 11, 10, 9)
    x, w = rng.integers(-4, 5, shape).astype("f4"), rng.integers(-4, 5, (13, 9, 3, 3)).astype("f4")
    options = dict(layout=layout, padding=1, activation="relu")
    for info in leanconv.algorithms(x.shape, w.shape, **options):
        if info.applies and info.error_class in ("plain", "float64"):
            y = leanconv.conv2d(x, w, algorithm=info.name, **options)
            print(info.name, layout, y.sum(), np.square(y).sum(dtype="f8"))
"""


@pytest.mark.parametrize("name", TARGETS)
def test_forced_targets_compute_the_same(name: str, monkeypatch: Any) -> None:
    """Sums of small integers are exact, in vectors of any width, with a fused multiply-add or without."""
    monkeypatch.setenv("LEANCONV_TARGET", name)
    refused = """
import leanconv
try:
    leanconv.plan((1, 1, 3, 3), (1, 1, 3, 3))
except leanconv.CompileError as error:
    print(error)
"""
    if run_python(refused):
        assert f"LEANCONV_TARGET='{name}': this CPU runs " in run_python(refused)
        pytest.skip("not on this CPU")
    first, *lines = run_python(TOTALS).splitlines()
    assert first == name
    for layout in ("NCHW", "NHWC"):
        assert len({line.split(" ", 1)[1] for line in lines if layout in line}) == 1
    monkeypatch.delenv("LEANCONV_TARGET")
    _, *others = run_python(TOTALS).splitlines()
    assert others == lines
