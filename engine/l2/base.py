"""What an L2 adapter is: five blocking verbs over whole objects.

An adapter has no threads and no state but its connection. The engine calls it from several threads at once; the
concurrency, the deadlines, the breaker, the order of operations on one key and the knowledge of what is stored are the
engine's. Read memory_adapter.py first, then docs/adding_an_l2_adapter.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from engine.object_key import ObjectKey

#: An object as it is handed over: a few buffers that belong together, in order. The caller owns them.
Buffers = Sequence[memoryview]


class Stored(NamedTuple):
    """One stored object as `scan` finds it: its size in bytes, and when it was last used (epoch seconds)."""

    key: ObjectKey
    size: int
    used_at: float


class ConnectionFault(OSError):
    """The storage could not be reached or did not answer in time: what a breaker counts."""


class StorageFull(OSError):
    """The storage has no room for the object."""


class L2Adapter(ABC):
    """Stores objects as opaque bytes under their keys.

    A missing object is a value, a fault is an exception: ConnectionFault, StorageFull, or another OSError when the
    storage answered with an error. Every verb may be called from several threads at once.
    """

    #: The word in `--l2-adapter '{"type": ...}'`.
    type_name: ClassVar[str]
    #: Whether the order of use survives a restart (else it is the order of writing).
    keeps_order_of_use: ClassVar[bool] = False
    #: Whether nobody and nothing but this process can remove what is stored: no TTL, no other program.
    is_ours_alone: ClassVar[bool] = False

    @abstractmethod
    def exists(self, key: ObjectKey) -> bool:
        """Whether a whole object is stored under `key`."""

    @abstractmethod
    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        """Fills `into` and returns the stored object's size in bytes; None when nothing is stored.

        When the size is not that of `into`, what is in the buffers means nothing.
        """

    @abstractmethod
    def write(self, key: ObjectKey, data: Buffers) -> None:
        """Stores `data` whole or not at all, in place of what was stored. A reader never sees a part."""

    @abstractmethod
    def delete(self, key: ObjectKey) -> bool:
        """Whether there was an object to remove."""

    @abstractmethod
    def scan(self) -> Iterator[Stored]:
        """Every stored object once, in no order. What is no object of ours is left out."""

    def used(self, key: ObjectKey) -> None:  # noqa: B027  # most storages have nothing to remember it with
        """The object was read: remembers that, where the storage can and as often as is worth it."""

    def capacity_bytes(self) -> int | None:
        """Bytes the storage offers in all; None when it does not say."""
        return None

    def describe(self) -> dict[str, object]:
        """Fields of its own for GET /status. No secrets."""
        return {}

    def close(self) -> None:  # noqa: B027  # some have nothing to let go of
        """Lets go of the connection; the engine calls it once, last."""


def total_bytes(buffers: Buffers) -> int:
    """Bytes of all buffers together."""
    return sum(map(len, buffers))
