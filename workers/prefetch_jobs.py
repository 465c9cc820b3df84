"""Runs prefetch jobs: the engine loads, their records in Redis follow.

    begin ─ submitted? ─ engine.start_warm ─ record `running` ─┐
    first sweep ─ left over by a dead boot ─ waiting ──────────┤
                                                               └─ counts every 0.5 s ─ the end, once it can be written

what                          becomes of the job
----------------------------  --------------------------------------------------------------------------------
Redis goes away               it runs on; its end is written when Redis is back, also to one that lost its data
the engine dies or stops      the next boot runs it again: at once, or as soon as its model is registered
no such registration, 10 min  failed; so is one whose token ids are gone
its command never came        failed, two minutes after its submission
somebody cancels it           cancelled, unless it was over by then
"""

import dataclasses
import logging
import threading
import time
from array import array
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis

from contract.prefetch_jobs import CANCELLED, COMPLETED, FAILED, RUNNING, SUBMITTED, PrefetchJob, PrefetchStore, Rule
from contract.redis_client import describe
from contract.token_ids import read_token_ids
from engine.errors import BadRequest, NoLayout, TooBusy
from engine.periodic import PeriodicThreads, RunRecord
from workers.outage import Outage

logger = logging.getLogger(__name__)

#: Between two looks at whether jobs are over, between two writings of their counts, between two sweeps.
CHECK_S, PROGRESS_S, SWEEP_S = 0.05, 0.5, 30.0
IDLE_S = 1.0
#: Running ones, and those whose end Redis does not know yet. The engine's own bound is lower.
MAX_KEPT = 256
#: As many left-over jobs are looked at in one turn.
WAITING_BATCH = 64
REGISTRATION_WAIT_S = 600.0
ORPHAN_S = 120.0
CANCEL_WAIT_S = 2.0
STOP_TIMEOUT_S = 10.0
NOOP, CANCELLING, UNKNOWN = "noop", "cancelling", "unknown"


