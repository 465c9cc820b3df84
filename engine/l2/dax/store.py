"""Which object is in which slot of which device.

state      new writes   reads   means
--------   ----------   -----   ----------------------------------------------------------
active     yes          yes     in use
draining   no           yes     takes nothing new
removing   no           yes     its objects are being moved or deleted
removed    no           no      empty; listed, so that its fate can be seen
closed     no           no      the adapter was closed

A slot is `taken` from before its first byte is written until the last reader has left it, whatever happened to the
object or the device meanwhile; a taken slot is never handed out, so nobody reads or writes another's bytes.
"""

import contextlib
import fcntl
import heapq
import os
import threading
import time
from dataclasses import dataclass, field
from enum import Enum

from engine.l2.base import Buffers, StorageFull
from engine.l2.dax.slots import Header, Mapping
from engine.object_key import ObjectKey


class State(Enum):
    """See the module's table."""

    ACTIVE = "active"
    DRAINING = "draining"
    REMOVING = "removing"
    REMOVED = "removed"
    CLOSED = "closed"


class Device:
    """A device and its free slots. All fields are guarded by the store's lock."""

    def __init__(self, path: str, size: int, slot_bytes: int, index: int, *, sync: bool) -> None:
        """Raises OSError or ValueError when it cannot be opened, is used by another process, or cannot be mapped."""
        self.path, self.index, self.slot_bytes, self._sync = path, index, slot_bytes, sync
        self._mapping: Mapping | None = None
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mapping = self._mapping = self.map(size)
        except BaseException:
            self.release()
            raise
        self.state = State.ACTIVE
        self.size = size
        self.live = 0
        self.reading = 0
        self.writing = 0
        self.taken: set[int] = set()
        self.slots = mapping.slots
        self.free: list[int] = []

    @property
    def mapping(self) -> Mapping:
        """The device's memory; it has some as long as a slot of it is taken."""
        assert self._mapping is not None, f"{self.path} is closed"
        return self._mapping

    def use(self, mapping: Mapping, size: int) -> None:
        """Goes on with another mapping of the same device; the old one goes when its last copy ends."""
        self._mapping, self.size = mapping, size
        self.limit_to(mapping.slots)

    def map(self, size: int) -> Mapping:
        """The device's first `size` bytes in memory; changes nothing here."""
        if self._descriptor is None:
            raise OSError(f"{self.path} is closed")
        return Mapping(self._descriptor, size, self.slot_bytes, sync=self._sync)

    def limit_to(self, slots: int) -> None:
        """Hands out slots below `slots` from now on."""
        self.slots = slots
        self.free = [number for number in range(slots) if number not in self.taken]

    def give_back(self, number: int) -> None:
        """The slot is nobody's any more."""
        self.taken.discard(number)
        if number < self.slots and self.state in (State.ACTIVE, State.DRAINING, State.REMOVING):
            heapq.heappush(self.free, number)
        if self.state in (State.REMOVED, State.CLOSED) and not self.taken:
            self.release()

    def leave(self, state: State) -> None:
        """The device is out of use; its file is let go once nobody reads or writes."""
        self.state, self.free, self.slots = state, [], 0
        if not self.taken:
            self.release()

    def release(self) -> None:
        """Lets go of the file and the memory; a copy that still runs has its own hold on the memory."""
        self._mapping = None
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a mapping has a duplicate, which would keep the lock
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def closing(self) -> bool:
        """Out of use, but still being read or written."""
        return self.state in (State.REMOVED, State.CLOSED) and self._descriptor is not None


@dataclass(eq=False, slots=True)
class Place:
    """Where an object lies. `readers` copy from it right now; `gone` once it is no longer the object's place."""

    device: Device
    number: int
    header: Header
    readers: int = 0
    gone: bool = False


