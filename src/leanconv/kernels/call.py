"""The usual call of a bound plan from Python, in native code: arrays compared with the plan's, then the job is run.

`call(self, args, count)` is what CPython calls with positional arguments (METH_FASTCALL): the image, the output and,
for plans that add one, the residual, which must be like the output, and be that array itself or lie apart from it.
`self` is a NumPy array whose data is the *record* of the call: what the arrays must be like, and the job. Whatever is
not exactly so is refused: None is returned, nothing has been done, and Python code looks at the arguments.
"""

from __future__ import annotations

from functools import reduce

from leanconv.codegen.ir import I32, I64, PTR, Function, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.atomics import Blocks
from leanconv.kernels.offsets import AVOIDED, CURRENT_CPU

# The head of every object of CPython (with its interpreter lock), and the members of NumPy's arrays behind it, in
# bytes. NumPy's C interface promises the latter to compiled extensions.
TYPE, DATA, DIMENSIONS, SHAPE, STRIDES, ELEMENTS, FLAGS = 8, 16, 24, 32, 40, 56, 64
WRITABLE = 0x400

# The record, in words of 8 bytes. Of each array: how many axes, then shape and strides in bytes.
AXES = 5  # at most: 3-D with batch and channels
ARRAY_WORDS = 1 + 2 * AXES
KIND, ELEMENT, MASK, LOW, HIGH, SPAN = 0, 1, 2, 3, 4, 5
POOL, JOB, HELPERS, SOURCE, TARGET, NONE, INCREF, SAVE, RESTORE, COUNT, ADDED = range(6, 17)
X, OUT = 17, 17 + ARRAY_WORDS
RECORD_WORDS = OUT + ARRAY_WORDS


def emit_call(module: Module, target: Target) -> str:
    """Emit `leanconv_call(self, args, count)`, which needs `leanconv_submit` in its module; returns its name.

    The record holds the addresses of ndarray (KIND) and of the element type (ELEMENT), element size - 1 (MASK), first
    and last byte of an image from its first element (LOW, HIGH), last byte of an output (SPAN), the pool, the job and
    how many helpers it may have, how many arrays there are (COUNT), where the job wants the addresses of image, output
    and residual (SOURCE, TARGET, ADDED), and of CPython: None, and the functions to count a reference, to release the
    interpreter lock and to take it again.
    """
    fn = module.function("leanconv_call", [(PTR, "self"), (PTR, "args"), (I64, "count")], PTR)
    self, args, count = fn.args
    blocks = Blocks(fn)
    refuse = fn.new_label("refuse")

    def must(condition: Value) -> None:
        following = fn.new_label("so")
        blocks.branch(condition, following, refuse)
        blocks.at(following)

    record = fn.load(PTR, self, DATA)

    def word(number: int, type_: str = I64) -> Value:
        return fn.load(type_, record, 8 * number)

    def must_be_like(array: Value, like: int) -> None:
        must(fn.cmp("eq", fn.load(I64, array, TYPE), word(KIND)))
        must(fn.cmp("eq", fn.load(I64, array, ELEMENTS), word(ELEMENT)))
        axes = word(like)
        must(fn.cmp("eq", fn.load_integer(4, array, DIMENSIONS), axes))
        must(_same_words(fn, fn.load(PTR, array, SHAPE), fn.gep(record, 8 * (like + 1)), axes))
        must(_same_words(fn, fn.load(PTR, array, STRIDES), fn.gep(record, 8 * (like + 1 + AXES)), axes))

    def must_be_aligned(*addresses: Value) -> None:
        bits = reduce(lambda a, b: fn.op(I64, f"or i64 {a.name}, {b.name}"), addresses)
        must(fn.cmp("eq", fn.op(I64, f"and i64 {bits.name}, {word(MASK).name}"), 0))

    must(fn.cmp("eq", count, word(COUNT)))
    x, out = fn.load(PTR, args), fn.load(PTR, args, 8)
    must_be_like(x, X)
    must_be_like(out, OUT)
    flags = fn.load_integer(4, out, FLAGS)
    must(fn.cmp("ne", fn.op(I64, f"and i64 {flags.name}, {WRITABLE}"), 0))
    source, result = fn.load(I64, x, DATA), fn.load(I64, out, DATA)
    before = fn.cmp("sle", fn.add(result, word(SPAN)), fn.add(source, word(LOW)))
    behind = fn.cmp("sle", fn.add(source, word(HIGH)), result)
    must(fn.either(before, behind))
    must_be_aligned(source, result)
    pool, helpers = word(POOL, PTR), word(HELPERS)
    must(_well_placed(fn, pool, helpers))

    residual, ready = fn.new_label("residual"), fn.new_label("ready")
    blocks.branch(fn.cmp("eq", count, 3), residual, ready)
    blocks.at(residual)
    third = fn.load(PTR, args, 16)
    must_be_like(third, OUT)
    added, span = fn.load(I64, third, DATA), word(SPAN)
    apart = fn.either(fn.cmp("sle", fn.add(result, span), added), fn.cmp("sle", fn.add(added, span), result))
    must(fn.either(apart, fn.cmp("eq", added, result)))
    must_be_aligned(added)
    fn.store(added, word(ADDED, PTR))
    blocks.jump(ready)

    blocks.at(ready)
    fn.store(source, word(SOURCE, PTR))
    fn.store(result, word(TARGET, PTR))
    state = fn.op(PTR, f"call ptr {word(SAVE, PTR).name}()")
    fn.do(f"call void @leanconv_submit(ptr {pool.name}, ptr {word(JOB, PTR).name}, i64 {helpers.name})")
    fn.do(f"call void {word(RESTORE, PTR).name}(ptr {state.name})")
    fn.do(f"call void {word(INCREF, PTR).name}(ptr {out.name})")
    fn.ret(out)

    blocks.at(refuse)
    none = word(NONE, PTR)
    fn.do(f"call void {word(INCREF, PTR).name}(ptr {none.name})")
    fn.ret(none)
    return "leanconv_call"


def _same_words(fn: Function, a: Value, b: Value, count: Value) -> Value:
    """Whether two rows of `count` words, at least one, are equal."""

    def step(index: Value, found: list[Value]) -> list[Value]:
        offset = fn.mul(index, 8)
        one, other = fn.load(I64, fn.gep(a, offset)), fn.load(I64, fn.gep(b, offset))
        changed = fn.op(I64, f"xor i64 {one.name}, {other.name}")
        return [fn.op(I64, f"or i64 {found[0].name}, {changed.name}")]

    (changed,) = fn.loop(0, count, 1, [fn.i64(0)], step, hint="same")
    return fn.cmp("eq", changed, 0)


def _well_placed(fn: Function, pool: Value, helpers: Value) -> Value:
    """Whether helpers are kept off the core that the caller runs on, as far as anybody can tell."""

    def look() -> list[Value]:
        current = fn.load(PTR, pool, CURRENT_CPU)

        def compare() -> list[Value]:
            cpu = fn.op(I32, f"call i32 {current.name}()")
            return [fn.cmp("eq", fn.op(I64, f"sext i32 {cpu.name} to i64"), fn.load(I64, pool, AVOIDED))]

        unknown = fn.cmp("eq", fn.load(I64, pool, CURRENT_CPU), 0)
        yes = Value("true", "i1")
        return fn.if_(unknown, lambda: [yes], compare, hint="unknown")

    return fn.if_(fn.cmp("sgt", helpers, 0), look, lambda: [Value("true", "i1")], hint="helped")[0]
