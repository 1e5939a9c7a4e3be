"""What stands where, in bytes, in the memory of a thread pool, of its jobs and of a team."""

# A job, and a record for each of its phases.
JOB_PHASES, JOB_BUFFERS, JOB_BEGAN, JOB_TOOK, JOB_RECORDS = 0, 8, 16, 24, 64
RECORD_BYTES, RECORD_FUNCTION, RECORD_FIELDS, RECORD_CHUNKS, RECORD_NEXT, RECORD_DONE = 192, 0, 8, 16, 64, 128

# A pool; every word that threads write stands on a cache line of its own.
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
CURRENT_CPU, AVOIDED = 680, 688  # a function that tells the caller's core, or 0; the core that workers are kept off
POOL_BYTES = 704  # with the words of `stalls`

# A team: what threads of another library are given to run a job.
TEAM_POOL, TEAM_JOB, TEAM_FORK, TEAM_COUNT, TEAM_NEXT, TEAM_BYTES = 0, 8, 16, 24, 64, 128
