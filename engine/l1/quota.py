"""Byte budgets per cache_salt.

One question, one answer: `limit_of` a salt without a quota is 0. Limits mean something only where an eviction policy
reads them (IsolatedLRU), and only after `load`: until the stored quotas were read, nobody may be found over his limit.
"""

import threading
from collections.abc import Mapping

#: Largest limit that is accepted, in bytes.
MAX_LIMIT_BYTES = 2**62


class QuotaTable:
    """cache_salt -> limit in bytes. Thread-safe."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self._lock = threading.Lock()
        #: False until the durable quotas were read; nothing is enforced before.
        self.loaded = False

    def load(self, limits: Mapping[str, int]) -> None:
        """Replaces all limits by the durable ones and allows enforcement."""
        with self._lock:
            self._limits = dict(limits)
            self.loaded = True

    def set(self, cache_salt: str, limit_bytes: int) -> None:
        """Registers or replaces a limit. 0 is registered as such."""
        if not 0 <= limit_bytes <= MAX_LIMIT_BYTES:
            raise ValueError(f"limit_bytes {limit_bytes} is not in 0..{MAX_LIMIT_BYTES}")
        with self._lock:
            self._limits[cache_salt] = limit_bytes

    def delete(self, cache_salt: str) -> bool:
        """Whether there was a quota to remove."""
        with self._lock:
            return self._limits.pop(cache_salt, None) is not None

    def limit_of(self, cache_salt: str) -> int:
        """The limit in bytes; 0 for a salt without quota."""
        return self._limits.get(cache_salt, 0)

    def all(self) -> dict[str, int]:
        """A copy of every registered quota."""
        with self._lock:
            return dict(self._limits)
