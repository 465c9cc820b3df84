"""Failures of a storage in the log: one line now and then, with how many were not shown."""

import logging
import threading
import time

from engine.object_key import ObjectKey

logger = logging.getLogger(__name__)


class Complaints:
    """Logs failures, but not a line for each when a storage is down."""

    INTERVAL_S = 5.0

    def __init__(self, who: str) -> None:
        self._who = who
        self._last, self._silenced = float("-inf"), 0
        self._lock = threading.Lock()

    def add(self, verb: str, key: ObjectKey, error: Exception | str) -> None:
        """`verb` could not be done to the object of `key`."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < self.INTERVAL_S:
                self._silenced += 1
                return
            self._last, silenced, self._silenced = now, self._silenced, 0
        digest = key.chunk_hash.hex()[:16]
        more = f" ({silenced} more not shown)" if silenced else ""
        logger.warning("%s: could not %s object %s…: %s%s", self._who, verb, digest, str(error)[:300], more)