@dataclass
class Store:
    """Thread-safe. The lock is held for table work and headers (one page), never for an object's bytes."""

    slot_bytes: int
    devices: list[Device] = field(default_factory=list)
    index: dict[ObjectKey, Place] = field(default_factory=dict)
    lock: threading.Condition = field(default_factory=threading.Condition)
    sequence: int = 0

    def admit(self, device: Device) -> list[Header]:
        """Puts a device into use, and what it holds into the index; returns what was new.

        Of two objects with one key the newer stays: what this process has written, else the higher sequence.
        """
        found = list(device.mapping.headers())
        with self.lock:
            fresh: dict[ObjectKey, Place] = {}
            for number, header in found:
                known = fresh.get(header.key)
                if header.key in self.index or (known and known.header.sequence > header.sequence):
                    device.mapping.clear(number)
                    continue
                if known:
                    device.mapping.clear(known.number)
                fresh[header.key] = Place(device, number, header)
                self.sequence = max(self.sequence, header.sequence)
            device.taken = {place.number for place in fresh.values()}
            device.live = len(fresh)
            device.limit_to(device.slots)
            self.index.update(fresh)
            self.devices[device.index : device.index + 1] = [device]
            return [place.header for place in fresh.values()]

    def lease(self, key: ObjectKey) -> tuple[Place, Mapping] | None:
        """The object's place, which stays as it is until `give_back`."""
        with self.lock:
            place = self.index.get(key)
            if place is None:
                return None
            place.readers += 1
            place.device.reading += 1
            return place, place.device.mapping

    def give_back(self, place: Place) -> None:
        """Ends a lease."""
        with self.lock:
            place.readers -= 1
            place.device.reading -= 1
            if place.gone and not place.readers:
                place.device.give_back(place.number)
            self.lock.notify_all()

    def put(self, key: ObjectKey, data: Buffers, length: int) -> None:
        """Stores an object. Begins again on another device when the slot's own left use meanwhile."""
        while True:
            device, number, mapping = self._take()
            published = False
            try:
                digest = mapping.fill(number, data)
                published = self._publish(device, number, mapping, Header(key, length, 0, time.time(), digest))
            finally:
                self._end_write(device, number, published=published)
            if published:
                return

    def move(self, key: ObjectKey, place: Place) -> bool:
        """Copies an object to another slot and frees its own; False when it was no longer there. Raises StorageFull."""
        leased = self.lease(key)
        if leased is None:
            return False
        try:
            if leased[0] is not place:
                return False
            device, number, mapping = self._take()
            published = False
            try:
                length = place.header.length
                mapping.fill(number, [leased[1].content(place.number, length).data])
                published = self._publish(device, number, mapping, place.header, instead_of=place)
            finally:
                self._end_write(device, number, published=published)
            return published
        finally:
            self.give_back(leased[0])

    def drop(self, key: ObjectKey, place: Place | None = None) -> bool:
        """Deletes the object (only if it is at `place`, when that is given); whether there was one."""
        with self.lock:
            found = self.index.get(key)
            if found is None or (place is not None and found is not place):
                return False
            del self.index[key]
            self._vacate(found)
            return True

    def places_on(self, device: Device, first: int = 0) -> list[tuple[ObjectKey, Place]]:
        """What lies on the device, from slot `first` on."""
        with self.lock:
            places = list(self.index.items())
        return [(key, place) for key, place in places if place.device is device and place.number >= first]

    def _take(self) -> tuple[Device, int, Mapping]:
        with self.lock:
            usable = [device for device in self.devices if device.state is State.ACTIVE and device.free]
            if not usable:
                raise StorageFull(f"no free slot: {len(self.index)} objects, slots of {self.slot_bytes} bytes")
            device = max(usable, key=lambda one: len(one.free))
            number = heapq.heappop(device.free)
            device.taken.add(number)
            device.writing += 1
            return device, number, device.mapping

    def _publish(
        self, device: Device, number: int, mapping: Mapping, header: Header, *, instead_of: Place | None = None
    ) -> bool:
        with self.lock:
            if device.state not in (State.ACTIVE, State.DRAINING) or number >= device.slots:
                return False
            before = self.index.get(header.key)
            if instead_of is not None and before is not instead_of:
                return False
            self.sequence += 1
            header = header._replace(sequence=self.sequence)
            mapping.publish(number, header)
            self.index[header.key] = Place(device, number, header)
            device.live += 1
            if before is not None:
                self._vacate(before)
            return True

    def _end_write(self, device: Device, number: int, *, published: bool) -> None:
        with self.lock:
            device.writing -= 1
            if not published:
                device.give_back(number)
            self.lock.notify_all()

    def _vacate(self, place: Place) -> None:
        place.device.mapping.clear(place.number)
        place.device.live -= 1
        place.gone = True
        if not place.readers:
            place.device.give_back(place.number)

    def check(self) -> None:
        """Raises AssertionError when the tables disagree. Takes the lock."""
        with self.lock:
            for device in self.devices:
                live = {place.number for place in self.index.values() if place.device is device}
                assert len(live) == device.live, f"{device.path}: {len(live)} live, counted {device.live}"
                assert live <= device.taken, f"{device.path}: live slots that nobody took"
                if device.state in (State.ACTIVE, State.DRAINING):
                    every = sorted([*device.free, *(number for number in device.taken if number < device.slots)])
                    assert every == list(range(device.slots)), f"{device.path}: slots lost or doubled"
