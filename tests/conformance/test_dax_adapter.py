"""Slots on mapped files: the conformance suite, restarts, damage and killed writers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import StartError
from engine.l2.base import StorageFull
from engine.l2.dax.slots import PAGE
from engine.l2.dax_adapter import DaxAdapter, DaxConfig
from engine.l2.record import HEADER_BYTES, Verdict, verify
from engine.l2.registry import open_adapter
from engine.object_key import ObjectKey
from tests.conformance.l2_conformance import FINGERPRINT, KEY, L2Conformance, Raw, load, payload, store

SLOT = 16 * PAGE
WIDE_SLOT = 64 * PAGE


def device(path: Path, slots: int, slot_bytes: int = SLOT) -> Path:
    with open(path, "ab") as file:
        file.truncate(slots * slot_bytes)
    return path


def opened(*paths: Path, slot_bytes: int = SLOT, **fields: bool) -> DaxAdapter:
    devices = [{"device_path": str(path), "size": path.stat().st_size} for path in paths]
    return DaxAdapter(DaxConfig(slot_bytes, devices, hotplug_enabled=True, **fields))


def key(number: int) -> ObjectKey:
    return KEY._replace(chunk_hash=number.to_bytes(32, "big"))


def put(adapter: DaxAdapter, numbers: Iterator[int] | range) -> None:
    for number in numbers:
        store(adapter, key(number), payload(number))


def numbers_in(adapter: DaxAdapter) -> set[int]:
    """The numbers of the keys that are stored, each read and compared."""
    found = {int.from_bytes(stored.key.chunk_hash, "big") for stored in adapter.scan()}
    for number in found:
        assert load(adapter, key(number), 5000)[2] == payload(number)
    adapter.check()
    return found


def device_state(adapter: DaxAdapter, index: int = 0) -> dict:
    return adapter.status()["devices"][index]


class RawSlots:
    """Slots by number, as the file has them; a changed length is told to the adapter too, which keeps it in memory."""

    def __init__(self, adapter: DaxAdapter, path: Path) -> None:
        self._adapter, self._path = adapter, path

    def names(self) -> list[str]:
        data = self._path.read_bytes()
        return [str(at // WIDE_SLOT) for at in range(0, len(data), WIDE_SLOT) if data[at + 8] == 1]

    def _place(self, name: str):
        return next((place for place in self._adapter._store.index.values() if str(place.number) == name), None)

    def get(self, name: str) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(int(name) * WIDE_SLOT + 24)
            length = int.from_bytes(file.read(8), "little")
            file.seek(int(name) * WIDE_SLOT + PAGE)
            return file.read(length)

    def put(self, name: str, data: bytes) -> None:
        number, place = int(name) if name.isdigit() else 40, self._place(name)
        with open(self._path, "r+b") as file:
            file.seek(number * WIDE_SLOT + (PAGE if place else 0))
            file.write(data)
        if place:
            place.header = place.header._replace(length=len(data))


class TestDax(L2Conformance):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return device(tmp_path / "dax0", 64, WIDE_SLOT)

    @pytest.fixture
    def adapter(self, path: Path) -> Iterator[DaxAdapter]:
        adapter = opened(path, slot_bytes=WIDE_SLOT)
        yield adapter
        adapter.check()
        adapter.close()

    @pytest.fixture
    def raw(self, path: Path, adapter: DaxAdapter) -> Raw:
        return RawSlots(adapter, path)


class TestDaxWithSync(TestDax):
    @pytest.fixture
    def adapter(self, path: Path) -> Iterator[DaxAdapter]:
        adapter = opened(path, slot_bytes=WIDE_SLOT, sync=True)
        yield adapter
        adapter.check()
        adapter.close()


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    paths = [device(tmp_path / "a", 8), device(tmp_path / "b", 8)]
    first = opened(*paths)
    put(first, range(12))
    put(first, range(2))
    first.delete(key(5))
    first.close()

    second = opened(*reversed(paths))

    assert numbers_in(second) == set(range(12)) - {5}
    assert [device["live_slot_count"] for device in second.status()["devices"]] != [0, 11]
    second.close()


def test_a_full_adapter_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    adapter = opened(device(tmp_path / "a", 3))
    put(adapter, range(3))

    with pytest.raises(StorageFull, match="no free slot: 3 objects"):
        store(adapter, key(3), payload(3))
    with pytest.raises(StorageFull):
        store(adapter, key(0), payload(9))
    assert numbers_in(adapter) == {0, 1, 2}

    adapter.delete(key(1))
    put(adapter, range(3, 4))
    assert numbers_in(adapter) == {0, 2, 3}
    adapter.close()


def test_an_object_larger_than_a_slot_is_an_error_of_its_own(tmp_path: Path) -> None:
    adapter = opened(device(tmp_path / "a", 3))

    with pytest.raises(OSError, match="do not fit a slot, which has room for 61440") as caught:
        store(adapter, KEY, bytes(SLOT))

    assert not isinstance(caught.value, StorageFull)
    adapter.close()


def test_a_device_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    path = device(tmp_path / "a", 3)
    adapter = opened(path)

    with pytest.raises(OSError, match="used by another process or twice"):
        opened(path)

    adapter.close()
    opened(path).close()


def test_a_file_that_holds_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(b"Dear Sir" * SLOT)

    with pytest.raises(OSError, match="it holds something else"):
        opened(path)

    assert path.read_bytes() == b"Dear Sir" * SLOT


def test_slots_of_another_size_are_not_misread(tmp_path: Path) -> None:
    path = device(tmp_path / "a", 8)
    adapter = opened(path)
    put(adapter, range(2))
    adapter.close()

    with pytest.raises(OSError, match="written with slots of 65536 bytes, not 32768"):
        opened(path, slot_bytes=SLOT // 2)


@pytest.mark.parametrize("place", [0, 9, 10, 12, 17, 24, 33, 42, 50, 58, 64, 90])
def test_a_damaged_slot_header_is_a_free_slot(tmp_path: Path, place: int) -> None:
    path = device(tmp_path / "a", 4)
    adapter = opened(path)
    put(adapter, range(3))
    adapter.close()
    with open(path, "r+b") as file:
        file.seek(SLOT + place)
        byte = file.read(1)
        file.seek(SLOT + place)
        file.write(bytes([byte[0] ^ 1]))

    adapter = opened(path)

    assert numbers_in(adapter) == {0, 2}
    put(adapter, range(3, 5))
    assert numbers_in(adapter) == {0, 2, 3, 4}
    adapter.close()


def test_a_scan_leaves_out_an_object_whose_bytes_changed(tmp_path: Path) -> None:
    path = device(tmp_path / "a", 4)
    adapter = opened(path)
    put(adapter, range(3))
    with open(path, "r+b") as file:
        file.seek(SLOT + PAGE + HEADER_BYTES + 100)
        file.write(b"torn")

    assert numbers_in(adapter) == {0, 2}
    assert adapter.describe()["damaged_objects"] == 1
    adapter.close()


WRITER = """
import os, sys
from pathlib import Path
from tests.conformance import test_dax_adapter as t
adapter = t.opened(Path(sys.argv[1]))
{patch}
turn = 0
while True:
    number = turn % 12
    t.store(adapter, t.key(number), t.payload(turn, 40_000))
    print(number, turn, flush=True)
    turn += 1
