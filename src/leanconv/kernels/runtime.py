"""The native side of the thread pool: workers wait for jobs, a caller posts one, all take chunks until none is left.

A *job* is a block of memory: the number of phases, the table of buffer addresses, then a record a phase
(function, parameters, number of chunks, and on lines of their own the counter that hands out chunks and the
count of those done).  Every thread in a job runs the phases in order; a phase starts when every chunk of the
one before is done.  Chunks are handed out by an atomic counter, never split beforehand, so a thread whose
core is taken by somebody else delays one chunk only.  The caller and every other worker take them from the front, the
others from the back: phase after phase, and call after call, each thread works on about the same part of the arrays,
which lies in its caches.

A *pool* is a block of memory shared with the workers.  `STATE` holds a sequence number, an open bit and the
number of workers that have joined; joining is one compare-and-swap that fails once the caller has closed the
job, so a late worker never touches a job whose caller has returned.  Idle workers spin for some tenths of a
millisecond, then sleep in the kernel.  A job that is shorter than waking them takes wakes them only if it comes so soon
after another that they might be awake still.  When waiting for workers costs more than they save they rest (`stalls`).
"""

from __future__ import annotations

from leanconv.codegen.ir import I32, I64, PTR, Function, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels import stalls
from leanconv.kernels.atomics import Blocks, atomic, atomic_load, atomic_store, clock, pause, swap_if
from leanconv.kernels.denormals import flush_denormals

# Job layout, in bytes.
JOB_PHASES, JOB_BUFFERS, JOB_BEGAN, JOB_TOOK, JOB_RECORDS = 0, 8, 16, 24, 64
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
FLUSH = 472  # not 0: numbers below the normal range count as 0 while a job runs
LAST = 592  # when the last job with helpers ended
NEAR, SHORT = 664, 672  # ticks after a job in which a worker is still awake, and of a job not worth waking anybody for
POOL_BYTES = 704  # with the words of `stalls`

# A team's record, in bytes: what threads of another library are given to run a job.
TEAM_POOL, TEAM_JOB, TEAM_FORK, TEAM_COUNT, TEAM_NEXT, TEAM_BYTES = 0, 8, 16, 24, 64, 128

_BACK = 1 << 32  # in the counter of chunks: one taken from the back
_OPEN = 1 << 16
_SEQUENCE = 1 << 17
SPINS_IDLE = 10_000  # turns of a worker before it sleeps: about 0.2 ms at 65 cycles a pause
SPINS_STALLED = 50_000  # turns of waiting, about 1 ms, that mean a stall if chunks are not longer
CHUNKS_STALLED = 3  # times its own chunks took that a thread waits for one of another until that is a stall
SPINS_YIELD = 200  # turns of a thread that waits for the last chunks before it offers its core to others


