"""Finds single objects for people: what L1 knows about them, and how far each is from being evicted."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from engine.l1.evictor import SLICE
from engine.l1.index import Entry, Index, State
from engine.object_key import ObjectKey

#: With more objects the order of eviction is not looked through: the lock would be held too long.
MAX_ORDERED = 100_000


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object in L1 at one moment. `nbytes` are its own bytes.

    Before it `colder` of the `ordered` objects of its order of eviction go: its tenant's, or that of objects used as
    often, where the policy has several. Both None where there is no order for it, or too long a one.
    """

    key: ObjectKey
    nbytes: int
    state: str
    leases: int
    pins: int
    colder: int | None
    ordered: int | None


class Finder:
    """Shares the cache's lock."""

    def __init__(self, lock: threading.Lock, index: Index) -> None:
        self._lock, self._index = lock, index

    def find(self, hash_prefix: str, limit: int) -> tuple[list[FoundObject], bool]:
        """The first `limit` objects, by key, whose chunk hash begins with these lower-case hexadecimal digits, and
        whether there are more."""
        with self._lock:
            keys = list(self._index.entries)
        whole = bytes.fromhex(hash_prefix[: len(hash_prefix) // 2 * 2])
        matches = [key for key in keys if key.chunk_hash.startswith(whole)]
        matches = sorted(key for key in matches if key.chunk_hash.hex().startswith(hash_prefix))
        found: list[FoundObject] = []
        for start in range(0, min(limit, len(matches)), SLICE):
            chosen = matches[start : min(start + SLICE, limit)]
            places = self._places(chosen)
            with self._lock:
                entries = [self._index.entries.get(key) for key in chosen]
                found += [_describe(entry, *places.get(entry.key, (None, None))) for entry in entries if entry]
        return found, len(matches) > limit

    def _places(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, tuple[int, int]]:
        """How many go before each, and of how many."""
        left, places = set(keys), {}
        while left:
            key = left.pop()
            with self._lock:
                order = list(self._index.policy.order_with(key)) if len(self._index) <= MAX_ORDERED else []
            for place, other in enumerate(order):
                if other == key or other in left:
                    left.discard(other)
                    places[other] = (place, len(order))
        return places


def _describe(entry: Entry, colder: int | None, ordered: int | None) -> FoundObject:
    return FoundObject(
        entry.key, entry.nbytes, State(entry.state).name.lower(), entry.leases, entry.pins, colder, ordered
    )
