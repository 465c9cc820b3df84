"""Evicts from L1: walks the policy's order in slices and takes out what nobody holds."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from engine.l1.eviction import IsolatedLRU
from engine.l1.index import Entry, Index
from engine.l1.pool import SlotPool
from engine.object_key import ObjectKey

#: Most table rows one hold of the lock works through when nobody needs them all at once.
SLICE = 256


class Evictor:
    """Shares the cache's lock, which callers do not hold, but for `evict`."""

    def __init__(self, lock: threading.Lock, index: Index, pool: SlotPool) -> None:
        self._lock, self._index, self._pool = lock, index, pool
        self._counts: Counter[str] = Counter()

    def evict_to(self, target_bytes: int) -> tuple[int, int]:
        """Evicts oldest first until at most `target_bytes` are used. Returns (objects evicted, objects in the way)."""
        oldest = self._index.policy.oldest
        evicted, held, _ = self._evict_while(oldest, lambda: self._pool.used_bytes > target_bytes, "capacity")
        return evicted, held

    def evict_over_quota(self, note: Callable[[str, int, int, int], None] | None = None) -> tuple[int, int]:
        """Under IsolatedLRU: evicts each salt's oldest until its bytes are within its limit.

        `note` is told, under no lock, each salt with its objects and bytes that went and its limit in bytes.
        """
        policy = self._index.policy
        if not isinstance(policy, IsolatedLRU):
            return 0, 0
        with self._lock:
            over = policy.over_limit()
        evicted = blocked = 0
        for salt, limit in over:
            oldest, is_over = partial(policy.oldest_of, salt), partial(self._has_more_than, salt, limit)
            done, held, nbytes = self._evict_while(oldest, is_over, "quota")
            if note is not None:
                note(salt, done, nbytes, limit)
            evicted, blocked = evicted + done, blocked + held
        return evicted, blocked

    def evict(self, entry: Entry, reason: str) -> None:
        """Takes a READY object out and frees its slot. Call under the lock; nobody may hold the object."""
        self._counts[reason] += 1
        self._index.remove(entry, evicted=True)
        self._pool.free(entry.offset)

    def take_counts(self) -> Counter[str]:
        """Objects evicted since the last call, by reason: capacity, quota, room, replaced, written."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
            return taken

    def _has_more_than(self, salt: str, nbytes: int) -> bool:
        return self._index.bytes_by_salt.get(salt, 0) > nbytes

    def _evict_while(
        self, order: Callable[[], Iterator[ObjectKey]], wanted: Callable[[], bool], reason: str
    ) -> tuple[int, int, int]:
        """Objects evicted, objects in the way, bytes of those evicted."""
        evicted = passed = nbytes = 0
        while True:
            with self._lock:
                if not wanted():
                    return evicted, passed, nbytes
                keys = list(islice(order(), passed, passed + SLICE))
                if not keys:
                    return evicted, passed, nbytes
                for key in keys:
                    entry = self._index.entries[key]
                    if entry.held:
                        passed += 1
                    elif wanted():
                        self.evict(entry, reason)
                        evicted += 1
                        nbytes += entry.nbytes
