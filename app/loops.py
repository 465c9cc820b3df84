"""The web tier's own loops, told of in GET /periodic-threads beside the engine's.

Each has a name, a level, an interval, and a record of how its runs went, in the same shape as the engine's have.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

#: A loop is stale after this many intervals without a run.
STALE_INTERVALS = 3
JOIN_TIMEOUT_S = 3.0
EXTENSION = "larder_loops"


class WebLoop:
    """Calls `work` every `interval_s` seconds in a thread of its own; what it raises is noted, and the loop goes on."""

    def __init__(self, name: str, level: str, interval_s: float, work: Callable[[], None]) -> None:
        self.name, self.level, self.interval_s = name, level, interval_s
        self._work = work
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"larder-{name}", daemon=True)
        self._started_at = time.time()
        self._last_run_at: float | None = None
        self._total_runs = self._failed_runs = 0
        self._last_summary: dict[str, Any] | None = None

    def start(self) -> None:
        """Begins with a run at once."""
        self._started_at = time.time()
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop and waits for the run in progress."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT_S)

    def describe(self) -> dict[str, Any]:
        """The entry of GET /periodic-threads."""
        now, runs, is_running = time.time(), self._total_runs, self._thread.is_alive()
        since = self._last_run_at if self._last_run_at is not None else self._started_at
        return {
            "name": self.name,
            "level": self.level,
            "interval": self.interval_s,
            "is_running": is_running,
            "is_active": is_running and now - since < STALE_INTERVALS * self.interval_s,
            "stopped_on_purpose": self._stopping.is_set(),
            "last_run_time": self._last_run_at or 0,
            "last_run_ago": None if self._last_run_at is None else round(max(0.0, now - self._last_run_at), 3),
            "init_wait": 0.0,
            "total_runs": runs,
            "failed_runs": self._failed_runs,
            "success_rate": round(100.0 * (runs - self._failed_runs) / runs, 2) if runs else None,
            "last_summary": self._last_summary,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            started, message = time.time(), ""
            try:
                self._work()
            except Exception as error:  # a loop top: it must go on, and it tells
                message = f"{type(error).__name__}: {error}"
                logger.debug("loop %s failed, it goes on", self.name, exc_info=True)
            self._last_run_at = started
            self._total_runs += 1
            self._failed_runs += bool(message)
            self._last_summary = {
                "timestamp": started,
                "duration_ms": round((time.time() - started) * 1000, 3),
                "success": not message,
                "message": message,
                "extra_info": {},
            }
            self._stopping.wait(self.interval_s)
