"""What every L2 adapter must do. A new adapter's test class gives `adapter` and `raw`, and inherits the rest.

`raw` reaches the storage past the adapter, so that reading and writing are tested apart.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from engine.l2.base import L2Adapter
from engine.l2.record import HEADER_BYTES, Verdict, make_header, verify
from engine.object_key import ObjectKey

FINGERPRINT = b"layout-of-a-test"
KEY = ObjectKey(bytes.fromhex("00ff" * 16), "org/model-7B", 0x02010201, 0, "alice")
ODD_KEYS = [
    KEY,
    KEY._replace(cache_salt=""),
    KEY._replace(kv_rank=0x01000100),
    KEY._replace(object_group_id=3),
    KEY._replace(chunk_hash=bytes(32)),
    KEY._replace(model_name="/models/../etc/passwd"),
    KEY._replace(model_name=".hidden"),
    KEY._replace(model_name="Größe 模型 %2F~"),
    KEY._replace(model_name="m" * 600),
    KEY._replace(cache_salt="söl t%#?&"),
    KEY._replace(cache_salt="s" * 128, model_name="m" * 200),
]


class Raw(Protocol):
    """The storage itself. `names` are whatever the storage calls its objects."""

    def names(self) -> list[str]: ...
    def get(self, name: str) -> bytes: ...
    def put(self, name: str, data: bytes) -> None: ...


def record(key: ObjectKey, payload: bytes) -> list[memoryview]:
    return [memoryview(make_header(key, FINGERPRINT, memoryview(payload))), memoryview(payload)]


def store(adapter: L2Adapter, key: ObjectKey, payload: bytes) -> None:
    adapter.write(key, record(key, payload))


def load(adapter: L2Adapter, key: ObjectKey, size: int) -> tuple[int | None, bytes, bytes]:
    header, payload = bytearray(HEADER_BYTES), bytearray(size)
    stored = adapter.read(key, [memoryview(header), memoryview(payload)])
    return stored, bytes(header), bytes(payload)


def payload(number: int, size: int = 5000) -> bytes:
    return bytes((number + position * 7) % 251 for position in range(size))


class L2Conformance:
    """Inherit, and define the fixtures `adapter` and `raw`."""

    @pytest.fixture
    def adapter(self) -> Iterator[L2Adapter]:
        pytest.fail("the test class must give an adapter")

    @pytest.fixture
    def raw(self) -> Raw:
        pytest.fail("the test class must give raw access")

    def test_a_missing_object_is_not_an_error(self, adapter: L2Adapter) -> None:
        assert adapter.exists(KEY) is False
        assert load(adapter, KEY, 10)[0] is None
        assert adapter.delete(KEY) is False
        assert list(adapter.scan()) == []

    @pytest.mark.parametrize("size", [1, 4095, 4096, 70_001])
    def test_what_is_written_is_read_back(self, adapter: L2Adapter, size: int) -> None:
        store(adapter, KEY, payload(1, size))

        stored, header, data = load(adapter, KEY, size)

        assert adapter.exists(KEY) is True
        assert stored == HEADER_BYTES + size
        assert data == payload(1, size)
        verdict = verify(memoryview(header), memoryview(data), stored, KEY, FINGERPRINT)
        assert verdict is Verdict.GOOD

    def test_keys_of_any_shape_stay_apart(self, adapter: L2Adapter) -> None:
        for number, key in enumerate(ODD_KEYS):
            store(adapter, key, payload(number))

        for number, key in enumerate(ODD_KEYS):
            assert load(adapter, key, 5000)[2] == payload(number)
        found = {stored.key: stored.size for stored in adapter.scan()}
        assert found == dict.fromkeys(ODD_KEYS, HEADER_BYTES + 5000)

    def test_writing_again_replaces(self, adapter: L2Adapter, raw: Raw) -> None:
        store(adapter, KEY, payload(1, 9000))
        store(adapter, KEY, payload(2, 300))

        assert load(adapter, KEY, 300) == (HEADER_BYTES + 300, bytes(record(KEY, payload(2, 300))[0]), payload(2, 300))
        assert len(raw.names()) == 1

    def test_a_deleted_object_is_gone(self, adapter: L2Adapter, raw: Raw) -> None:
        store(adapter, KEY, payload(1))
        other = KEY._replace(cache_salt="")
        store(adapter, other, payload(2))

        assert adapter.delete(KEY) is True

        assert adapter.exists(KEY) is False
        assert load(adapter, KEY, 5000)[0] is None
        assert [stored.key for stored in adapter.scan()] == [other]
        assert len(raw.names()) == 1

    def test_what_lies_in_the_storage_is_the_record_itself(self, adapter: L2Adapter, raw: Raw) -> None:
        store(adapter, KEY, payload(3))

        (name,) = raw.names()

        assert raw.get(name) == b"".join(record(KEY, payload(3)))

    def test_an_object_of_another_size_tells_its_size(self, adapter: L2Adapter, raw: Raw) -> None:
        store(adapter, KEY, payload(1))
        (name,) = raw.names()
        whole = raw.get(name)

        for changed in (whole[:-1], whole + b"x", whole[:100], b""):
            raw.put(name, changed)
            assert load(adapter, KEY, 5000)[0] == len(changed)

    def test_a_flipped_bit_is_found(self, adapter: L2Adapter, raw: Raw) -> None:
        store(adapter, KEY, payload(1))
        (name,) = raw.names()
        whole = raw.get(name)

        for place in (0, 20, 30, 45, 60, 75, 85, HEADER_BYTES, len(whole) - 1):
            changed = bytearray(whole)
            changed[place] ^= 0x10
            raw.put(name, bytes(changed))
            stored, header, data = load(adapter, KEY, 5000)
            assert stored is not None
            verdict = verify(memoryview(header), memoryview(data), stored, KEY, FINGERPRINT)
            assert verdict is Verdict.CORRUPT, f"byte {place}"

    def test_foreign_things_are_left_out_of_a_scan(self, adapter: L2Adapter, raw: Raw) -> None:
        store(adapter, KEY, payload(1))
        (name,) = raw.names()
        directory = name.rpartition("/")[0]
        for foreign in ("README.txt", "a@b", "model@zz@0@00", "@" + "g" * 64):
            raw.put(f"{directory}/{foreign}" if directory else foreign, b"not ours")

        assert [stored.key for stored in adapter.scan()] == [KEY]

    def test_readers_never_see_a_part_of_a_write(self, adapter: L2Adapter) -> None:
        contents = [payload(number, 200_000) for number in range(4)]
        store(adapter, KEY, contents[0])

        with ThreadPoolExecutor(3) as pool:
            writing = pool.submit(lambda: [store(adapter, KEY, contents[turn % 4]) for turn in range(24)])
            while not writing.done():
                stored, _, data = load(adapter, KEY, 200_000)
                assert stored == HEADER_BYTES + 200_000
                assert data in contents
            writing.result()

    def test_many_threads_may_call_at_once(self, adapter: L2Adapter) -> None:
        keys = [KEY._replace(chunk_hash=bytes([number]) * 32) for number in range(32)]

        def one(number: int) -> bool:
            store(adapter, keys[number], payload(number))
            same = load(adapter, keys[number], 5000)[2] == payload(number)
            return same and (number % 2 == 0 or adapter.delete(keys[number]))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(one, range(32)))
        assert {stored.key for stored in adapter.scan()} == {key for key in keys if key.chunk_hash[0] % 2 == 0}