"""
#: Where the writer stands when it is killed: anywhere; payload written, no header; header written but for its state.
STOPS = {
    "anywhere": "",
    "before the header": """
from engine.l2.dax.slots import Mapping
publish, calls = Mapping.publish, [0]
def stuck(self, number, header):
    calls[0] += 1
    if calls[0] == 20:
        print("stuck", flush=True)
        sys.stdin.read()
    publish(self, number, header)
Mapping.publish = stuck
""",
    "within the header": """
from engine.l2.dax.slots import Mapping
flush, calls = Mapping._flush, [0]
def stuck(self, number, length):
    calls[0] += length == t.PAGE
    if calls[0] == 20 * 3:
        print("stuck", flush=True)
        sys.stdin.read()
    flush(self, number, length)
Mapping._flush = stuck
""",
    "between the new header and the old": """
from engine.l2.dax.slots import Mapping
clear, calls = Mapping.clear, [0]
def stuck(self, number):
    calls[0] += 1
    if calls[0] == 5:
        print("stuck", flush=True)
        sys.stdin.read()
    clear(self, number)
Mapping.clear = stuck
""",
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_killed_writer_leaves_whole_objects_only(tmp_path: Path, stop: str) -> None:
    path = device(tmp_path / "a", 16)
    for lines in (3, 37, 150) if stop == "anywhere" else (1000,):
        last = _write_and_kill(path, STOPS[stop], lines)

        adapter = opened(path)
        found = {int.from_bytes(stored.key.chunk_hash, "big") for stored in adapter.scan()}
        assert found >= set(last)
        for number in found:
            size, header, data = load(adapter, key(number), 40_000)
            verdict = verify(memoryview(header), memoryview(data), size, key(number), FINGERPRINT)
            assert verdict is Verdict.GOOD
            if number in last:
                assert data in (payload(last[number], 40_000), payload(last[number] + 12, 40_000))
        assert len(found) == device_state(adapter)["live_slot_count"]
        adapter.check()
        adapter.close()


def _write_and_kill(path: Path, patch: str, lines: int) -> dict[int, int]:
    """Runs a writer, kills it after so many objects or when it is stuck; returns what it said to have stored last."""
    program = [sys.executable, "-c", WRITER.format(patch=patch), str(path)]
    last: dict[int, int] = {}
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == "stuck\n":
                break
            number, turn = map(int, line.split())
            last[number] = turn
            lines -= 1
            if not lines:
                break
        os.kill(writer.pid, signal.SIGKILL)
        for line in writer.stdout.read().splitlines():
            if line != "stuck" and len(line.split()) == 2:
                number, turn = map(int, line.split())
                last[number] = turn
    assert last
    return last


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "slot_bytes is missing"),
        ({"slot_bytes": 5000, "devices": []}, "slot_bytes is 5000, allowed is a multiple of 4096"),
        ({"slot_bytes": 8192, "devices": []}, "devices names 0"),
        ({"slot_bytes": 8192, "devices": [{"device_path": "/x"}]}, "either size or max_dax_size_gb"),
        ({"slot_bytes": 8192, "devices": [{"device_path": "/x", "size": "x"}]}, "device /x: size must be"),
        ({"slot_bytes": 8192, "devices": [{"device_path": "/x", "size": 1}]}, "do not fit one slot"),
        ({"slot_bytes": 8192, "devices": [{"device_path": "/x", "size": 8192}] * 2}, "different ones"),
        ({"slot_bytes": 8192, "devices": [{"device_path": "/none/x", "size": 8192}]}, "cannot be opened: device"),
        ({"slot_bytes": 8192, "devices": [{"device_path": "/x", "max_dax_size_gb": -1}]}, "max_dax_size_gb is -1"),
    ],
)
def test_a_wrong_configuration_stops_the_start(fields: dict[str, object], message: str) -> None:
    with pytest.raises(StartError, match=message):
        open_adapter("dax", fields)
