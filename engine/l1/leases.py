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
#: Bounds of the book; beyond them the owners whose deadline is nearest lose their leases.
MAX_OWNERS = 65_536
MAX_LEASED = 4_194_304


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
        self._held = 0

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
            self._held += len(after.counts)
        free = self._drop(before) if before is not None else []
        while len(self._owners) > MAX_OWNERS or (self._held > MAX_LEASED and len(self._owners) > 1):
            free += self._drop(self._owners.popitem(last=False)[1])
        return free

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
                self._held -= 1
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

    def owners_of(self, scope: Scope) -> list[str]:
        """Who has leases in a scope."""
        return [owner for owner, held in self._owners.items() if held.scope == scope]

    def drop(self, owner: str, scope: Scope) -> list[Entry]:
        """Ends the leases of an owner, if they are of this scope."""
        held = self._owners.get(owner)
        if held is None or held.scope != scope:
            return []
        del self._owners[owner]
        return self._drop(held)

    def leased_entries(self) -> Iterator[tuple[Entry, int]]:
        """Every lease with its count, for the invariant check and a forced clear."""
        for held in self._owners.values():
            yield from held.counts.values()

    def _drop(self, held: _OwnersLeases) -> list[Entry]:
        self._held -= len(held.counts)
        return [free for entry, count in held.counts.values() for free in self._take(entry, count)]

    def _take(self, entry: Entry, count: int) -> list[Entry]:
        entry.leases -= count
        self.total -= count
        return [] if entry.leases else [entry]