def _wait_for(
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


def emit_runtime(module: Module, target: Target) -> tuple[str, ...]:
    """Emit `submit(pool, job, helpers)`, `worker(pool)` and `share(team)`; returns their names."""
    _run_job(module, target)
    _submit(module, target)
    _worker(module, target)
    _share(module)
    return ("leanconv_submit", "leanconv_worker", "leanconv_share")


def _run_job(module: Module, target: Target) -> None:
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
            late = _wait_for(fn, target, pool, done, chunks, fn.mul(each, CHUNKS_STALLED), saved)
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
            _wait_for(fn, target, pool, done, chunks)
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


def _reset(fn: Function, job: Value) -> None:
    """Hand out every phase's chunks from the first again."""

    def reset(index: Value, _: list[Value]) -> list[Value]:
        record = fn.gep(job, fn.add(fn.mul(index, RECORD_BYTES), JOB_RECORDS))
        fn.store(fn.i64(0), record, RECORD_NEXT)
        fn.store(fn.i64(0), record, RECORD_DONE)
        return []

    fn.loop(0, fn.load(I64, job, JOB_PHASES), 1, [], reset, guard=True, hint="reset")


def _share(module: Module) -> None:
    """Run a job on threads of an OpenMP runtime: `fork(function, record, count, 0)` calls the function on each."""
    fn = module.function("leanconv_team", [(PTR, "team")])
    (team,) = fn.args
    pool, job = fn.load(PTR, team, TEAM_POOL), fn.load(PTR, team, TEAM_JOB)
    ticket = atomic(fn, "add", fn.gep(team, TEAM_NEXT), 1)
    judge = fn.select(fn.cmp("eq", ticket, 0), fn.i64(1), fn.i64(0))
    fn.do(f"call void @run_job(ptr {pool.name}, ptr {job.name}, i64 {ticket.name}, i64 {judge.name})")
    fn.ret()
    fn = module.function("leanconv_share", [(PTR, "team")])
    (team,) = fn.args
    _reset(fn, fn.load(PTR, team, TEAM_JOB))
    atomic_store(fn, 0, fn.gep(team, TEAM_NEXT))
    fork, count = fn.load(PTR, team, TEAM_FORK), fn.load(I32, team, TEAM_COUNT)
    fn.do(f"call void {fork.name}(ptr @leanconv_team, ptr {team.name}, i32 {count.name}, i32 0)")
    fn.ret()


def _submit(module: Module, target: Target) -> None:
    """Run a job on the calling thread and at most `helpers` workers; alone if another caller has the workers."""
    fn = module.function("leanconv_submit", [(PTR, "pool"), (PTR, "job"), (I64, "helpers")])
    pool, job, helpers = fn.args

    _reset(fn, job)
    busy, state = fn.gep(pool, BUSY), fn.gep(pool, STATE)
    began = clock(fn, target)
    fn.store(began, job, JOB_BEGAN)

    def run(judge: int) -> None:
        fn.do(f"call void @run_job(ptr {pool.name}, ptr {job.name}, i64 0, i64 {judge})")

    def alone() -> list[Value]:
        run(0)
        return []

    def together() -> list[Value]:
        fn.store(job, pool, JOB)
        fn.store(helpers, pool, MOST)
        atomic_store(fn, 0, fn.gep(pool, LEFT))
        before = atomic_load(fn, state)
        sequence = fn.op(I64, f"and i64 {before.name}, -{_SEQUENCE}")
        opened = fn.i64(fn.add(sequence, _SEQUENCE + _OPEN))
        atomic_store(fn, opened, state, "seq_cst")
        asleep = fn.smin(atomic_load(fn, fn.gep(pool, SLEEPERS), "seq_cst"), helpers)
        # Waking takes the caller some tens of microseconds. A short job is done by then, but its like may follow.
        took = fn.load(I64, job, JOB_TOOK)
        short = fn.both(fn.cmp("sgt", took, 0), fn.cmp("slt", took, fn.load(I64, pool, SHORT)))
        far = fn.cmp("sgt", fn.sub(began, fn.load(I64, pool, LAST)), fn.load(I64, pool, NEAR))
        asleep = fn.select(fn.both(short, far), fn.i64(0), fn.i64(asleep))
        post, semaphore = fn.load(PTR, pool, POST), fn.load(PTR, pool, SEMAPHORE)

        def wake(_: Value, __: list[Value]) -> list[Value]:
            fn.op(I32, f"call i32 {post.name}(ptr {semaphore.name}, i64 1, ptr null)")
            return []

        fn.loop(0, asleep, 1, [], wake, guard=True, hint="wake")
        run(1)
        finished = clock(fn, target)
        closed = atomic(fn, "and", state, ~_OPEN)
        joined = fn.op(I64, f"and i64 {closed.name}, {_OPEN - 1}")
        late = _wait_for(fn, target, pool, fn.gep(pool, LEFT), joined, 0)
        ended = clock(fn, target)

        def stalled() -> list[Value]:
            stalls.debit(fn, pool, fn.i64(fn.sub(ended, finished)), ended)
            return []

        fn.if_(late, stalled, hint="stalled")
        fn.store(ended, pool, LAST)
        fn.store(fn.i64(fn.sub(ended, began)), job, JOB_TOOK)
        atomic_store(fn, 0, busy)
        return []

    def shared() -> list[Value]:
        return fn.if_(swap_if(fn, busy, 0, 1), together, alone, hint="free")

    rested = fn.cmp("sge", began, atomic_load(fn, fn.gep(pool, stalls.REST_UNTIL), "monotonic"))
    fn.if_(fn.both(fn.cmp("sgt", helpers, 0), rested), shared, alone, hint="helped")
    fn.ret()


def _worker(module: Module, target: Target) -> None:
    """The life of a worker: spin, join a job or sleep, until told to stop."""
    fn = module.function("leanconv_worker", [(PTR, "pool")])
    (pool,) = fn.args
    blocks = Blocks(fn)
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
    now = atomic_load(fn, state)
    blocks.branch(joinable(now), join, idle)

    blocks.at(join)
    fresh = fn.i64(fn.add(now, 1))
    blocks.branch(swap_if(fn, state, now, fresh), work, look)

    blocks.at(work)
    fn.store(fn.op(I64, f"lshr i64 {now.name}, 17"), seen)
    ticket = fn.op(I64, f"and i64 {fresh.name}, {_OPEN - 1}")
    job = fn.load(PTR, pool, JOB)
    fn.do(f"call void @run_job(ptr {pool.name}, ptr {job.name}, i64 {ticket.name}, i64 0)")
    atomic(fn, "add", fn.gep(pool, LEFT), 1)
    fn.store(fn.i64(0), spins)
    blocks.jump(look)

    blocks.at(idle)
    pause(fn, target)
    count = fn.i64(fn.add(fn.load(I64, spins), 1))
    fn.store(count, spins)
    stopped = fn.cmp("ne", atomic_load(fn, fn.gep(pool, STOP)), 0)
    blocks.branch(stopped, stop, tired)

    blocks.at(tired)
    polite, spin = fn.new_label("polite"), fn.new_label("spin")
    blocks.branch(fn.cmp("slt", count, SPINS_IDLE), spin, sleep)
    blocks.at(spin)
    blocks.branch(fn.cmp("eq", fn.urem(count, SPINS_YIELD), 0), polite, look)
    blocks.at(polite)
    fn.op(I32, f"call i32 {fn.load(PTR, pool, YIELD).name}()")
    blocks.jump(look)

    blocks.at(sleep)
    atomic(fn, "add", sleepers, 1)
    # A job posted before this worker counted as asleep woke nobody: look once more before sleeping.
    again = atomic_load(fn, state, "seq_cst")
    missed = fn.either(joinable(again), fn.cmp("ne", atomic_load(fn, fn.gep(pool, STOP), "seq_cst"), 0))
    down = fn.new_label("down")
    blocks.branch(missed, awake, down)
    blocks.at(down)
    fn.op(I32, f"call i32 {wait.name}(ptr {semaphore.name}, i64 -1)")
    blocks.jump(awake)

    blocks.at(awake)
    atomic(fn, "sub", sleepers, 1)
    fn.store(fn.i64(0), spins)
    blocks.jump(look)

    blocks.at(stop)
    fn.ret()
