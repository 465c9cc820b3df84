"""What the cache hands out to those who write or read."""

from dataclasses import dataclass

from engine.l1.index import Entry

#: Holder of copies the engine makes itself; they end by themselves, so nobody takes them away.
ENGINE = "engine"

#: Who holds a pin or a reservation: the number of a registration, or ENGINE.
Holder = int | str


@dataclass(slots=True, eq=False)
class Reservation:
    """Objects being written. `entries[i]` belongs to the i-th key asked for; None = not granted.

    `refused` counts keys for which there was no room.
    """

    holder: Holder
    deadline: float
    entries: list[Entry | None]
    refused: int = 0
    number: int = 0

    @property
    def granted(self) -> list[Entry]:
        """The entries to be written."""
        return [entry for entry in self.entries if entry is not None]


@dataclass(slots=True, eq=False)
class Pin:
    """Objects in use by one copy. Their slots stay as they are until `unpin`."""

    holder: Holder
    entries: list[Entry]
    number: int = 0


@dataclass(frozen=True, slots=True)
class ClearResult:
    """How many objects went, stayed, and went from view but are still held by somebody."""

    removed: int
    kept: int
    doomed: int


@dataclass(frozen=True, slots=True)
class DeleteCounts:
    """How many of the named objects went, and how many stayed since somebody holds them."""

    deleted: int
    skipped: int
