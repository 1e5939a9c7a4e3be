"""The native side of the thread pool: workers wait for jobs, a caller posts one, all take chunks until none is left.

A *job* is a block of memory: the number of phases, the table of buffer addresses, then a record a phase
(function, parameters, number of chunks, and on lines of their own the counter that hands out chunks and the
count of those done).  Every thread in a job runs the phases in order; a phase starts when every chunk of the
one before is done.  Chunks are handed out by an atomic counter, never split beforehand, so a thread whose
core is taken by somebody else delays one chunk only.

A *pool* is a block of memory shared with the workers.  `STATE` holds a sequence number, an open bit and the
number of workers that have joined; joining is one compare-and-swap that fails once the caller has closed the
job, so a late worker never touches a job whose caller has returned.  Idle workers spin for some tens of
microseconds, then sleep in the kernel.
"""

from __future__ import annotations

from leanconv.codegen.ir import I32, I64, PTR, Function, Module, Value
from leanconv.codegen.targets import Target

# Job layout, in bytes.
JOB_PHASES, JOB_BUFFERS, JOB_RECORDS = 0, 8, 64
RECORD_BYTES, RECORD_FUNCTION, RECORD_FIELDS, RECORD_CHUNKS, RECORD_NEXT, RECORD_DONE = 192, 0, 8, 16, 64, 128

# Pool layout, in bytes; every word that threads write stands on a cache line of its own.
STATE, JOB, MOST, LEFT, SLEEPERS, BUSY, STOP, SEMAPHORE, WAIT, POST, YIELD = (
    0,
    64,
    72,
    128,
    192,
    256,
    320,
    384,
    448,
    456,
    464,
)
STALLED = 328  # set by a caller that has waited long for the last chunk of a worker: workers take no more then
POOL_BYTES = 512

_NEVER = 1 << 62  # of the clock
_OPEN = 1 << 16
_SEQUENCE = 1 << 17
SPINS_IDLE = 2000  # turns of a worker before it sleeps: about 40 us at 65 cycles a pause
SPINS_STALLED = 50_000  # turns of waiting, about 1 ms, that mean a stall if chunks are not longer
CHUNKS_STALLED = 3  # times its own chunks took that a thread waits for one of another until that is a stall
SPINS_YIELD = 200  # turns of a thread that waits for the last chunks before it offers its core to others


def _atomic_load(fn: Function, pointer: Value, order: str = "acquire") -> Value:
    return fn.op(I64, f"load atomic i64, ptr {pointer.name} {order}, align 8")


def _atomic_store(fn: Function, value: Value | int, pointer: Value, order: str = "release") -> None:
    fn.do(f"store atomic i64 {fn.i64(value).name}, ptr {pointer.name} {order}, align 8")


def _atomic(fn: Function, operation: str, pointer: Value, value: int, order: str = "seq_cst") -> Value:
    return fn.op(I64, f"atomicrmw {operation} ptr {pointer.name}, i64 {value} {order}")


def _swap_if(fn: Function, pointer: Value, expected: Value | int, new: Value | int) -> Value:
    """Compare-and-swap; an i1 that says whether it took place."""
    pair = fn.op(
        "{ i64, i1 }",
        f"cmpxchg ptr {pointer.name}, i64 {fn.i64(expected).name}, i64 {fn.i64(new).name} seq_cst seq_cst",
    )
    return fn.op("i1", f"extractvalue {{ i64, i1 }} {pair.name}, 1")


def _pause(fn: Function, target: Target) -> None:
    if target.triple.startswith(("aarch64", "arm64")):
        fn.do(f"call void @{fn.module.declare('llvm.aarch64.hint', 'void', [I32])}(i32 1)")
    else:
        fn.do(f"call void @{fn.module.declare('llvm.x86.sse2.pause', 'void', [])}()")


def _clock(fn: Function, target: Target) -> Value:
    """A counter that runs evenly, for comparing durations; always 0 where user code has none."""
    if target.triple.startswith("x86_64"):
        return fn.op(I64, f"call i64 @{fn.module.declare('llvm.readcyclecounter', I64, [])}()")
    if target.triple.startswith(("aarch64", "arm64")):
        return fn.op(I64, f"call i64 @{fn.module.declare('llvm.readsteadycounter', I64, [])}()")
    return fn.i64(0)


class _Blocks:
    """Labels and jumps for the few places whose control flow is not structured."""

    def __init__(self, fn: Function) -> None:
        self.fn = fn

    def jump(self, label: str) -> None:
        self.fn.do(f"br label %{label}")

    def branch(self, condition: Value, yes: str, no: str) -> None:
        self.fn.do(f"br i1 {condition.name}, label %{yes}, label %{no}")

    def at(self, label: str) -> None:
        self.fn.label(label)


