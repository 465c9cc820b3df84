"""The one table of what L1 holds.

absent ─reserve→ WRITING ─commit→ READY ─evict/delete→ absent
                    └─abort→ absent
clear(force), a reservation that expired, a load that gave way: → DOOMED ─last holder lets go→ absent

state    in the table  readable  evictable                 its slot is freed
-------  ------------  --------  ------------------------  ------------------------------------------
WRITING  yes           no        no                        on abort, or evicted after commit
READY    yes           yes       when leases = pins = 0    on eviction, replacement, clear
DOOMED   no            no        no                        when its writer, leases and pins are gone

Point of no return: `commit`. Before it nobody can have read the object; after it only eviction, replacement or a clear
ends it, and never while somebody holds it.
"""

from enum import IntEnum

from engine.l1.eviction import EvictionPolicy
from engine.object_key import ObjectKey


class State(IntEnum):
    """Where an entry is in its life; see the module's table."""

    WRITING = 0
    READY = 1
    DOOMED = 2


class Entry:
    """One object's place in the pool. Guarded by the cache's lock.

    `nbytes` are the object's own bytes; its slot may be larger. `leases` and `pins` are sums over all holders.
    `missing` has a bit for each KV group of which the object holds no data (see windows.py). From `yields_at` on
    (monotonic time) a WRITING object gives way to another writer of its key.
    """

    __slots__ = ("fingerprint", "key", "leases", "missing", "nbytes", "offset", "pins", "state", "yields_at")

    def __init__(self, key: ObjectKey, offset: int, nbytes: int, fingerprint: bytes, missing: int = 0) -> None:
        self.key, self.offset, self.nbytes, self.fingerprint = key, offset, nbytes, fingerprint
        self.missing = missing
        self.state = State.WRITING
        self.leases = self.pins = 0
        self.yields_at = float("inf")

    @property
    def held(self) -> bool:
        """Whether a reader was promised the object or uses it now."""
        return self.leases > 0 or self.pins > 0


class Index:
    """key -> entry for all WRITING and READY objects, and what must agree with it: order and bytes per salt."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.entries: dict[ObjectKey, Entry] = {}
        self.bytes_by_salt: dict[str, int] = {}
        #: Salts whose bytes changed since somebody asked.
        self.changed_salts: set[str] = set()
        self.num_writing = 0

    def __len__(self) -> int:
        return len(self.entries)

    def add_writing(self, entry: Entry) -> None:
        """Lists a reserved object; its key must be absent."""
        self.entries[entry.key] = entry
        self.num_writing += 1

    def make_ready(self, entry: Entry) -> None:
        """WRITING -> READY, as the most recent of its order."""
        entry.state = State.READY
        self.num_writing -= 1
        self.policy.add(entry.key, entry.nbytes)
        self._count(entry.key.cache_salt, entry.nbytes)

    def readable(self, key: ObjectKey) -> Entry | None:
        """The READY entry of `key`."""
        entry = self.entries.get(key)
        return entry if entry is not None and entry.state is State.READY else None

    def remove(self, entry: Entry, *, evicted: bool = False) -> None:
        """Takes an entry out of the table. What becomes of its slot is the caller's business."""
        del self.entries[entry.key]
        if entry.state is State.READY:
            self.policy.remove(entry.key, entry.nbytes, evicted=evicted)
            self._count(entry.key.cache_salt, -entry.nbytes)
        else:
            self.num_writing -= 1

    def clear(self) -> dict[ObjectKey, Entry]:
        """Empties the table at once; returns what was in it."""
        before, self.entries = self.entries, {}
        self.changed_salts.update(self.bytes_by_salt)
        self.bytes_by_salt = {}
        self.num_writing = 0
        self.policy.clear()
        return before

    def _count(self, salt: str, nbytes: int) -> None:
        total = self.bytes_by_salt.get(salt, 0) + nbytes
        if total:
            self.bytes_by_salt[salt] = total
        else:
            self.bytes_by_salt.pop(salt, None)
        self.changed_salts.add(salt)

    def check(self) -> None:
        """Asserts that order and byte counts agree with the table."""
        ready = {key: entry for key, entry in self.entries.items() if entry.state is State.READY}
        assert all(entry.state is not State.DOOMED for entry in self.entries.values()), "a doomed entry is listed"
        assert len(self.entries) - len(ready) == self.num_writing, "WRITING objects are miscounted"
        order = list(self.policy.keys())
        assert len(order) == len(ready), f"{len(order)} objects in the eviction order, {len(ready)} are READY"
        assert set(order) == set(ready), "eviction order and table disagree"
        sums: dict[str, int] = {}
        for entry in ready.values():
            sums[entry.key.cache_salt] = sums.get(entry.key.cache_salt, 0) + entry.nbytes
        assert sums == self.bytes_by_salt, f"bytes per salt are {sums}, counted {self.bytes_by_salt}"
