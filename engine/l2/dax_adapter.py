"""Objects in fixed slots of memory-mapped devices (DAX) or files, which can be added, removed and resized at runtime.

An object takes one slot, whatever its size; it is written into a free slot beside the old one, so a reader sees all of
it or nothing, and a full adapter cannot even replace. What was stored is found again at start by the slots' headers.
A device belongs to one process at a time. With `sync` every write waits until the device has it; without, what a
power cut may cost is found out by the checksums when an adapter is scanned or an object is read.
"""

import errno
import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from engine.l2.base import Buffers, L2Adapter, Stored, total_bytes
from engine.l2.dax.changes import MAX_DEVICES, Changes, describe, parse_size
from engine.l2.dax.slots import PAGE, key_text
from engine.l2.dax.store import Device, State, Store
from engine.l2.reconfigure import Reconfigured, ReconfigureError
from engine.object_key import ObjectKey

logger = logging.getLogger(__name__)

_GIB = 1 << 30


@dataclass(frozen=True)
class DaxConfig:
    """`devices`: objects with `device_path` and `size` (bytes or text such as "100GiB") or `max_dax_size_gb`.

    `slot_bytes`: one object plus two pages, a multiple of 4096. Raises ValueError.
    """

    slot_bytes: int
    devices: list[dict[str, object]]
    hotplug_enabled: bool = False
    sync: bool = False
    verify_at_scan: bool = True

    def __post_init__(self) -> None:
        if self.slot_bytes < 2 * PAGE or self.slot_bytes % PAGE:
            raise ValueError(f"slot_bytes is {self.slot_bytes}, allowed is a multiple of {PAGE} from {2 * PAGE} on")
        sizes = self.sizes()
        if not 1 <= len(sizes) <= MAX_DEVICES or len(sizes) != len(self.devices):
            raise ValueError(f"devices names {len(self.devices)}, allowed are 1 to {MAX_DEVICES} different ones")
        for path, size in sizes.items():
            if size < self.slot_bytes:
                raise ValueError(f"{path}: {size} bytes do not fit one slot of {self.slot_bytes}")

    def sizes(self) -> dict[str, int]:
        """Device path -> bytes of it to use. Raises ValueError."""
        return dict(_device_size(entry) for entry in self.devices)


