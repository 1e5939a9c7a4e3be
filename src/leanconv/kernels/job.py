"""What each thread does in a job: all phases in order, chunk by chunk.

A *job* is a block of memory: the number of phases, the table of buffer addresses, then a record a phase
(function, parameters, number of chunks, and on lines of their own the counter that hands out chunks and the
count of those done).  Every thread in a job runs the phases in order; a phase starts when every chunk of the
one before is done.  Chunks are handed out by an atomic counter, never split beforehand, so a thread whose
core is taken by somebody else delays one chunk only.  The caller and every other worker take them from the front, the
others from the back: phase after phase, and call after call, each thread works on about the same part of the arrays,
which lies in its caches.
"""

from __future__ import annotations

from leanconv.codegen.ir import I32, I64, PTR, Function, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels import stalls
from leanconv.kernels.atomics import Blocks, atomic, atomic_load, clock, pause
from leanconv.kernels.denormals import flush_denormals
from leanconv.kernels.offsets import (
    FLUSH,
    JOB_BUFFERS,
    JOB_PHASES,
    JOB_RECORDS,
    RECORD_BYTES,
    RECORD_CHUNKS,
    RECORD_DONE,
    RECORD_FIELDS,
    RECORD_FUNCTION,
    RECORD_NEXT,
    YIELD,
)

_BACK = 1 << 32  # in the counter of chunks: one taken from the back
SPINS_STALLED = 50_000  # turns of waiting, about 1 ms, that mean a stall if chunks are not longer
CHUNKS_STALLED = 3  # times its own chunks took that a thread waits for one of another until that is a stall
SPINS_YIELD = 200  # turns of a thread that waits for the last chunks before it offers its core to others


def wait_for(
    fn: Function,
    target: Target,
    pool: Value,
    address: Value,
    wanted: Value | int,
    patience: Value | int | None = None,
    saved: Value | int = 0,
) -> Value:
    """Spin until a counter has a value, offering the core to others now and then.

    Returns an i1: whether that took long, and longer than `patience` of the clock; without patience never. Who is late
    rests as soon as waiting has cost more than there was on the account and was `saved` besides.
    """
    blocks = Blocks(fn)
    yield_ = fn.load(PTR, pool, YIELD)
    test, turn, give, done = (fn.new_label(hint) for hint in ("test", "turn", "give", "done"))
    turns, late = fn.alloca(8), fn.alloca(8)
    fn.store(fn.i64(0), turns)
    fn.store(fn.i64(0), late)
    begin = clock(fn, target)
    blocks.jump(test)
    blocks.at(test)
    blocks.branch(fn.cmp("eq", atomic_load(fn, address), wanted), done, turn)
    blocks.at(turn)
    pause(fn, target)
    count = fn.i64(fn.add(fn.load(I64, turns), 1))
    fn.store(count, turns)
    blocks.branch(fn.cmp("eq", fn.urem(count, SPINS_YIELD), 0), give, test)
    blocks.at(give)
    if patience is not None:
        now = clock(fn, target)
        waited = fn.sub(now, begin)

        def stalled() -> list[Value]:
            fn.store(fn.i64(1), late)
            stalls.warn(fn, pool, fn.sub(waited, saved), now)
            return []

        fn.if_(fn.both(fn.cmp("sge", count, SPINS_STALLED), fn.cmp("sgt", waited, patience)), stalled, hint="stalled")
    fn.op(I32, f"call i32 {yield_.name}()")
    blocks.jump(test)
    blocks.at(done)
    return fn.cmp("ne", fn.load(I64, late), 0)


