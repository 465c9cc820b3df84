"""Who was promised which object, and until when.

A lease has an owner (a request id), a count per object and one deadline per owner. The deadline is the same time span
for all, so owners stand in order of expiry. An owner can only give back what it holds itself.
Not thread-safe: the cache's lock guards it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from engine.l1.index import Entry
from engine.object_key import ObjectKey

#: (model_name, world_size): leases of a scope end with its last worker.
Scope = tuple[str, int]


class _OwnersLeases:
    __slots__ = ("counts", "deadline", "scope")

    def __init__(self, scope: Scope, deadline: float) -> None:
        self.scope, self.deadline = scope, deadline
        self.counts: dict[ObjectKey, tuple[Entry, int]] = {}


class LeaseBook:
    """All leases. Verbs that take leases away return the entries that nobody leases any more."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, _OwnersLeases] = OrderedDict()
        #: Sum of all counts.
        self.total = 0

    def __len__(self) -> int:
        return len(self._owners)

    def replace(self, owner: str, scope: Scope, entries: Iterable[Entry], count: int, deadline: float) -> list[Entry]:
        """Gives `owner` `count` leases on each entry, and takes away what it held before, in one step."""
        before = self._owners.pop(owner, None)
        after = _OwnersLeases(scope, deadline)
        for entry in entries:
            after.counts[entry.key] = (entry, count)
            entry.leases += count
            self.total += count
        if after.counts:
            self._owners[owner] = after
        return self._drop(before) if before is not None else []

    def release(self, owner: str, keys: Iterable[ObjectKey], count: int) -> list[Entry]:
        """Takes back up to `count` leases of `owner` on each key; what it does not hold is left alone."""
        held = self._owners.get(owner)
        if held is None:
            return []
        free = []
        for key in keys:
            found = held.counts.get(key)
            if found is None:
                continue
            entry, owned = found
            taken = min(owned, count)
            if owned > taken:
                held.counts[key] = (entry, owned - taken)
            else:
                del held.counts[key]
            free += self._take(entry, taken)
        if not held.counts:
            del self._owners[owner]
        return free

    def expire(self, now: float) -> list[Entry]:
        """Ends the leases of the owner whose deadline passed first, if any; call until `due` says no."""
        owner, held = next(iter(self._owners.items()))
        if held.deadline > now:
            return []
        del self._owners[owner]
        return self._drop(held)

    def due(self, now: float) -> bool:
        """Whether somebody's deadline has passed."""
        return bool(self._owners) and next(iter(self._owners.values())).deadline <= now

    def drop_scope(self, scope: Scope) -> list[Entry]:
        """Ends all leases of a scope."""
        owners = [owner for owner, held in self._owners.items() if held.scope == scope]
        return [entry for owner in owners for entry in self._drop(self._owners.pop(owner))]

    def leased_entries(self) -> Iterator[tuple[Entry, int]]:
        """Every lease with its count, for the invariant check and a forced clear."""
        for held in self._owners.values():
            yield from held.counts.values()

    def _drop(self, held: _OwnersLeases) -> list[Entry]:
        return [free for entry, count in held.counts.values() for free in self._take(entry, count)]

    def _take(self, entry: Entry, count: int) -> list[Entry]:
        entry.leases -= count
        self.total -= count
        return [] if entry.leases else [entry]
