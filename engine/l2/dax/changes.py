"""Devices that come, go, grow and shrink while objects are read and written.

operation   mode      what happens to the objects
---------   -------   ------------------------------------------------------------------------------------
add                   what the device still holds from before is taken in, unless a newer one is known
remove      migrate   moved to other devices; refused when they have no room
remove      evict     deleted
remove      drain     they stay; the device takes nothing new
resize      migrate   those beyond the new size move, to lower slots too
resize      evict     those beyond the new size are deleted

One change at a time. Objects stay readable throughout. A change waits a few seconds for copies that still run in slots
it must give up; then it is refused (what was moved stays moved, asking again goes on), or with `force` made: the memory
stays mapped and the slots out of use until those copies end.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine.l2.base import StorageFull, Stored
from engine.l2.dax.store import Device, Place, State, Store
from engine.l2.reconfigure import Reconfigured, ReconfigureError
from engine.object_key import ObjectKey

MAX_DEVICES = 64
SETTLE_S = 5.0
_SIZE = re.compile(r"(\d+)(?:\.(\d+))? *(|b|[kmgt](?:i?b)?)", re.ASCII | re.IGNORECASE)
_UNITS = ("", "k", "m", "g", "t")
_MAX_SIZE_CHARACTERS = 64
#: What the operating system can map at all.
_MAX_SIZE = 2**63 - 1
_IN_USE = (State.ACTIVE, State.DRAINING)


@dataclass
class Moved:
    """What became of the objects in slots that were given up."""

    moved_keys: int = 0
    moved_bytes: int = 0
    slots_freed: int = 0
    deleted: list[ObjectKey] = field(default_factory=list)


class Changes:
    """The operations on one store's devices. `sync` is handed to devices that are added."""

    def __init__(self, store: Store, *, sync: bool, settle_s: float = SETTLE_S) -> None:
        self._store = store
        self._sync = sync
        self._settle_s = settle_s
        self._one_at_a_time = threading.Lock()

    def add(self, device_path: str, size: int | str) -> Reconfigured:
        """Takes a device into use. Again with the same size is no change, and ends a drain. Raises ReconfigureError."""
        wanted = parse_size(size)
        with self._one_at_a_time:
            if not device_path:
                raise ReconfigureError("bad_request", "device_path must be non-empty")
            known = self._find(device_path)
            if known is not None and known.state in _IN_USE:
                if known.size != wanted:
                    raise ReconfigureError("conflict", "device_path already active with a different size")
                with self._store.lock:
                    known.state = State.ACTIVE
                return Reconfigured({"status": "ok", "operation": "add", "device": describe(known)})
            if known is not None and known.closing:
                raise ReconfigureError("conflict", f"{device_path} is still being read or written since its removal")
            device = self._open(device_path, wanted, len(self._store.devices) if known is None else known.index)
            found = self._store.admit(device)
            stored = tuple(Stored(header.key, header.length, header.written_at) for header in found)
            return Reconfigured({"status": "ok", "operation": "add", "device": describe(device)}, found=stored)

    def remove(self, device_path: str, mode: str = "migrate", *, force: bool = False) -> Reconfigured:
        """Takes a device out of use, or with `drain` only stops new writes to it. Raises ReconfigureError."""
        if mode not in ("migrate", "evict", "drain"):
            raise ReconfigureError("bad_request", f"mode {mode!r} is not one of migrate, evict, drain")
        with self._one_at_a_time:
            device = self._active(device_path)
            head = {"status": "ok", "device_path": device.path, "index": device.index}
            if mode == "drain":
                self._set_state(device, State.DRAINING)
                return Reconfigured({**head, "operation": "drain", "state": device.state.value})
            before = device.state
            self._set_state(device, State.REMOVING)
            try:
                moved = self._empty(device, 0, mode, force=force)
            except BaseException:
                self._set_state(device, before)
                raise
            with self._store.lock:
                device.leave(State.REMOVED)
            body = {
                "operation": "remove",
                "moved_keys": moved.moved_keys,
                "moved_bytes": moved.moved_bytes,
                "deleted_keys": len(moved.deleted),
                "source_slots_freed": moved.slots_freed,
                "state": device.state.value,
            }
            return Reconfigured({**head, **body}, deleted=tuple(moved.deleted))

    def resize(self, device_path: str, size: int | str, mode: str = "migrate", *, force: bool = False) -> Reconfigured:
        """Gives a device another size. Raises ReconfigureError."""
        if mode not in ("migrate", "evict"):
            raise ReconfigureError("bad_request", f"mode {mode!r} is not one of migrate, evict")
        wanted = parse_size(size)
        with self._one_at_a_time:
            device = self._active(device_path)
            self._check_fits_a_slot(wanted)
            old, moved = device.size, Moved()
            if wanted < old:
                moved = self._shrink(device, wanted, mode, force=force)
            elif wanted > old:
                self._remap(device, wanted)
            body: dict[str, object] = {
                "status": "ok",
                "operation": "resize",
                "device_path": device.path,
                "index": device.index,
                "old_size_bytes": old,
                "new_size_bytes": wanted,
                "moved_keys": moved.moved_keys,
                "deleted_keys": len(moved.deleted),
                "state": device.state.value,
            }
            return Reconfigured(body, deleted=tuple(moved.deleted))

    def _shrink(self, device: Device, size: int, mode: str, *, force: bool) -> Moved:
        slots, before = size // device.slot_bytes, device.slots
        with self._store.lock:
            device.limit_to(slots)
        try:
            moved = self._empty(device, slots, mode, force=force)
            with _telling(moved):
                self._remap(device, size)
        except BaseException:
            with self._store.lock:
                device.limit_to(before)
            raise
        return moved

    def _remap(self, device: Device, size: int) -> None:
        try:
            mapping = device.map(size)
        except (OSError, ValueError) as error:
            raise ReconfigureError("bad_request", "failed to remap DAX device", reason=str(error)) from error
        for number, _ in mapping.headers(device.mapping.slots):
            mapping.clear(number)
        with self._store.lock:
            device.use(mapping, size)

    def _empty(self, device: Device, first: int, mode: str, *, force: bool) -> Moved:
        """Moves or deletes what lies in the device's slots from `first` on, and waits until nobody uses them."""
        moved = Moved()
        places = self._store.places_on(device, first)
        if mode == "migrate":
            self._check_room(len(places))
        for key, place in places:
            if mode == "evict":
                if self._store.drop(key, place):
                    moved.deleted.append(key)
            elif self._move(key, place):
                moved.moved_keys += 1
                moved.moved_bytes += place.header.length
            moved.slots_freed += place.gone
        with _telling(moved):
            self._settle(device, first, force=force)
        return moved

    def _move(self, key: ObjectKey, place: Place) -> bool:
        try:
            return self._store.move(key, place)
        except StorageFull as error:
            raise ReconfigureError("no_room", f"no room to migrate: {error}") from error

    def _check_room(self, wanted: int) -> None:
        with self._store.lock:
            room = sum(len(device.free) for device in self._store.devices if device.state is State.ACTIVE)
        if room < wanted:
            raise ReconfigureError("no_room", f"no room to migrate: {wanted} objects, {room} free slots elsewhere")

    def _settle(self, device: Device, first: int, *, force: bool) -> None:
        def users() -> int:
            return sum(number >= first for number in device.taken)

        deadline = time.monotonic() + self._settle_s
        with self._store.lock:
            while users() and not force:
                left = deadline - time.monotonic()
                if left <= 0 or not self._store.lock.wait(left):
                    break
            if users() and not force:
                raise ReconfigureError(
                    "conflict",
                    f"{device.path}: {device.reading} reads and {device.writing} writes still run after "
                    f"{self._settle_s:g} s",
                    status="blocked",
                    reason="slots are in use",
                    locked_key_count=0,
                    borrowed_slot_count=users(),
                )

    def _open(self, path: str, size: int, index: int) -> Device:
        self._check_fits_a_slot(size)
        if index >= MAX_DEVICES:
            raise ReconfigureError("bad_request", f"{index} devices are known, {MAX_DEVICES} are allowed")
        try:
            return Device(path, size, self._store.slot_bytes, index, sync=self._sync)
        except (OSError, ValueError) as error:
            raise ReconfigureError("bad_request", "failed to map DAX device", reason=str(error)) from error

    def _check_fits_a_slot(self, size: int) -> None:
        if size < self._store.slot_bytes:
            raise ReconfigureError("bad_request", "size_bytes does not fit one slot")

    def _find(self, path: str) -> Device | None:
        if "\0" in path:
            return None
        real = os.path.realpath(path)
        return next((device for device in self._store.devices if os.path.realpath(device.path) == real), None)

    def _active(self, path: str) -> Device:
        device = self._find(path)
        if device is None or device.state not in _IN_USE:
            raise ReconfigureError("not_found", "DAX device not found")
        return device

    def _set_state(self, device: Device, state: State) -> None:
        with self._store.lock:
            device.state = state


