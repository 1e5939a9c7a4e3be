"""The native side of the thread pool: workers wait for jobs (`job`), a caller posts one, all take its chunks.

A *pool* is a block of memory shared with the workers.  `STATE` holds a sequence number, an open bit and the
number of workers that have joined; joining is one compare-and-swap that fails once the caller has closed the
job, so a late worker never touches a job whose caller has returned.  Idle workers spin for some tenths of a
millisecond, then sleep in the kernel.  A job that is shorter than waking them takes wakes them only if it comes so soon
after another that they might be awake still.  When waiting for workers costs more than they save they rest (`stalls`).
"""

from __future__ import annotations

from leanconv.codegen.ir import I32, I64, PTR, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels import stalls
from leanconv.kernels.atomics import Blocks, atomic, atomic_load, atomic_store, clock, pause, swap_if
from leanconv.kernels.call import emit_call
from leanconv.kernels.job import SPINS_YIELD, emit_run_job, reset, wait_for
from leanconv.kernels.offsets import (
    BUSY,
    JOB,
    JOB_BEGAN,
    JOB_TOOK,
    LAST,
    LEFT,
    MOST,
    NEAR,
    POST,
    SEMAPHORE,
    SHORT,
    SLEEPERS,
    STATE,
    STOP,
    TEAM_COUNT,
    TEAM_FORK,
    TEAM_JOB,
    TEAM_NEXT,
    TEAM_POOL,
    WAIT,
    YIELD,
)

_OPEN = 1 << 16
_SEQUENCE = 1 << 17
SPINS_IDLE = 10_000  # turns of a worker before it sleeps: about 0.2 ms at 65 cycles a pause


def emit_runtime(module: Module, target: Target) -> tuple[str, ...]:
    """Emit `submit(pool, job, helpers)`, `worker(pool)`, `share(team)` and the `call` from Python; their names."""
    emit_run_job(module, target)
    _submit(module, target)
    _worker(module, target)
    _share(module)
    return ("leanconv_submit", "leanconv_worker", "leanconv_share", emit_call(module, target))


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
    reset(fn, fn.load(PTR, team, TEAM_JOB))
    atomic_store(fn, 0, fn.gep(team, TEAM_NEXT))
    fork, count = fn.load(PTR, team, TEAM_FORK), fn.load(I32, team, TEAM_COUNT)
    fn.do(f"call void {fork.name}(ptr @leanconv_team, ptr {team.name}, i32 {count.name}, i32 0)")
    fn.ret()


def _submit(module: Module, target: Target) -> None:
    """Run a job on the calling thread and at most `helpers` workers; alone if another caller has the workers."""
    fn = module.function("leanconv_submit", [(PTR, "pool"), (PTR, "job"), (I64, "helpers")])
    pool, job, helpers = fn.args

    reset(fn, job)
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
        late = wait_for(fn, target, pool, fn.gep(pool, LEFT), joined, 0)
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
