"""The reference adapter: objects in a dictionary. Read this to write another; use it in tests."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from engine.l2.base import Buffers, L2Adapter, StorageFull, Stored
from engine.object_key import ObjectKey


@dataclass(frozen=True)
class MemoryConfig:
    """`max_bytes` 0 = as much as there is."""

    max_bytes: int = 0


class MemoryAdapter(L2Adapter):
    """Keeps copies. The lock makes a write and its accounting one step."""

    type_name: ClassVar[str] = "memory"
    is_ours_alone: ClassVar[bool] = True
    config_class = MemoryConfig

    def __init__(self, config: MemoryConfig) -> None:
        self._config = config
        self._objects: dict[ObjectKey, tuple[bytes, float]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def exists(self, key: ObjectKey) -> bool:
        return key in self._objects

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        found = self._objects.get(key)
        if found is None:
            return None
        at, data = 0, memoryview(found[0])
        for buffer in into:
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(buffer)
        return len(data)

    def write(self, key: ObjectKey, data: Buffers) -> None:
        whole = b"".join(data)
        with self._lock:
            before = len(self._objects[key][0]) if key in self._objects else 0
            after = self._bytes - before + len(whole)
            if self._config.max_bytes and after > self._config.max_bytes:
                raise StorageFull(f"{len(whole)} bytes do not fit beside {self._bytes} of {self._config.max_bytes}")
            self._objects[key] = (whole, time.time())
            self._bytes = after

    def delete(self, key: ObjectKey) -> bool:
        with self._lock:
            removed = self._objects.pop(key, None)
            self._bytes -= len(removed[0]) if removed else 0
            return removed is not None

    def scan(self) -> Iterator[Stored]:
        for key, (data, written_at) in list(self._objects.items()):
            yield Stored(key, len(data), written_at)

    def capacity_bytes(self) -> int | None:
        return self._config.max_bytes or None