@contextmanager
def _telling(moved: Moved) -> Iterator[None]:
    """A refusal that comes too late for some objects says which they were."""
    try:
        yield
    except ReconfigureError as error:
        error.deleted = tuple(moved.deleted)
        raise


def parse_size(size: object) -> int:
    """Bytes of a size as operators write it: a number, or text such as "1.5 GiB". Raises ReconfigureError."""
    refusal = ReconfigureError("bad_request", "size must be a positive integer byte count or a string like '100GiB'")
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise refusal
    result = _size_of_text(size) if isinstance(size, str) else size
    if result is None or not 0 < result <= _MAX_SIZE:
        raise refusal
    return result


def _size_of_text(text: str) -> int | None:
    found = _SIZE.fullmatch(text.strip()) if len(text) <= _MAX_SIZE_CHARACTERS else None
    if found is None:
        return None
    whole, fraction, unit = found.groups(default="")
    return (int(whole + fraction) << 10 * _UNITS.index(unit.lower()[:1].strip("b"))) // int("1" + "0" * len(fraction))


def describe(device: Device) -> dict[str, object]:
    """A device's entry in status answers."""
    gone = device.state in (State.REMOVED, State.CLOSED)
    return {
        "index": device.index,
        "device_id": device.index,
        "device_path": device.path,
        "is_healthy": True,
        "state": device.state.value,
        "closing": device.closing,
        "max_dax_size_bytes": device.size,
        "slot_bytes": device.slot_bytes,
        "max_slots": 0 if gone else device.slots,
        "live_slot_count": device.live,
        "locked_key_count": 0,
        "borrowed_slot_count": len(device.taken) - device.live - device.writing,
        "active_read_count": device.reading,
        "active_write_count": device.writing,
        "supports_restart_recovery": True,
        "inflight_store_tasks": device.writing,
        "inflight_lookup_tasks": 0,
        "inflight_load_tasks": device.reading,
    }