class DaxAdapter(L2Adapter):
    """The store has the tables and the lock; the changes keep themselves apart."""

    type_name: ClassVar[str] = "dax"
    is_ours_alone: ClassVar[bool] = True
    config_class = DaxConfig
    #: What `reconfigure` takes, and `status`.
    supported_operations: ClassVar[tuple[str, ...]] = ("status", "add", "remove", "resize")

    def __init__(self, config: DaxConfig) -> None:
        """Raises OSError when a device cannot be opened, mapped, or is in use."""
        self._config = config
        self._store = Store(config.slot_bytes)
        self._changes = Changes(self._store, sync=config.sync)
        self._damaged = 0
        try:
            for path, size in config.sizes().items():
                self._store.admit(_open(path, size, len(self._store.devices), config))
        except OSError:
            self.close()
            raise

    def exists(self, key: ObjectKey) -> bool:
        return key in self._store.index

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        leased = self._store.lease(key)
        if leased is None:
            return None
        place, mapping = leased
        try:
            mapping.copy_out(place.number, place.header.length, into)
            return place.header.length
        finally:
            self._store.give_back(place)

    def write(self, key: ObjectKey, data: Buffers) -> None:
        length, room = total_bytes(data), self._config.slot_bytes - PAGE
        if length > room:
            raise OSError(errno.EFBIG, f"{length} bytes do not fit a slot, which has room for {room}")
        key_text(key)
        self._store.put(key, data, length)

    def delete(self, key: ObjectKey) -> bool:
        return self._store.drop(key)

    def scan(self) -> Iterator[Stored]:
        """Reads every object to compare its checksum; one that differs is deleted, and not told."""
        for key in list(self._store.index):
            leased = self._store.lease(key)
            if leased is None:
                continue
            place, mapping = leased
            header = place.header
            try:
                good = not self._config.verify_at_scan or mapping.digest(place.number, header.length) == header.digest
            finally:
                self._store.give_back(place)
            if good:
                yield Stored(key, header.length, header.written_at)
            elif self._store.drop(key, place):
                self._damaged += 1

    def capacity_bytes(self) -> int | None:
        """Slots in use or free, each as large as the largest object."""
        with self._store.lock:
            return sum(device.slots for device in self._store.devices) * (self._config.slot_bytes - PAGE)

    def describe(self) -> dict[str, object]:
        status = self.status()
        return {**status, "num_devices": len(self._store.devices), "damaged_objects": self._damaged}

    def status(self) -> dict[str, object]:
        """The `status` of this adapter's entry in GET /reconfigure/dax/status."""
        with self._store.lock:
            devices = self._store.devices
            return {
                "hotplug_enabled": self._config.hotplug_enabled,
                "slot_bytes": self._config.slot_bytes,
                "total_capacity_bytes": sum(device.slots for device in devices) * self._config.slot_bytes,
                "total_used_bytes": sum(device.live for device in devices) * self._config.slot_bytes,
                "devices": [describe(device) for device in devices],
            }

    @staticmethod
    def check_operation(operation: str, fields: Mapping[str, object]) -> None:
        """What can be said of an operation without an adapter. Raises ReconfigureError."""
        if operation not in ("add", "remove", "resize"):
            raise ReconfigureError("bad_request", f"unsupported dax reconfigure operation: {operation}")
        if "size" in fields:
            parse_size(fields["size"])

    def reconfigure(self, operation: str, fields: Mapping[str, object]) -> Reconfigured:
        """Changes the devices: `add`, `remove` or `resize` with the fields of its method. Raises ReconfigureError."""
        self.check_operation(operation, fields)
        verb = getattr(self, operation)
        try:
            inspect.signature(verb).bind(**fields)
        except TypeError as error:
            raise ReconfigureError("bad_request", f"dax {operation}: {error}") from error
        return cast(Reconfigured, verb(**fields))

    def add(self, device_path: str, size: int | str) -> Reconfigured:
        """See engine.l2.dax.changes."""
        self._check_hotplug()
        done = self._changes.add(device_path, size)
        self._tell_of_size("added", device_path, parse_size(size))
        return done

    def remove(self, device_path: str, mode: str = "migrate", force: bool = False) -> Reconfigured:
        """See engine.l2.dax.changes."""
        self._check_hotplug()
        done = self._changes.remove(device_path, mode, force=force)
        if self._configured_size(device_path) is not None:
            logger.warning(
                "device %s was %s until the next start alone: take it out of `devices` of the dax adapter in the"
                " configuration (l2_adapter), or it is in use again then, and if it is gone the start fails",
                device_path, "drained" if mode == "drain" else "removed",
            )  # fmt: skip
        return done

    def resize(self, device_path: str, size: int | str, mode: str = "migrate", force: bool = False) -> Reconfigured:
        """See engine.l2.dax.changes."""
        self._check_hotplug()
        done = self._changes.resize(device_path, size, mode, force=force)
        self._tell_of_size("resized", device_path, parse_size(size))
        return done

    def check(self) -> None:
        """Raises AssertionError when the tables disagree."""
        self._store.check()

    def close(self) -> None:
        """Lets go of the devices. What is still being copied ends well; new calls find nothing."""
        with self._store.lock:
            self._store.index.clear()
            for device in self._store.devices:
                if device.state is not State.REMOVED:
                    device.taken.clear()
                    device.live = 0
                    device.leave(State.CLOSED)

    def _configured_size(self, device_path: str) -> int | None:
        return self._config.sizes().get(os.path.realpath(device_path))

    def _tell_of_size(self, done: str, device_path: str, size: int) -> None:
        """Says what the configuration lacks for a device to be the same after the next start."""
        configured = self._configured_size(device_path)
        if configured == size:
            return
        entry = json.dumps({"device_path": device_path, "size": size})
        logger.warning(
            "device %s was %s until the next start alone: `devices` of the dax adapter in the configuration"
            " (l2_adapter) %s, write %s there, or what it stores is not found again",
            device_path, done, "does not name it" if configured is None else f"gives it {configured} bytes", entry,
        )  # fmt: skip

    def _check_hotplug(self) -> None:
        if not self._config.hotplug_enabled:
            raise ReconfigureError("forbidden", "DAX hotplug is disabled")


def _open(path: str, size: int, index: int, config: DaxConfig) -> Device:
    try:
        return Device(path, size, config.slot_bytes, index, sync=config.sync)
    except (OSError, ValueError) as error:
        why = "it is used by another process or twice" if isinstance(error, BlockingIOError) else str(error)
        raise OSError(f"device {path}: {why}") from error


def _device_size(entry: Mapping[str, object]) -> tuple[str, int]:
    path, gigabytes = entry.get("device_path"), entry.get("max_dax_size_gb")
    extra = set(entry) - {"device_path", "size", "max_dax_size_gb"}
    if extra or not isinstance(path, str) or not path or ("size" in entry) == ("max_dax_size_gb" in entry):
        raise ValueError("each of devices has device_path, and either size or max_dax_size_gb")
    if "size" in entry:
        try:
            return os.path.realpath(path), parse_size(entry["size"])
        except ReconfigureError as error:
            raise ValueError(f"device {path}: {error}") from error
    if not isinstance(gigabytes, (int, float)) or isinstance(gigabytes, bool) or not 0 < gigabytes < _GIB:
        raise ValueError(f"device {path}: max_dax_size_gb is {gigabytes!r}, allowed is a number above 0")
    return os.path.realpath(path), int(gigabytes * _GIB)
