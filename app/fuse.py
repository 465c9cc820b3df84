"""Remembers for a moment that Redis did not answer, so that not every thread has to wait to find out."""

import logging
import threading
import time

from contract.errors import RedisAway

logger = logging.getLogger(__name__)

HOLD_S = 0.5


class Fuse:
    """Blown by the first failure; lets one caller through every HOLD_S; mended by the first success.

    `patience_s` is how long the caller who is let through may take to find out.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._blown_until = 0.0
        self._reason: str | None = None

    def check(self) -> None:
        """Raises RedisAway while blown. When the moment is over one caller passes, and the next ones still not."""
        if self._reason is None:
            return
        with self._lock:
            if self._reason is None:
                return
            now = time.monotonic()
            if now < self._blown_until:
                raise RedisAway(self._reason)
            self._blown_until = now + self._patience_s + HOLD_S

    def blow(self, reason: str) -> None:
        with self._lock:
            is_new = self._reason is None
            self._reason = reason
            self._blown_until = time.monotonic() + HOLD_S
        if is_new:
            logger.warning("Redis is away: %s", reason)

    def mend(self) -> None:
        if self._reason is None:
            return
        with self._lock:
            self._reason = None
        logger.warning("Redis is back")
