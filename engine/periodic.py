"""Supervised loops: each has a name, a level, an interval, and a record of how its runs went.

level     a sick one means
--------  ---------------------------------------------------------------
critical  the cache does not do its job (data plane, eviction, command loop)
high      it will not for long (lease expiry, publisher, heartbeat)
medium    leftovers pile up (sessions, dead workers)
low       nobody is hurt

active: running, and the last run began less than 3 intervals ago (before the first run: started less than 3
intervals ago). A loop that died is unhealthy, not absent.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

LEVELS = ("critical", "high", "medium", "low")
#: A loop is stale after this many intervals without a run.
STALE_INTERVALS = 3
#: How long `stop` waits for a run in progress.
JOIN_TIMEOUT_S = 10.0


class RunRecord:
    """How the runs of one loop went. Written by its loop, read by anybody."""

    def __init__(self, name: str, level: str, interval_s: float) -> None:
        if level not in LEVELS:
            raise ValueError(f"level {level!r} of thread {name!r} is none of {LEVELS}")
        self.name, self.level, self.interval_s = name, level, interval_s
        self.is_running = False
        self.stopped_on_purpose = False
        self.started_at = time.time()
        self.last_run_at: float | None = None
        self.total_runs = self.failed_runs = 0
        self.last_summary: dict[str, Any] | None = None

    def ran(self, started: float, *, success: bool, message: str = "", count: bool = True) -> None:
        """One run that began at epoch second `started` is over."""
        self.last_run_at = started
        if count:
            self.total_runs += 1
            self.failed_runs += not success
        self.last_summary = {
            "timestamp": started,
            "duration_ms": round((time.time() - started) * 1000, 3),
            "success": success,
            "message": message,
            "extra_info": {},
        }

    def is_active(self, now: float | None = None) -> bool:
        """Whether the loop runs and its last run is recent."""
        since = self.last_run_at if self.last_run_at is not None else self.started_at
        return self.is_running and (now or time.time()) - since < STALE_INTERVALS * self.interval_s

    def describe(self) -> dict[str, Any]:
        """The entry of GET /periodic-threads."""
        now, runs = time.time(), self.total_runs
        return {
            "name": self.name,
            "level": self.level,
            "interval": self.interval_s,
            "is_running": self.is_running,
            "is_active": self.is_active(now),
            "stopped_on_purpose": self.stopped_on_purpose,
            "last_run_time": self.last_run_at or 0,
            "last_run_ago": None if self.last_run_at is None else round(max(0.0, now - self.last_run_at), 3),
            "init_wait": 0.0,
            "total_runs": runs,
            "failed_runs": self.failed_runs,
            "success_rate": round(100.0 * (runs - self.failed_runs) / runs, 2) if runs else None,
            "last_summary": self.last_summary,
        }


class PeriodicThread:
    """Calls `work` every `interval_s` seconds, and at once after `wake()`, in a thread of its own.

    `work` may return a short text for the record. An exception is logged, counted, and the loop goes on.
    """

    def __init__(self, name: str, level: str, interval_s: float, work: Callable[[], str | None]) -> None:
        self.record = RunRecord(name, level, interval_s)
        self._work = work
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Begins; the first run comes after one interval."""
        self.record.started_at = time.time()
        self.record.is_running = True
        self._thread.start()

    def wake(self) -> None:
        """Makes the next run begin at once."""
        self._wake.set()

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Ends the loop and waits for the run in progress."""
        self._stopping = True
        self.record.stopped_on_purpose = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        record = self.record
        try:
            while True:
                self._wake.wait(record.interval_s)
                self._wake.clear()
                if self._stopping:
                    return
                started = time.time()
                try:
                    record.ran(started, success=True, message=self._work() or "")
                except Exception as error:
                    logger.exception("periodic thread %s failed, it goes on", record.name)
                    record.ran(started, success=False, message=f"{type(error).__name__}: {error}")
        finally:
            record.is_running = False


class PeriodicThreads:
    """The list of all supervised loops of a process. Thread-safe."""

    def __init__(self) -> None:
        self._records: dict[str, RunRecord] = {}
        self._lock = threading.Lock()

    def add(self, record: RunRecord) -> None:
        """Lists a loop; its name must be free."""
        with self._lock:
            if record.name in self._records:
                raise ValueError(f"a periodic thread named {record.name!r} exists already")
            self._records[record.name] = record

    def run(self, name: str, level: str, interval_s: float, work: Callable[[], str | None]) -> PeriodicThread:
        """Lists and starts a new loop; the caller stops it."""
        thread = PeriodicThread(name, level, interval_s, work)
        self.add(thread.record)
        thread.start()
        return thread

    def describe(self) -> list[dict[str, Any]]:
        """One entry per loop, by name."""
        with self._lock:
            records = sorted(self._records.values(), key=lambda record: record.name)
        return [record.describe() for record in records]

    def unhealthy(self) -> list[str]:
        """Names of critical and high loops that are not active and were not stopped on purpose."""
        with self._lock:
            records = list(self._records.values())
        return sorted(
            record.name
            for record in records
            if record.level in ("critical", "high") and not record.stopped_on_purpose and not record.is_active()
        )
