"""Who has to go so that a reservation fits."""

from collections.abc import Sequence
from itertools import islice

from engine.l1.index import Entry, Index
from engine.l1.pool import SlotPool
from engine.object_key import ObjectKey

#: Entries looked at first, and at most, to make room for one batch of reservations.
FIRST_LOOK = 512
MAX_CANDIDATES = 16384


class RoomSearch:
    """Finds victims for the objects of one batch, under one hold of the lock: the order is looked at once or twice.

    Objects of the batch itself are spared: chunks of one prefix must not push each other out. Between two calls
    nothing but the victims, and what `forget` is told, may leave the index.
    """

    def __init__(self, index: Index, pool: SlotPool, batch: Sequence[ObjectKey]) -> None:
        self._index, self._pool, self._batch = index, pool, batch
        self._looked_at = 0
        self._evictable: dict[int, Entry] = {}

    def victims(self, nbytes: int) -> list[Entry]:
        """The oldest contiguous run of evictable objects that leaves room for `nbytes`; empty when there is none."""
        for look in (FIRST_LOOK, MAX_CANDIDATES):
            if self._looked_at < look:
                self._look(look)
            run = self._pool.find_run(nbytes, self._evictable)
            if run is not None:
                return [self._evictable.pop(offset) for offset in run]
        return []

    def forget(self, entry: Entry) -> None:
        """`entry` has left the index by another way."""
        self._evictable.pop(entry.offset, None)

    def _look(self, number: int) -> None:
        self._looked_at = number
        spared = set(self._batch)
        oldest = islice(self._index.policy.oldest(), number)
        entries = [self._index.entries[key] for key in oldest if key not in spared]
        self._evictable = {entry.offset: entry for entry in entries if not entry.held}
