"""Removes from L1 what somebody asked to be gone: single objects, and all that nobody holds."""

import threading
from collections.abc import Sequence

from engine.l1.evictor import SLICE
from engine.l1.holds import ClearResult, DeleteCounts
from engine.l1.index import Entry, Index, State
from engine.l1.pool import SlotPool
from engine.object_key import ObjectKey


class Remover:
    """Shares the cache's lock, which callers do not hold but for `doom`, and its set of doomed entries."""

    def __init__(self, lock: threading.Lock, index: Index, pool: SlotPool, doomed: set[Entry]) -> None:
        self._lock, self._index, self._pool, self._doomed = lock, index, pool, doomed

    def delete(self, keys: Sequence[ObjectKey], *, force: bool) -> DeleteCounts:
        """Removes the objects of `keys`; absent ones are passed over.

        Without `force`, leased, pinned and unwritten ones stay and count as skipped. With it they go from view at
        once, and their slots are freed when their last holder lets go.
        """
        deleted = skipped = 0
        wanted = list(dict.fromkeys(keys))
        for start in range(0, len(wanted), SLICE):
            with self._lock:
                for key in wanted[start : start + SLICE]:
                    entry = self._index.entries.get(key)
                    if entry is None:
                        continue
                    if _is_free(entry):
                        self._remove(entry)
                    elif force:
                        self.doom(entry)
                    else:
                        skipped += 1
                        continue
                    deleted += 1
        return DeleteCounts(deleted, skipped)

    def clear_unheld(self) -> ClearResult:
        """Removes every object that is written and that nobody holds."""
        removed = 0
        with self._lock:
            keys = list(self._index.entries)
        for start in range(0, len(keys), SLICE):
            with self._lock:
                entries = map(self._index.readable, keys[start : start + SLICE])
                for entry in [entry for entry in entries if entry is not None and not entry.held]:
                    self._remove(entry)
                    removed += 1
        with self._lock:
            return ClearResult(removed, len(self._index), 0)

    def doom(self, entry: Entry) -> None:
        """Takes an entry out of the table whose writer or readers still have its slot. Call under the lock."""
        self._index.remove(entry)
        entry.state = State.DOOMED
        self._doomed.add(entry)

    def _remove(self, entry: Entry) -> None:
        self._index.remove(entry)
        self._pool.free(entry.offset)


def _is_free(entry: Entry) -> bool:
    return entry.state is State.READY and not entry.held
