"""A circuit breaker around one adapter: a storage that cannot be reached costs its callers nothing.

closed ─FAULTS_TO_OPEN connection faults in a row→ open ─its time is over→ half-open ─probe succeeds→ closed
                                                    ↑                        └─probe fails, twice the time─┘

state      calls
---------  ------------------------------------------------------------
closed     all go through
open       none; `allow` says no at once
half-open  one goes through as the probe, the others are told no

Only connection faults count: an error that the storage answered with shows that it can be reached.
"""

import threading
import time
from collections.abc import Callable

#: Connection faults in a row that open the breaker.
FAULTS_TO_OPEN = 3
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MAX_WORDS = 300


class Breaker:
    """Thread-safe. Ask `allow` before a call, then tell `succeeded` or `failed`; a refused call tells nothing."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, changed: Callable[[str], None] = lambda state: None
    ) -> None:
        """`changed` is told `open` and `closed`, under no lock, when a breaker opens first and when it closes."""
        self._clock, self._changed = clock, changed
        self._lock = threading.Lock()
        self._faults = 0
        self._pause_s = 0.0
        self._open_until = 0.0
        self._probing = False
        #: How often it opened, a failed probe not counted.
        self.times_opened = 0
        #: What the last fault was, and when (epoch seconds); empty when there was none.
        self.last_fault = ""
        self.last_fault_at: float | None = None

    @property
    def state(self) -> str:
        """closed, open or half_open."""
        with self._lock:
            if not self._pause_s:
                return "closed"
            return "open" if self._clock() < self._open_until else "half_open"

    def allow(self) -> bool:
        """Whether a call may be made now."""
        with self._lock:
            if not self._pause_s:
                return True
            if self._probing or self._clock() < self._open_until:
                return False
            self._probing = True
            return True

    def succeeded(self) -> None:
        """An allowed call reached the storage, whatever it answered."""
        with self._lock:
            closes = self._pause_s > 0
            self._faults, self._pause_s, self._probing = 0, 0.0, False
        if closes:
            self._changed("closed")

    def failed(self, reason: str = "") -> None:
        """An allowed call ended in a connection fault; `reason` is for people."""
        with self._lock:
            opens = False
            self.last_fault, self.last_fault_at = reason[:MAX_WORDS], round(time.time(), 3)
            self._faults += 1
            if self._pause_s:
                if self._probing:
                    self._probing = False
                    self._open_for(min(LONGEST_PAUSE_S, self._pause_s * 2))
            elif self._faults >= FAULTS_TO_OPEN:
                self.times_opened += 1
                opens = True
                self._open_for(FIRST_PAUSE_S)
        if opens:
            self._changed("open")

    def _open_for(self, pause_s: float) -> None:
        self._pause_s, self._open_until = pause_s, self._clock() + pause_s

    def describe(self) -> dict[str, object]:
        """For GET /status."""
        state = self.state
        with self._lock:
            left = max(0.0, self._open_until - self._clock()) if state == "open" else 0.0
            return {
                "state": state,
                "faults_in_a_row": self._faults,
                "retry_in_seconds": round(left, 3),
                "times_opened": self.times_opened,
                "last_fault": self.last_fault or None,
                "last_fault_at": self.last_fault_at,
            }