class WarmCounts(Protocol):
    """Keys by what became of them."""

    @property
    def found(self) -> int: ...
    @property
    def resident(self) -> int: ...
    @property
    def missing(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def over_quota(self) -> int: ...


class WarmJob(Protocol):
    """A running load. Any thread may ask."""

    @property
    def total_keys(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    @property
    def error(self) -> str: ...
    def counts(self) -> WarmCounts: ...
    def done(self) -> bool: ...
    def outcome(self) -> str: ...
    def cancel(self) -> None: ...


class WarmEngine(Protocol):
    """What this module needs of the engine."""

    @property
    def boot_id(self) -> str: ...
    def start_warm(self, model_name: str, world_size: int, tokens: "array[int]", cache_salt: str) -> WarmJob | None: ...


@dataclass(eq=False)
class _Running:
    """A job of this boot; `job` is the record as it was last written, or its end that waits for being written."""

    job: PrefetchJob
    warm: WarmJob
    ended_at: float | None = None
    is_cancelled: bool = False
    written: threading.Event = field(default_factory=threading.Event)


class PrefetchJobs:
    """One thread; begin() and cancel() may be called from any. `start` and `stop` are called once each."""

    def __init__(self, engine: WarmEngine, store: PrefetchStore, threads: PeriodicThreads) -> None:
        self._engine = engine
        self._store = store
        self._threads = threads
        self._boot_id = engine.boot_id
        self._running: dict[str, _Running] = {}  # entries leave it in the thread alone
        self._waiting: dict[str, float] = {}  # left over by a dead boot -> when to give up; under _starting
        self._starting = threading.Lock()  # one job is started at a time, and none during a sweep
        self._write_counts_at = 0.0
        self._sweep_at = 0.0
        self._has_swept = False
        self._record = RunRecord("prefetch-jobs", "medium", IDLE_S)
        self._outage = Outage(logger, "prefetch jobs")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larder-prefetch-jobs", daemon=True)

    def start(self) -> None:
        """Begins; what a dead boot left over is looked for at once."""
        self._threads.add(self._record)
        self._record.is_running = True
        self._thread.start()

    def stop(self) -> None:
        """Writes the ends that are known and leaves the other jobs to the next boot. No job begins any more."""
        self._record.stopped_on_purpose = True
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        with self._starting:
            try:
                self._settle(with_counts=False)
                for entry in list(self._running.values()):
                    self._leave(entry)
            except redis.RedisError as error:
                logger.warning("prefetch jobs: the next boot finds them as they are: %s", describe(error))

    def begin(self, request_id: str) -> dict[str, Any]:
        """Starts a job that is `submitted`; for another one, says what it is. {"status", "chunks"}.

        `status` is noop for less than a chunk. Raises NoLayout, BadRequest (also for an unknown job), TooBusy (also
        when Redis does not answer).
        """
        try:
            with self._starting:
                if self._stopping.is_set():
                    raise TooBusy("the engine is stopping")
                if (kept := self._running.get(request_id)) is not None:
                    return _reply(kept.job)
                job = self._store.load(request_id)
                if job is None:
                    raise BadRequest("the job was withdrawn")
                return self._begin(job) if job.status == SUBMITTED else _reply(job)
        except redis.RedisError as error:
            raise TooBusy(f"the engine cannot reach Redis: {describe(error)}") from error

    def cancel(self, request_id: str) -> dict[str, str]:
        """Ends a job: {"status"}, which is how it ended, `cancelling` if that takes longer, or `unknown`.

        Raises TooBusy when Redis does not answer.
        """
        try:
            if (entry := self._running.get(request_id)) is None:
                return {"status": self._cancel_waiting(request_id)}
        except redis.RedisError as error:
            raise TooBusy(f"the engine cannot reach Redis: {describe(error)}") from error
        entry.is_cancelled = True
        entry.warm.cancel()
        self._wake.set()
        is_written = entry.written.wait(CANCEL_WAIT_S)
        return {"status": entry.job.status if is_written else CANCELLING}

    def _begin(self, job: PrefetchJob) -> dict[str, Any]:
        """Starts a job. To be called with _starting held. Raises redis.RedisError too."""
        if len(self._running) >= MAX_KEPT:
            raise TooBusy(f"{MAX_KEPT} prefetch jobs run or wait for their end to be written")
        tokens = self._tokens_of(job)
        warm = self._engine.start_warm(job.model_name, job.world_size, tokens, job.cache_salt)
        if warm is None:
            return {"status": NOOP, "chunks": 0}
        started = dataclasses.replace(
            job, status=RUNNING, boot_id=self._boot_id, chunks=warm.chunks, total_keys=warm.total_keys
        )
        try:
            written = self._store.write(started, Rule.START, self._boot_id, stamp="started_at")
        except redis.RedisError:
            warm.cancel()
            raise
        self._waiting.pop(job.request_id, None)
        if written is None:
            warm.cancel()
            return _reply(self._store.load(job.request_id) or started)
        self._running[job.request_id] = _Running(written, warm)
        self._wake.set()
        return _reply(written)

    def _tokens_of(self, job: PrefetchJob) -> "array[int]":
        text = self._store.load_input(job.request_id)
        if text is None:
            raise BadRequest("its token ids are no longer in Redis")
        try:
            return read_token_ids(text)
        except ValueError as error:
            raise BadRequest(f"its token ids cannot be read: {error}") from error

    def _cancel_waiting(self, request_id: str) -> str:
        """Cancels a job that no engine runs; its state then. A second cancel finds it cancelled."""
        job = self._store.load(request_id)
        if job is None or job.status in (COMPLETED, FAILED):
            return UNKNOWN
        if job.status == CANCELLED or self._close(job, CANCELLED, "", Rule.ADOPT):
            return CANCELLED
        return CANCELLING  # it was started just now

    def _close(self, job: PrefetchJob, status: str, error: str, rule: Rule) -> bool:
        """Ends a job that does not run; whether it was still to be ended."""
        ended = dataclasses.replace(job, status=status, error=error, boot_id=self._boot_id)
        if status == FAILED:
            logger.warning("prefetch job %s failed: %s", job.request_id, error)
        return self._store.write(ended, rule, self._boot_id, stamp="finished_at") is not None

    def _loop(self) -> None:
        try:
            while not self._stopping.is_set():
                started = time.time()
                pause_s = CHECK_S if self._running else PROGRESS_S if self._waiting else IDLE_S
                try:
                    self._turn()
                except redis.RedisError as error:
                    self._outage.failed(describe(error))
                    self._record.ran(started, success=False, message=describe(error))
                    pause_s = self._outage.pause_s
                except Exception as error:  # a loop top: jobs must come to their end after a bug
                    logger.exception("a turn of the prefetch jobs failed")
                    self._record.ran(started, success=False, message=repr(error))
                    pause_s = IDLE_S
                else:
                    self._record.ran(started, success=True)
                self._wake.wait(pause_s)
                self._wake.clear()
        finally:
            self._record.is_running = False

    def _turn(self) -> None:
        """Raises redis.RedisError; the next turn does what this one could not."""
        now = time.monotonic()
        with_counts = now >= self._write_counts_at
        self._settle(with_counts=with_counts)
        if now >= self._sweep_at:
            with self._starting:
                self._sweep()
            self._sweep_at = now + SWEEP_S
            self._outage.worked()
        if with_counts:
            self._try_waiting()
            self._write_counts_at = now + PROGRESS_S

    def _settle(self, *, with_counts: bool) -> None:
        """Writes the ends of jobs, and the counts of those that run."""
        entries = list(self._running.values())
        for entry in entries:
            if entry.ended_at is None and entry.warm.done():
                entry.ended_at = time.monotonic()
        for entry in entries:
            if entry.ended_at is not None:
                self._write_end(entry, time.monotonic() - entry.ended_at)
            elif with_counts:
                self._write_counts(entry)

    def _write_end(self, entry: _Running, seconds_ago: float) -> None:
        warm = entry.warm
        ended = dataclasses.replace(_with_counts(entry.job, warm), status=warm.outcome(), error=warm.error[:500])
        written = self._store.write(ended, Rule.OWN, self._boot_id, stamp="finished_at", seconds_ago=seconds_ago)
        self._outage.worked()
        if written is None:
            logger.warning("prefetch job %s is no longer ours, its end is not written", ended.request_id)
        else:
            logger.info("prefetch job %s %s: %d of %d keys", ended.request_id, ended.status, ended.found_keys,
                        ended.total_keys)  # fmt: skip
        entry.job = written or ended
        self._running.pop(ended.request_id, None)
        entry.written.set()

    def _write_counts(self, entry: _Running) -> None:
        counted = _with_counts(entry.job, entry.warm)
        if counted == entry.job:
            return
        if self._store.write(counted, Rule.OWN, self._boot_id) is None:
            logger.warning("prefetch job %s is no longer ours, it is cancelled here", counted.request_id)
            entry.warm.cancel()
        entry.job = counted
        self._outage.worked()

    def _sweep(self) -> None:
        """Finds jobs that nobody cares for: left over by a dead boot, or never begun."""
        for request_id in self._store.unfinished():
            if request_id in self._running or request_id in self._waiting:
                continue
            job = self._store.load(request_id)
            if job is not None and not job.has_ended:
                self._take_in(job)
        self._has_swept = True

    def _take_in(self, job: PrefetchJob) -> None:
        if job.status == RUNNING and job.boot_id == self._boot_id:
            self._close(job, FAILED, "the engine could not tell Redis that it had begun", Rule.OWN)
        elif job.status == RUNNING:
            if self._store.write(_as_submitted(job), Rule.ADOPT, self._boot_id) is not None:
                logger.info("prefetch job %s of boot %s is run again", job.request_id, job.boot_id)
                self._waiting[job.request_id] = time.monotonic() + REGISTRATION_WAIT_S
        elif not self._has_swept:
            self._waiting[job.request_id] = time.monotonic() + REGISTRATION_WAIT_S
        elif self._store.age_s(job) > ORPHAN_S:
            self._close(job, FAILED, "its command never reached the engine", Rule.ADOPT)

    def _try_waiting(self) -> None:
        """Starts left-over jobs, once a worker has registered their model."""
        for request_id in list(self._waiting)[:WAITING_BATCH]:
            # One at a time: reading a million token ids takes a while, and commands want to begin jobs meanwhile.
            with self._starting:
                if self._stopping.is_set() or (give_up_at := self._waiting.get(request_id)) is None:
                    continue
                job = self._store.load(request_id)
                must_wait = job is not None and job.status == SUBMITTED and not self._try_again(job, give_up_at)
                self._waiting.pop(request_id, None)
                if must_wait:
                    self._waiting[request_id] = give_up_at  # at the end, so that others are tried as well

    def _try_again(self, job: PrefetchJob, give_up_at: float) -> bool:
        """Whether the job needs no further try: it runs, or is over."""
        try:
            # With no tokens it only asks for the layout, which is cheaper than reading a million of them in vain.
            self._engine.start_warm(job.model_name, job.world_size, array("I"), job.cache_salt)
            if self._begin(job)["status"] == NOOP:
                self._close(job, COMPLETED, "", Rule.ADOPT)
        except TooBusy:
            return False
        except NoLayout as error:
            if time.monotonic() < give_up_at:
                return False
            self._close(job, FAILED, f"left over by an engine that ended, and {error}", Rule.ADOPT)
        except BadRequest as error:
            self._close(job, FAILED, f"left over by an engine that ended, and {error}", Rule.ADOPT)
        return True

    def _leave(self, entry: _Running) -> None:
        """At a stop: cancelled ones are over, the others wait for the next boot."""
        entry.warm.cancel()
        if entry.is_cancelled:
            self._close(_with_counts(entry.job, entry.warm), CANCELLED, "", Rule.OWN)
        else:
            self._store.write(_as_submitted(entry.job), Rule.OWN, self._boot_id)


def _reply(job: PrefetchJob) -> dict[str, Any]:
    return {"status": job.status, "chunks": job.chunks}


def _as_submitted(job: PrefetchJob) -> PrefetchJob:
    """The job as it was before it ran; `boot_id` still says who left it."""
    return dataclasses.replace(
        job,
        status=SUBMITTED,
        started_at=None,
        found_keys=0,
        resident_keys=0,
        missing_keys=0,
        failed_keys=0,
        over_quota_keys=0,
    )


def _with_counts(job: PrefetchJob, warm: WarmJob) -> PrefetchJob:
    counts = warm.counts()
    return dataclasses.replace(
        job,
        found_keys=counts.found,
        resident_keys=counts.resident,
        missing_keys=counts.missing,
        failed_keys=counts.failed,
        over_quota_keys=counts.over_quota,
    )
