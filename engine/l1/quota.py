"""Byte budgets per cache_salt.

One question, one answer: `limit_of` a salt without a quota is 0. Limits mean something only where an eviction policy
reads them (IsolatedLRU), and only after `load`: until the stored quotas were read, nobody may be found over his limit.

state      a salt with a quota  a salt without    ends with
---------  -------------------  ----------------  ------------------------------------
loaded     its limit            0                 `suspend`
suspended  its limit            MAX_LIMIT_BYTES   `lift`, or any `set`

Suspended means that the quotas may be lost, so that a missing one says nothing; see engine/quota_epoch.py.
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
        self._suspended_because: str | None = None
        #: False until the durable quotas were read; nothing is enforced before.
        self.loaded = False

    def load(self, limits: Mapping[str, int]) -> None:
        """Replaces all limits by the durable ones and allows enforcement. A suspension stays."""
        with self._lock:
            self._limits = dict(limits)
            self.loaded = True

    def set(self, cache_salt: str, limit_bytes: int) -> None:
        """Registers or replaces a limit. 0 is registered as such. A suspension is over."""
        if not 0 <= limit_bytes <= MAX_LIMIT_BYTES:
            raise ValueError(f"limit_bytes {limit_bytes} is not in 0..{MAX_LIMIT_BYTES}")
        with self._lock:
            self._limits[cache_salt] = limit_bytes
            self._suspended_because = None

    def delete(self, cache_salt: str) -> bool:
        """Whether there was a quota to remove."""
        with self._lock:
            return self._limits.pop(cache_salt, None) is not None

    def suspend(self, why: str) -> None:
        """Lets salts without a quota keep what they have, until `lift` or the next `set`."""
        with self._lock:
            self._suspended_because = why

    def lift(self) -> None:
        """Salts without a quota have limit 0 again."""
        with self._lock:
            self._suspended_because = None

    @property
    def suspended_because(self) -> str | None:
        """Why salts without a quota keep what they have; None when they have limit 0."""
        return self._suspended_because

    def limit_of(self, cache_salt: str) -> int:
        """The limit in bytes; that of a salt without quota is 0, or none at all while that is suspended."""
        limit = self._limits.get(cache_salt)
        if limit is None:
            return 0 if self._suspended_because is None else MAX_LIMIT_BYTES
        return limit

    def has(self, cache_salt: str) -> bool:
        """Whether the salt has a quota of its own."""
        return cache_salt in self._limits

    def all(self) -> dict[str, int]:
        """A copy of every registered quota."""
        with self._lock:
            return dict(self._limits)
