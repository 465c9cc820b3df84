"""What L1 holds and who may touch it: reserve, commit, abort, lease, release, pin, touch, evict, clear.

The table and its states are in index.py, leases in leases.py, free space in pool.py, the order in eviction.py.
"""

import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import chain, count

from engine.l1.eviction import EvictionPolicy
from engine.l1.evictor import SLICE, Evictor
from engine.l1.finder import Finder
from engine.l1.holds import ENGINE, ClearResult, Holder, Pin, Reservation
from engine.l1.index import Entry, Index, State
from engine.l1.invariants import check_invariants
from engine.l1.leases import LeaseBook, Scope
from engine.l1.pool import SlotPool
from engine.l1.remover import Remover
from engine.l1.report import count_all
from engine.l1.room import RoomSearch
from engine.l1.windows import servable_chunks
from engine.object_key import ObjectKey


class L1Cache:
    """All of L1's state behind one lock. Every verb is thread-safe; readers see READY entries of their own layout.

    The lock guards tables only: no copy, no I/O, no callback, no log while it is held.
    """

    def __init__(
        self,
        pool: SlotPool,
        policy: EvictionPolicy,
        *,
        write_ttl_s: float,
        read_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._pool = pool
        self._index = Index(policy)
        self._leases = LeaseBook()
        self._write_ttl_s, self._read_ttl_s = write_ttl_s, read_ttl_s
        self._reservations: dict[int, Reservation] = {}
        self._pins: dict[int, Pin] = {}
        self._doomed: set[Entry] = set()
        self._numbers = count(1)
        self._evictor = Evictor(self._lock, self._index, pool)
        # See evictor.py.
        self.evict_to, self.evict_over_quota = self._evictor.evict_to, self._evictor.evict_over_quota
        self.take_evictions = self._evictor.take_counts
        # See remover.py.
        self._remover = Remover(self._lock, self._index, pool, self._doomed)
        self.delete = self._remover.delete
        self.find = Finder(self._lock, self._index).find  # see finder.py

    def follow(self, *, write_ttl_s: float, read_ttl_s: float) -> None:
        """From now on what is handed out lasts so long; what has been handed out keeps its deadline."""
        self._write_ttl_s, self._read_ttl_s = write_ttl_s, read_ttl_s

    # ---- writing

    def reserve(
        self,
        keys: Sequence[ObjectKey],
        nbytes: int,
        fingerprint: bytes,
        holder: Holder,
        missing: Sequence[int] | None = None,
    ) -> Reservation:
        """Slots of `nbytes` for those keys that are neither present nor being written, as far as there is room.

        What is being written and yields (see Entry) is written anew; its former writer finds out at its commit.

        An object of another layout, or that lacks more KV groups than `missing` says, is replaced unless it is held.
        The caller owns the slots until `commit` or `abort`; only the engine's own have no deadline.
        """
        reservation = Reservation(holder, float("inf") if holder == ENGINE else self._clock() + self._write_ttl_s, [])
        with self._lock:
            room = RoomSearch(self._index, self._pool, keys)
            for key, lacks in zip(keys, missing or [0] * len(keys), strict=True):
                entry = None
                if self._is_wanted(key, fingerprint, lacks):
                    # After one refusal the search for room is not repeated for the rest of the batch.
                    entry = None if reservation.refused else self._reserve_one(key, nbytes, fingerprint, lacks, room)
                    reservation.refused += entry is None
                reservation.entries.append(entry)
            if any(entry is not None for entry in reservation.entries):
                reservation.number = next(self._numbers)
                self._reservations[reservation.number] = reservation
        return reservation

    def _is_wanted(self, key: ObjectKey, fingerprint: bytes, lacks: int) -> bool:
        present = self._index.entries.get(key)
        if present is None:
            return True
        if present.state is State.WRITING:
            return present.yields_at <= self._clock()
        if present.fingerprint == fingerprint and (lacks == present.missing or lacks & ~present.missing):
            return False
        return not present.held

    def _reserve_one(
        self, key: ObjectKey, nbytes: int, fingerprint: bytes, lacks: int, room: RoomSearch
    ) -> Entry | None:
        present = self._index.entries.get(key)
        if present is not None and present.state is State.READY:
            room.forget(present)
            self._evictor.evict(present, "replaced")
        offset = self._pool.allocate(nbytes)
        if offset is None:
            for victim in room.victims(nbytes):
                self._evictor.evict(victim, "room")
            offset = self._pool.allocate(nbytes)
        if offset is None:
            return None
        if present is not None and present.state is State.WRITING:
            self._remover.doom(present)
        entry = Entry(key, offset, nbytes, fingerprint, lacks)
        self._index.add_writing(entry)
        return entry

    def is_live(self, reservation: Reservation) -> bool:
        """Whether a commit would succeed now."""
        with self._lock:
            in_time = reservation.number in self._reservations and self._clock() < reservation.deadline
            return in_time and all(entry.state is State.WRITING for entry in reservation.granted)

    def adopt(self, reservation: Reservation) -> bool:
        """Hands a client's reservation to the engine, for a copy of its own; False when it has ended already."""
        with self._lock:
            reservation.holder = ENGINE
            return reservation.number in self._reservations

    def commit(self, reservation: Reservation) -> bool:
        """Makes the written objects readable. False when any of them expired or was cleared; those slots are freed."""
        with self._lock:
            return self._commit(reservation)

    def commit_pinned(self, reservation: Reservation) -> Pin | None:
        """`commit`, and a pin on what became readable in the same step; None when there is nothing."""
        with self._lock:
            return self._pin(reservation.granted, ENGINE) if self._commit(reservation) else None

    def _commit(self, reservation: Reservation) -> bool:
        if self._reservations.pop(reservation.number, None) is None:
            return False
        granted = reservation.granted
        complete = self._clock() < reservation.deadline and all(entry.state is State.WRITING for entry in granted)
        for entry in reversed(granted):
            if complete:
                self._index.make_ready(entry)
            else:
                self._drop_writing(entry)
        return complete

    def abort(self, reservation: Reservation) -> None:
        """Gives the slots back; nobody ever saw the objects."""
        with self._lock:
            self._abort(reservation)

    def _abort(self, reservation: Reservation) -> None:
        if self._reservations.pop(reservation.number, None) is not None:
            for entry in reservation.granted:
                self._drop_writing(entry)

    def _drop_writing(self, entry: Entry) -> None:
        """Ends an entry whose writer has let go."""
        if entry.state is State.WRITING:
            self._index.remove(entry)
        self._doomed.discard(entry)
        self._pool.free(entry.offset)

    # ---- reading

    def lease_prefix(
        self,
        chunks: Sequence[Sequence[ObjectKey]],
        layouts: Mapping[bytes, Sequence[int]],
        owner: str,
        scope: Scope,
        readers: int,
    ) -> int:
        """Leases the longest readable prefix of `chunks` to `owner` and returns its length in chunks.

        `chunks[i]` are the keys of chunk i, one per rank; a chunk counts when all are READY with one of `layouts`
        (fingerprint -> windows, see windows.py), the same one along the prefix for each rank. `readers` leases are
        taken per object. Leases which `owner` had before are given back in the same step.
        """
        deadline = self._clock() + self._read_ttl_s
        with self._lock:
            found: list[list[Entry]] = []
            row: list[bytes] = []
            for keys in chunks:
                entries = [entry for entry in map(self._index.readable, keys) if entry is not None]
                fingerprints = [entry.fingerprint for entry in entries]
                if len(entries) < len(keys) or (fingerprints != row if row else not layouts.keys() >= {*fingerprints}):
                    break
                row = fingerprints
                found.append(entries)
            hit = servable_chunks(found, [layouts[fingerprint] for fingerprint in row])
            self._let_go(self._leases.replace(owner, scope, chain.from_iterable(found[:hit]), readers, deadline))
            return hit

    def release(self, owner: str, keys: Sequence[ObjectKey], readers: int) -> None:
        """Gives back up to `readers` of the owner's leases on each key. What it does not hold is left alone."""
        for start in range(0, len(keys), SLICE):
            with self._lock:
                self._let_go(self._leases.release(owner, keys[start : start + SLICE], readers))

    def pin(self, keys: Sequence[ObjectKey], fingerprint: bytes, holder: Holder, owner: str) -> Pin | None:
        """Pins all of `keys` for a copy, or none: None when one is not READY with this layout.

        One lease of `owner` on each key is given back, if it has one, also when the pin fails.
        """
        with self._lock:
            entries = [self._index.readable(key) for key in keys]
            usable = [entry for entry in entries if entry is not None and entry.fingerprint == fingerprint]
            pin = None
            if len(usable) == len(keys):
                pin = self._pin(usable, holder)
                for entry in reversed(usable):
                    self._index.policy.used(entry.key)
            self._let_go(self._leases.release(owner, keys, 1))
            return pin

    def hold(self, keys: Sequence[ObjectKey], layouts: Container[bytes]) -> list[Pin | None]:
        """A pin of the engine's own on each of `keys` that is READY in one of `layouts` (fingerprints).

        Nobody has read anything: the order of use stays, and so do leases.
        """
        pins: list[Pin | None] = []
        for start in range(0, len(keys), SLICE):
            with self._lock:
                for key in keys[start : start + SLICE]:
                    entry = self._index.readable(key)
                    usable = entry is not None and entry.fingerprint in layouts
                    pins.append(self._pin([entry], ENGINE) if entry is not None and usable else None)
        return pins

    def _pin(self, entries: list[Entry], holder: Holder) -> Pin:
        pin = Pin(holder, entries, next(self._numbers))
        self._pins[pin.number] = pin
        for entry in entries:
            entry.pins += 1
        return pin

    def unpin(self, pin: Pin) -> None:
        """The copy is over. A pin that was taken away meanwhile is no error."""
        with self._lock:
            self._unpin(pin)

    def _unpin(self, pin: Pin) -> None:
        if self._pins.pop(pin.number, None) is not None:
            for entry in pin.entries:
                entry.pins -= 1
            self._let_go(pin.entries)

    def _let_go(self, entries: Iterable[Entry]) -> None:
        """Frees those doomed entries that nobody holds any more."""
        for entry in entries:
            if entry.state is State.DOOMED and not entry.held and entry in self._doomed:
                self._doomed.remove(entry)
                self._pool.free(entry.offset)

    def touch(self, keys: Sequence[ObjectKey]) -> None:
        """Makes a prefix recent, its last chunk least. Absent keys are passed over."""
        for start in range(len(keys), 0, -SLICE):
            with self._lock:
                for key in reversed(keys[max(0, start - SLICE) : start]):
                    if self._index.readable(key) is not None:
                        self._index.policy.refresh(key)

    # ---- letting go

    def drop_written(self, entries: Iterable[Entry]) -> int:
        """Removes those objects that nobody holds, since they are stored elsewhere; returns how many."""
        dropped = 0
        with self._lock:
            for entry in entries:
                if entry.state is State.READY and not entry.held and self._index.entries.get(entry.key) is entry:
                    self._evictor.evict(entry, "written")
                    dropped += 1
        return dropped

    def clear(self, *, force: bool) -> ClearResult:
        """Removes every object. Without `force`, leased, pinned and unwritten ones stay.

        With `force` the table is empty at once; what is still held is doomed: out of sight, its slot freed when its
        last holder lets go, and the commit of a doomed reservation answers false.
        """
        return self._clear_all() if force else self._remover.clear_unheld()

    def _clear_all(self) -> ClearResult:
        with self._lock:
            before = self._index.clear()
            held = {entry for pin in self._pins.values() for entry in pin.entries}
            held.update(entry for entry, _ in self._leases.leased_entries())
            held.update(entry for reservation in self._reservations.values() for entry in reservation.granted)
            doomed = len(held) - len(self._doomed)
            for entry in held:
                entry.state = State.DOOMED
            # The same set: the remover has it too.
            self._doomed.clear()
            self._doomed.update(held)
            self._pool.keep_only(entry.offset for entry in held)
        return ClearResult(removed=len(before) - doomed, kept=0, doomed=doomed)

    def expire(self) -> tuple[int, int]:
        """Ends leases and reservations past their deadline. Returns (owners, reservations) that lost them.

        The slot of an expired reservation stays taken until its client commits or goes: it may still be writing.
        """
        now, owners = self._clock(), 0
        while True:
            with self._lock:
                if not self._leases.due(now):
                    break
                self._let_go(self._leases.expire(now))
                owners += 1
        with self._lock:
            reservations = sum(self._doom(held) for held in self._reservations.values() if held.deadline <= now)
        return owners, reservations

    def _doom(self, reservation: Reservation) -> bool:
        writing = [entry for entry in reservation.granted if entry.state is State.WRITING]
        for entry in writing:
            self._remover.doom(entry)
        return bool(writing)

    def release_holder(self, holder: int) -> tuple[int, int]:
        """Takes away all pins and reservations of a client that is gone. Returns how many of each."""
        with self._lock:
            pins = [pin for pin in self._pins.values() if pin.holder == holder]
            reservations = [held for held in self._reservations.values() if held.holder == holder]
            for pin in pins:
                self._unpin(pin)
            for reservation in reservations:
                self._abort(reservation)
        return len(pins), len(reservations)

    def release_scope(self, scope: Scope) -> None:
        """Ends all leases taken for a (model, world size) that has no worker any more."""
        with self._lock:
            owners = self._leases.owners_of(scope)
        for owner in owners:  # each in a hold of its own: there may be very many
            with self._lock:
                self._let_go(self._leases.drop(owner, scope))

    # ---- looking

    def usage(self) -> tuple[int, int]:
        """(bytes of the pool in use, bytes of the pool)."""
        return self._pool.used_bytes, self._pool.capacity

    def bytes_by_salt(self) -> dict[str, int]:
        """Readable bytes of each salt."""
        with self._lock:
            return self._index.bytes_by_salt.copy()

    def bytes_of(self, cache_salt: str) -> int:
        """Readable bytes of one salt."""
        return self._index.bytes_by_salt.get(cache_salt, 0)

    def take_changed_salts(self) -> dict[str, int]:
        """Readable bytes of the salts that changed since the last call; 0 for one that has nothing left."""
        with self._lock:
            changed, self._index.changed_salts = self._index.changed_salts, set()
            return {salt: self._index.bytes_by_salt.get(salt, 0) for salt in changed}

    def report(self) -> dict[str, int]:
        """Counts of everything, consistent with each other."""
        with self._lock:
            return count_all(
                self._index, self._pool, self._leases, len(self._reservations), self._pins.values(), self._doomed
            )

    def check(self) -> None:
        """Asserts the invariants: no overlap, no leak, bytes = sums, order = table, every hold has a holder."""
        with self._lock:
            check_invariants(
                self._index, self._pool, self._leases, self._reservations.values(), self._pins.values(), self._doomed
            )