def emit_run_job(module: Module, target: Target) -> None:
    """All phases as one of the threads; `judge`: 1 for a caller with helpers, who keeps the account of `stalls`."""
    params = [(PTR, "pool"), (PTR, "job"), (I64, "thread"), (I64, "judge")]
    fn = module.function("run_job", params, inline=True)
    pool, job, thread, judge = fn.args
    phases = fn.load(I64, job, JOB_PHASES)
    buffers = fn.load(PTR, job, JOB_BUFFERS)
    restore = flush_denormals(fn, target, fn.load(I64, pool, FLUSH))
    helper = fn.cmp("ne", thread, 0)
    from_back = fn.cmp("ne", fn.op(I64, f"and i64 {thread.name}, 1"), 0)
    step = fn.select(from_back, fn.i64(_BACK), fn.i64(1))

    def phase(index: Value, _: list[Value]) -> list[Value]:
        blocks = Blocks(fn)
        record = fn.gep(job, fn.add(fn.mul(index, RECORD_BYTES), JOB_RECORDS))
        function, fields = fn.load(PTR, record, RECORD_FUNCTION), fn.load(PTR, record, RECORD_FIELDS)
        chunks = fn.load(I64, record, RECORD_CHUNKS)
        following, done = fn.gep(record, RECORD_NEXT), fn.gep(record, RECORD_DONE)
        look, take, work, end = (fn.new_label(hint) for hint in ("look", "take", "work", "end"))
        own = fn.alloca(8)
        fn.store(fn.i64(0), own)
        begin = clock(fn, target)
        # What cannot be shared is the caller's, who would wait for it.
        blocks.branch(fn.both(helper, fn.cmp("eq", chunks, 1)), end, look)
        blocks.at(look)
        # A worker whose core is somebody else's would hold up every phase that is left.
        until = atomic_load(fn, fn.gep(pool, stalls.REST_UNTIL), "monotonic")
        resting = fn.both(helper, fn.cmp("slt", clock(fn, target), until))
        blocks.branch(resting, end, take)
        blocks.at(take)
        taken = fn.op(I64, f"atomicrmw add ptr {following.name}, i64 {step.name} seq_cst")
        front, back = fn.op(I64, f"and i64 {taken.name}, {_BACK - 1}"), fn.udiv(taken, _BACK)
        blocks.branch(fn.cmp("slt", fn.add(front, back), chunks), work, end)
        blocks.at(work)
        chunk = fn.select(from_back, fn.sub(fn.sub(chunks, 1), back), front)
        fn.do(f"call void {function.name}(ptr {buffers.name}, ptr {fields.name}, i64 {chunk.name}, i64 {thread.name})")
        atomic(fn, "add", done, 1, "acq_rel")
        fn.store(fn.i64(fn.add(fn.load(I64, own), 1)), own)
        blocks.jump(look)
        blocks.at(end)

        def judged() -> list[Value]:
            mine = fn.load(I64, own)
            spent = fn.sub(clock(fn, target), begin)
            each = fn.udiv(spent, fn.smax(mine, 1))
            saved = fn.sub(fn.mul(each, chunks), spent)
            late = wait_for(fn, target, pool, done, chunks, fn.mul(each, CHUNKS_STALLED), saved)
            now = clock(fn, target)
            gain = fn.i64(fn.sub(saved, fn.sub(now, fn.add(begin, spent))))
            # Who came too late for any chunk cannot tell what one takes.
            gain = fn.select(fn.cmp("sgt", mine, 0), gain, fn.i64(0))
            stalls.credit(fn, pool, gain)

            def stalled() -> list[Value]:
                stalls.debit(fn, pool, fn.i64(fn.smax(fn.sub(0, gain), 0)), now)
                return []

            fn.if_(late, stalled, hint="stalled")
            return []

        def waits() -> list[Value]:
            wait_for(fn, target, pool, done, chunks)
            return []

        # Nothing comes behind the last phase: a worker that waited for its end might lose its core meanwhile.
        leaves = fn.both(helper, fn.cmp("eq", fn.add(index, 1), phases))

        def stays() -> list[Value]:
            return fn.if_(leaves, lambda: [], waits, hint="leaves")

        fn.if_(fn.cmp("ne", judge, 0), judged, stays, hint="judge")
        return []

    fn.loop(0, phases, 1, [], phase, guard=True, hint="phase")
    restore()
    fn.ret()


def reset(fn: Function, job: Value) -> None:
    """Hand out every phase's chunks from the first again."""

    def reset(index: Value, _: list[Value]) -> list[Value]:
        record = fn.gep(job, fn.add(fn.mul(index, RECORD_BYTES), JOB_RECORDS))
        fn.store(fn.i64(0), record, RECORD_NEXT)
        fn.store(fn.i64(0), record, RECORD_DONE)
        return []

    fn.loop(0, fn.load(I64, job, JOB_PHASES), 1, [], reset, guard=True, hint="reset")
