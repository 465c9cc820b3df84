"""What must be true of L1 at any time, asserted. Runs in tests after every step of a random history."""

from collections.abc import Iterable

from engine.l1.holds import Pin, Reservation
from engine.l1.index import Entry, Index, State
from engine.l1.leases import LeaseBook
from engine.l1.pool import SlotPool


def check_invariants(
    index: Index,
    pool: SlotPool,
    leases: LeaseBook,
    reservations: Iterable[Reservation],
    pins: Iterable[Pin],
    doomed: set[Entry],
) -> None:
    """Asserts: no overlap, no leak, bytes = sums, order = table, every hold has a holder. Call under the lock."""
    index.check()
    entries = [*index.entries.values(), *doomed]
    assert sorted(entry.offset for entry in entries) == sorted(pool.check()), "slots and objects do not match"
    assert all(pool.slot_size(entry.offset) >= entry.nbytes for entry in entries), "a slot is too small"
    pinned: dict[Entry, int] = {}
    for pin in pins:
        for entry in pin.entries:
            pinned[entry] = pinned.get(entry, 0) + 1
    leased: dict[Entry, int] = {}
    for entry, number in leases.leased_entries():
        leased[entry] = leased.get(entry, 0) + number
    reserved = [entry for reservation in reservations for entry in reservation.granted]
    written, known = set(reserved), set(entries)
    assert len(reserved) == len(written), "an object is reserved twice"
    assert known.issuperset(written | pinned.keys() | leased.keys()), "somebody holds an object that is gone"
    assert sum(leased.values()) == leases.total, f"{sum(leased.values())} leases, {leases.total} counted"
    for entry in entries:
        assert entry.pins == pinned.get(entry, 0), f"{entry.key}: {entry.pins} pins, {pinned.get(entry, 0)} known"
        assert entry.leases == leased.get(entry, 0), f"{entry.key}: {entry.leases} leases"
        if entry.state is State.WRITING:
            assert entry in written, f"{entry.key} has no writer"
        if entry.state is State.DOOMED:
            assert entry.held or entry in written, f"doomed {entry.key} is held by nobody"