def _wait_for(
    fn: Function, target: Target, pool: Value, address: Value, wanted: Value | int, patience: Value | int = 0
) -> None:
    """Spin until a counter has a value, offering the core to others now and then.

    Note a stall if that takes long, and longer than `patience` of the clock.
    """
    blocks = _Blocks(fn)
    yield_ = fn.load(PTR, pool, YIELD)
    test, turn, give, done = (fn.new_label(hint) for hint in ("test", "turn", "give", "done"))
    late, offer = fn.new_label("late"), fn.new_label("offer")
    turns = fn.alloca(8)
    fn.store(fn.i64(0), turns)
    begin = _clock(fn, target)
    blocks.jump(test)
    blocks.at(test)
    blocks.branch(fn.cmp("eq", _atomic_load(fn, address), wanted), done, turn)
    blocks.at(turn)
    _pause(fn, target)
    count = fn.i64(fn.add(fn.load(I64, turns), 1))
    fn.store(count, turns)
    blocks.branch(fn.cmp("eq", fn.urem(count, SPINS_YIELD), 0), give, test)
    blocks.at(give)
    waited = fn.cmp("sgt", fn.sub(_clock(fn, target), begin), patience)
    blocks.branch(fn.both(fn.cmp("sge", count, SPINS_STALLED), waited), late, offer)
    blocks.at(late)
    fn.store(fn.i64(1), pool, STALLED)
    blocks.jump(offer)
    blocks.at(offer)
    fn.op(I32, f"call i32 {yield_.name}()")
    blocks.jump(test)
    blocks.at(done)


def emit_runtime(module: Module, target: Target) -> tuple[str, ...]:
    """Emit `submit(pool, job, helpers)` and `worker(pool)`; returns their names."""
    _run_job(module, target)
    _submit(module, target)
    _worker(module, target)
    return ("leanconv_submit", "leanconv_worker")


def _run_job(module: Module, target: Target) -> None:
    fn = module.function("run_job", [(PTR, "pool"), (PTR, "job"), (I64, "thread")], inline=True)
    pool, job, thread = fn.args
    phases = fn.load(I64, job, JOB_PHASES)
    buffers = fn.load(PTR, job, JOB_BUFFERS)

    def phase(index: Value, _: list[Value]) -> list[Value]:
        blocks = _Blocks(fn)
        record = fn.gep(job, fn.add(fn.mul(index, RECORD_BYTES), JOB_RECORDS))
        function, fields = fn.load(PTR, record, RECORD_FUNCTION), fn.load(PTR, record, RECORD_FIELDS)
        chunks = fn.load(I64, record, RECORD_CHUNKS)
        following, done = fn.gep(record, RECORD_NEXT), fn.gep(record, RECORD_DONE)
        look, take, work, end = (fn.new_label(hint) for hint in ("look", "take", "work", "end"))
        own = fn.alloca(8)
        fn.store(fn.i64(0), own)
        begin = _clock(fn, target)
        blocks.jump(look)
        blocks.at(look)
        # A worker whose core is somebody else's would hold up every phase that is left.
        resting = fn.cmp("ne", fn.mul(thread, _atomic_load(fn, fn.gep(pool, STALLED), "monotonic")), 0)
        blocks.branch(resting, end, take)
        blocks.at(take)
        chunk = _atomic(fn, "add", following, 1)
        blocks.branch(fn.cmp("slt", chunk, chunks), work, end)
        blocks.at(work)
        fn.do(f"call void {function.name}(ptr {buffers.name}, ptr {fields.name}, i64 {chunk.name}, i64 {thread.name})")
        _atomic(fn, "add", done, 1, "acq_rel")
        fn.store(fn.i64(fn.add(fn.load(I64, own), 1)), own)
        blocks.jump(look)
        blocks.at(end)
        spent = fn.mul(fn.sub(_clock(fn, target), begin), CHUNKS_STALLED)
        patience = fn.udiv(spent, fn.smax(fn.load(I64, own), 1))
        # Workers do not judge: the core they wait for is the caller's, which has to go on in any case.
        patience = fn.select(fn.cmp("eq", thread, 0), patience, fn.i64(_NEVER))
        _wait_for(fn, target, pool, done, chunks, patience)
        return []

    fn.loop(0, phases, 1, [], phase, guard=True, hint="phase")
    fn.ret()


