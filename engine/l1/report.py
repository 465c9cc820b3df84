"""The counts of L1 that people and metrics see."""

from collections.abc import Iterable

from engine.l1.holds import Pin
from engine.l1.index import Entry, Index
from engine.l1.leases import LeaseBook
from engine.l1.pool import SlotPool


def count_all(
    index: Index, pool: SlotPool, leases: LeaseBook, num_reservations: int, pins: Iterable[Pin], doomed: set[Entry]
) -> dict[str, int]:
    """Counts of everything, consistent with each other. Call under the lock."""
    leased = {entry for entry, _ in leases.leased_entries()}
    open_pins = list(pins)
    pinned = {entry for pin in open_pins for entry in pin.entries}
    return {
        "total_object_count": len(index),
        "write_locked_count": index.num_writing,
        "read_locked_count": len(leased | pinned),
        "lease_owners": len(leases),
        "leases": leases.total,
        "leased_objects": len(leased),
        "pins": len(open_pins),
        "pinned_objects": len(pinned),
        "reservations": num_reservations,
        "doomed_objects": len(doomed),
        "doomed_bytes": sum(pool.slot_size(entry.offset) for entry in doomed),
        "memory_used_bytes": pool.used_bytes,
        "memory_total_bytes": pool.capacity,
        "largest_hole_bytes": pool.largest_hole,
        "num_holes": pool.num_holes,
    }
