"""The reference adapter."""

import time

import pytest

from engine.l2.base import StorageFull
from engine.l2.memory_adapter import MemoryAdapter, MemoryConfig
from tests.conformance.l2_conformance import KEY, L2Conformance, Raw, payload, store


class RawMemory:
    def __init__(self, adapter: MemoryAdapter) -> None:
        self._adapter = adapter
        self._keys = {}

    def names(self) -> list[str]:
        self._keys = {str(key): key for key in self._adapter._objects}
        return sorted(self._keys)

    def get(self, name: str) -> bytes:
        return self._adapter._objects[self._keys[name]][0]

    def put(self, name: str, data: bytes) -> None:
        if name in self._keys:
            self._adapter._objects[self._keys[name]] = (data, time.time())


class TestMemory(L2Conformance):
    @pytest.fixture
    def adapter(self) -> MemoryAdapter:
        return MemoryAdapter(MemoryConfig())

    @pytest.fixture
    def raw(self, adapter: MemoryAdapter) -> Raw:
        return RawMemory(adapter)


def test_a_full_store_refuses_and_keeps_what_it_has() -> None:
    adapter = MemoryAdapter(MemoryConfig(max_bytes=10_000))
    store(adapter, KEY, payload(1))

    with pytest.raises(StorageFull):
        store(adapter, KEY._replace(cache_salt=""), payload(2))

    assert adapter.exists(KEY)