def _submit(module: Module, target: Target) -> None:
    """Run a job on the calling thread and at most `helpers` workers; alone if another caller has the workers."""
    fn = module.function("leanconv_submit", [(PTR, "pool"), (PTR, "job"), (I64, "helpers")])
    pool, job, helpers = fn.args

    def reset(index: Value, _: list[Value]) -> list[Value]:
        record = fn.gep(job, fn.add(fn.mul(index, RECORD_BYTES), JOB_RECORDS))
        fn.store(fn.i64(0), record, RECORD_NEXT)
        fn.store(fn.i64(0), record, RECORD_DONE)
        return []

    fn.loop(0, fn.load(I64, job, JOB_PHASES), 1, [], reset, guard=True, hint="reset")
    busy, state = fn.gep(pool, BUSY), fn.gep(pool, STATE)
    run = f"call void @run_job(ptr {pool.name}, ptr {job.name}, i64 0)"

    def alone() -> list[Value]:
        fn.do(run)
        return []

    def together() -> list[Value]:
        fn.store(job, pool, JOB)
        fn.store(helpers, pool, MOST)
        _atomic_store(fn, 0, fn.gep(pool, LEFT))
        before = _atomic_load(fn, state)
        sequence = fn.op(I64, f"and i64 {before.name}, -{_SEQUENCE}")
        opened = fn.i64(fn.add(sequence, _SEQUENCE + _OPEN))
        _atomic_store(fn, opened, state, "seq_cst")
        asleep = fn.smin(_atomic_load(fn, fn.gep(pool, SLEEPERS), "seq_cst"), helpers)
        post, semaphore = fn.load(PTR, pool, POST), fn.load(PTR, pool, SEMAPHORE)

        def wake(_: Value, __: list[Value]) -> list[Value]:
            fn.op(I32, f"call i32 {post.name}(ptr {semaphore.name}, i64 1, ptr null)")
            return []

        fn.loop(0, asleep, 1, [], wake, guard=True, hint="wake")
        fn.do(run)
        closed = _atomic(fn, "and", state, ~_OPEN)
        joined = fn.op(I64, f"and i64 {closed.name}, {_OPEN - 1}")
        _wait_for(fn, target, pool, fn.gep(pool, LEFT), joined)
        _atomic_store(fn, 0, busy)
        return []

    def shared() -> list[Value]:
        return fn.if_(_swap_if(fn, busy, 0, 1), together, alone, hint="free")

    fn.if_(fn.cmp("sgt", helpers, 0), shared, alone, hint="helped")
    fn.ret()


def _worker(module: Module, target: Target) -> None:
    """The life of a worker: spin, join a job or sleep, until told to stop."""
    fn = module.function("leanconv_worker", [(PTR, "pool")])
    (pool,) = fn.args
    blocks = _Blocks(fn)
    state, sleepers = fn.gep(pool, STATE), fn.gep(pool, SLEEPERS)
    wait, semaphore = fn.load(PTR, pool, WAIT), fn.load(PTR, pool, SEMAPHORE)
    spins, seen = fn.alloca(8), fn.alloca(8)
    fn.store(fn.i64(0), spins)
    fn.store(fn.i64(-1), seen)
    look, idle, join, work, tired, sleep, awake, stop = (
        fn.new_label(hint) for hint in ("look", "idle", "join", "work", "tired", "sleep", "awake", "stop")
    )

    def joinable(now: Value) -> Value:
        """Open, not yet full, and not the job this worker has just finished."""
        is_open = fn.cmp("ne", fn.op(I64, f"and i64 {now.name}, {_OPEN}"), 0)
        joined = fn.op(I64, f"and i64 {now.name}, {_OPEN - 1}")
        room = fn.cmp("slt", joined, fn.load(I64, pool, MOST))
        sequence = fn.op(I64, f"lshr i64 {now.name}, 17")
        return fn.both(fn.both(is_open, room), fn.cmp("ne", sequence, fn.load(I64, seen)))

    blocks.jump(look)
    blocks.at(look)
    now = _atomic_load(fn, state)
    blocks.branch(joinable(now), join, idle)

    blocks.at(join)
    fresh = fn.i64(fn.add(now, 1))
    blocks.branch(_swap_if(fn, state, now, fresh), work, look)

    blocks.at(work)
    fn.store(fn.op(I64, f"lshr i64 {now.name}, 17"), seen)
    ticket = fn.op(I64, f"and i64 {fresh.name}, {_OPEN - 1}")
    job = fn.load(PTR, pool, JOB)
    fn.do(f"call void @run_job(ptr {pool.name}, ptr {job.name}, i64 {ticket.name})")
    _atomic(fn, "add", fn.gep(pool, LEFT), 1)
    fn.store(fn.i64(0), spins)
    blocks.jump(look)

    blocks.at(idle)
    _pause(fn, target)
    count = fn.i64(fn.add(fn.load(I64, spins), 1))
    fn.store(count, spins)
    stopped = fn.cmp("ne", _atomic_load(fn, fn.gep(pool, STOP)), 0)
    blocks.branch(stopped, stop, tired)

    blocks.at(tired)
    blocks.branch(fn.cmp("slt", count, SPINS_IDLE), look, sleep)

    blocks.at(sleep)
    _atomic(fn, "add", sleepers, 1)
    # A job posted before this worker counted as asleep woke nobody: look once more before sleeping.
    again = _atomic_load(fn, state, "seq_cst")
    missed = fn.either(joinable(again), fn.cmp("ne", _atomic_load(fn, fn.gep(pool, STOP), "seq_cst"), 0))
    down = fn.new_label("down")
    blocks.branch(missed, awake, down)
    blocks.at(down)
    fn.op(I32, f"call i32 {wait.name}(ptr {semaphore.name}, i64 -1)")
    blocks.jump(awake)

    blocks.at(awake)
    _atomic(fn, "sub", sleepers, 1)
    fn.store(fn.i64(0), spins)
    blocks.jump(look)

    blocks.at(stop)
    fn.ret()
