"""Whether helpers pay: an account of the time that they save and that waiting for them costs.

A worker whose core is taken by another process leaves its chunk unfinished for a time slice of some milliseconds, and
the caller waits. Work in which that happens now and then is still faster on all cores; short calls next to a process
that never pauses are not. So the caller keeps an account, in ticks of the clock: phase by phase it adds what it would
have taken alone (its chunks' mean time, for all chunks) less what the phase took, and takes off what a stall cost. When
the account is overdrawn workers take no chunks for a while, in the middle of a job too, and callers do not ask
them; each time it happens again that while is twice as long, until the account has been full once.

Only who holds the pool writes these words. All limits are 0, and nobody rests, until the speed of the clock is known.
"""

from __future__ import annotations

from leanconv.codegen.ir import Function, Index, Value
from leanconv.kernels.atomics import atomic_store

# Words of the pool, in bytes.
REST_UNTIL = 512  # when workers may take chunks again; on a line of its own, for workers look at it at every chunk
BALANCE, REST = 576, 584  # the account, and how long the next rest is
MOST_BALANCE, SHORTEST, LONGEST = 640, 648, 656  # the account when it is full; the first and the longest rest


def credit(fn: Function, pool: Value, gain: Value) -> None:
    """Add what helpers have saved, if it is anything."""

    def add() -> list[Value]:
        most = fn.load(gain.type, pool, MOST_BALANCE)
        balance = fn.add(fn.load(gain.type, pool, BALANCE), gain)
        fn.store(fn.i64(fn.smin(balance, most)), pool, BALANCE)

        def full() -> list[Value]:
            fn.store(fn.load(gain.type, pool, SHORTEST), pool, REST)
            return []

        fn.if_(fn.cmp("sge", balance, most), full, hint="full")
        return []

    fn.if_(fn.cmp("sgt", gain, 0), add, hint="gain")


def warn(fn: Function, pool: Value, loss: Index, now: Value) -> None:
    """While a stall lasts: let who returns from it rest, if it has cost more than there is on the account by now."""

    def overdrawn() -> list[Value]:
        _rest(fn, pool, now)
        return []

    fn.if_(fn.cmp("sgt", loss, fn.load(now.type, pool, BALANCE)), overdrawn, hint="overdrawn")


def _rest(fn: Function, pool: Value, now: Value) -> None:
    until = fn.i64(fn.add(now, fn.load(now.type, pool, REST)))
    atomic_store(fn, until, fn.gep(pool, REST_UNTIL), "monotonic")


def debit(fn: Function, pool: Value, loss: Value, now: Value) -> None:
    """Take off what a stall has cost; rest if the account is overdrawn by it."""
    balance = fn.i64(fn.sub(fn.load(loss.type, pool, BALANCE), loss))
    fn.store(fn.i64(fn.smax(balance, 0)), pool, BALANCE)

    def overdrawn() -> list[Value]:
        _rest(fn, pool, now)
        longer = fn.mul(fn.load(now.type, pool, REST), 2)
        fn.store(fn.i64(fn.smin(longer, fn.load(now.type, pool, LONGEST))), pool, REST)
        return []

    fn.if_(fn.cmp("slt", balance, 0), overdrawn, hint="overdrawn")
