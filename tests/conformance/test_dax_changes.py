"""Devices that are added, removed and resized at runtime: results, refusals, races, and any order of operations."""

import random
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.l2.base import StorageFull
from engine.l2.dax.changes import Changes, parse_size
from engine.l2.dax.slots import Mapping
from engine.l2.dax_adapter import DaxAdapter, DaxConfig
from engine.l2.reconfigure import Reconfigured, ReconfigureError
from engine.l2.record import HEADER_BYTES
from tests.conformance.l2_conformance import load, payload, store
from tests.conformance.test_dax_adapter import SLOT, device, device_state, key, numbers_in, opened, put
from tests.waiting import wait_for


def test_add_brings_room_and_what_the_device_still_holds(tmp_path: Path) -> None:
    a, b = device(tmp_path / "a", 3), device(tmp_path / "b", 4)
    adapter = opened(b)
    put(adapter, range(2, 5))
    adapter.close()
    adapter = opened(a)
    put(adapter, range(3))

    added = adapter.reconfigure("add", {"device_path": str(b), "size": f"{4 * SLOT // 1024}KiB"})

    assert added.body["device"]["state"] == "active"
    assert added.body["device"]["index"] == 1
    assert {stored.key for stored in added.found} == {key(3), key(4)}
    assert numbers_in(adapter) == set(range(5))
    put(adapter, range(5, 7))
    assert adapter.status()["total_capacity_bytes"] == 7 * SLOT
    again = adapter.add(str(b), 4 * SLOT)
    assert again.found == ()
    with pytest.raises(ReconfigureError, match="already active with a different size"):
        adapter.add(str(b), 3 * SLOT)
    adapter.close()


def test_remove_migrates_and_the_removed_device_stays_listed(tmp_path: Path) -> None:
    a, b = device(tmp_path / "a", 4), device(tmp_path / "b", 6)
    adapter = opened(a, b)
    put(adapter, range(6))
    on_a = device_state(adapter)["live_slot_count"]

    done = adapter.remove(str(a))

    assert done.body == {
        "status": "ok",
        "operation": "remove",
        "device_path": str(a),
        "index": 0,
        "moved_keys": on_a,
        "moved_bytes": on_a * (HEADER_BYTES + 5000),
        "deleted_keys": 0,
        "source_slots_freed": on_a,
        "state": "removed",
    }
    assert numbers_in(adapter) == set(range(6))
    assert device_state(adapter)["state"] == "removed"
    assert device_state(adapter)["is_healthy"] is True
    back = adapter.add(str(a), 4 * SLOT)
    assert back.found == ()
    assert back.body["device"]["index"] == 0
    adapter.close()


def test_a_migration_without_room_changes_nothing(tmp_path: Path) -> None:
    a, b = device(tmp_path / "a", 4), device(tmp_path / "b", 3)
    adapter = opened(a, b)
    put(adapter, range(7))

    with pytest.raises(ReconfigureError, match="no room to migrate: 4 objects, 0 free") as caught:
        adapter.remove(str(a))

    assert caught.value.code == "no_room"
    assert device_state(adapter)["state"] == "active"
    assert numbers_in(adapter) == set(range(7))
    adapter.close()


def test_remove_evicts_and_says_whom(tmp_path: Path) -> None:
    a, b = device(tmp_path / "a", 4), device(tmp_path / "b", 3)
    adapter = opened(a, b)
    put(adapter, range(7))

    done = adapter.remove(str(a), "evict")

    assert done.body["deleted_keys"] == 4
    assert numbers_in(adapter) == set(range(7)) - {int.from_bytes(key.chunk_hash, "big") for key in done.deleted}
    adapter.close()


def test_a_draining_device_is_read_but_not_written(tmp_path: Path) -> None:
    a = device(tmp_path / "a", 4)
    adapter = opened(a)
    put(adapter, range(2))

    assert adapter.remove(str(a), "drain").body["state"] == "draining"

    with pytest.raises(StorageFull):
        store(adapter, key(3), payload(3))
    assert numbers_in(adapter) == {0, 1}
    adapter.add(str(a), 4 * SLOT)
    put(adapter, range(2, 4))
    assert numbers_in(adapter) == {0, 1, 2, 3}
    adapter.close()


def test_a_device_grows_and_shrinks(tmp_path: Path) -> None:
    a = device(tmp_path / "a", 8)
    adapter = DaxAdapter(DaxConfig(SLOT, [{"device_path": str(a), "size": 3 * SLOT}], hotplug_enabled=True))
    put(adapter, range(3))

    grown = adapter.resize(str(a), 8 * SLOT)
    assert (grown.body["old_size_bytes"], grown.body["new_size_bytes"]) == (3 * SLOT, 8 * SLOT)
    put(adapter, range(3, 8))
    for number in range(6):
        adapter.delete(key(number))

    shrunk = adapter.resize(str(a), 4 * SLOT)
    assert shrunk.body["moved_keys"] == 2
    assert numbers_in(adapter) == {6, 7}
    with pytest.raises(ReconfigureError, match="no room") as caught:
        adapter.resize(str(a), SLOT)
    assert caught.value.code == "no_room"
    evicted = adapter.resize(str(a), SLOT, "evict")
    assert len(evicted.deleted) == 1
    assert len(numbers_in(adapter)) == 1
    adapter.resize(str(a), 8 * SLOT)
    assert len(numbers_in(adapter)) == 1
    assert device_state(adapter)["max_slots"] == 8
    adapter.close()


@pytest.mark.parametrize(
    ("operation", "fields", "code", "message"),
    [
        ("add", {"device_path": "", "size": SLOT}, "bad_request", "device_path must be non-empty"),
        ("add", {"device_path": "{tmp}/none", "size": SLOT}, "bad_request", "failed to map DAX device"),
        ("add", {"device_path": "{tmp}", "size": SLOT}, "bad_request", "failed to map DAX device"),
        ("add", {"device_path": "{tmp}/b\0", "size": SLOT}, "bad_request", "failed to map DAX device"),
        ("add", {"device_path": "{tmp}/b", "size": 99 * SLOT}, "bad_request", "failed to map DAX device"),
        ("add", {"device_path": "{tmp}/b", "size": SLOT - 1}, "bad_request", "size_bytes does not fit one slot"),
        ("add", {"device_path": "{tmp}/b", "size": "much"}, "bad_request", "size must be a positive integer"),
        ("add", {"device_path": "{tmp}/b"}, "bad_request", "missing a required argument: 'size'"),
        ("add", {"device_path": "{tmp}/b", "size": SLOT, "x": 1}, "bad_request", "unexpected keyword argument 'x'"),
        ("remove", {"device_path": "{tmp}/b"}, "not_found", "DAX device not found"),
        ("remove", {"device_path": "{tmp}/a", "mode": "burn"}, "bad_request", "mode 'burn' is not one of"),
        ("resize", {"device_path": "{tmp}/b", "size": SLOT}, "not_found", "DAX device not found"),
        ("resize", {"device_path": "{tmp}/a", "size": 99 * SLOT}, "bad_request", "failed to remap DAX device"),
        ("resize", {"device_path": "{tmp}/a", "size": 1}, "bad_request", "size_bytes does not fit one slot"),
        ("status", {}, "bad_request", "unsupported dax reconfigure operation: status"),
        ("format", {}, "bad_request", "unsupported dax reconfigure operation: format"),
    ],
)
def test_a_refused_change_says_why_and_changes_nothing(
    tmp_path: Path, operation: str, fields: dict[str, object], code: str, message: str
) -> None:
    adapter = opened(device(tmp_path / "a", 3))
    device(tmp_path / "b", 3)
    put(adapter, range(3))
    before = adapter.status()
    filled = {name: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for name, v in fields.items()}

    with pytest.raises(ReconfigureError, match=message) as caught:
        adapter.reconfigure(operation, filled)

    assert caught.value.code == code
    assert adapter.status() == before
    assert numbers_in(adapter) == {0, 1, 2}
    adapter.close()


def test_without_hotplug_nothing_changes(tmp_path: Path) -> None:
    path = device(tmp_path / "a", 3)
    adapter = DaxAdapter(DaxConfig(SLOT, [{"device_path": str(path), "size": "128kib"}]))

    with pytest.raises(ReconfigureError, match="DAX hotplug is disabled") as caught:
        adapter.remove(str(path))

    assert caught.value.code == "forbidden"
    adapter.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("1", 1), ("10b", 10), ("1k", 1024), ("1.5 KiB", 1536), ("2MB", 2 << 20), ("1 g", 1 << 30),
     ("0.25TiB", 1 << 38), ("1.9999", 1)],
)  # fmt: skip
def test_sizes_are_read_as_operators_write_them(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", [0, -1, True, "", "0", "0.0001", ".5", "1.", "-1", "1e3", "1x", "1kk", "9" * 65, "1\n2"]
)
def test_other_sizes_are_refused(text: int | str) -> None:
    with pytest.raises(ReconfigureError):
        parse_size(text)


@pytest.mark.parametrize("force", [False, True])
def test_a_device_that_is_being_read_is_given_up_by_force_only(tmp_path: Path, force: bool) -> None:
    a, b = device(tmp_path / "a", 2), device(tmp_path / "b", 4)
    adapter = opened(a)
    put(adapter, range(2))
    adapter.add(str(b), 4 * SLOT)
    changes = Changes(adapter._store, sync=False, settle_s=0.05)
    place, mapping = adapter._store.lease(key(0))

    if force:
        assert changes.remove(str(a), force=True).body["state"] == "removed"
        assert device_state(adapter)["closing"] is True
        with pytest.raises(ReconfigureError, match="still being read"):
            changes.add(str(a), 2 * SLOT)
    else:
        with pytest.raises(ReconfigureError, match="1 reads and 0 writes still run") as caught:
            changes.remove(str(a))
        assert caught.value.code == "conflict"
        assert caught.value.fields["status"] == "blocked"
        assert caught.value.fields["borrowed_slot_count"] == 1

    into = bytearray(HEADER_BYTES + 5000)
    mapping.copy_out(place.number, len(into), [memoryview(into)])
    assert into[HEADER_BYTES:] == payload(0)
    adapter._store.give_back(place)
    if not force:
        assert changes.remove(str(a)).body["state"] == "removed"
    assert device_state(adapter)["closing"] is False
    assert numbers_in(adapter) == {0, 1}
    adapter.close()


def test_a_write_whose_device_is_removed_meanwhile_lands_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = device(tmp_path / "a", 8), device(tmp_path / "b", 4)
    adapter = opened(a, b)
    filling, go_on, fill = threading.Event(), threading.Event(), Mapping.fill

    def slow_fill(self: Mapping, number: int, data: list[memoryview]) -> int:
        filling.set()
        assert go_on.wait(30)
        return fill(self, number, data)

    monkeypatch.setattr(Mapping, "fill", slow_fill)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(put, adapter, range(1))
        assert filling.wait(30)
        removing = pool.submit(adapter.remove, str(a))
        wait_for(lambda: device_state(adapter)["state"] == "removing", 10, "the removal to begin")
        go_on.set()
        writing.result(30)
        assert removing.result(30).body["state"] == "removed"

    assert numbers_in(adapter) == {0}
    assert device_state(adapter, 1)["live_slot_count"] == 1
    adapter.close()


def test_devices_change_under_load_and_no_byte_is_wrong(tmp_path: Path) -> None:
    a, b, c = (device(tmp_path / name, 24) for name in "abc")
    adapter = opened(a, b)
    stop = threading.Event()

    def work(worker: int) -> int:
        dice, turns = random.Random(worker), 0
        while not stop.is_set():
            number = dice.randrange(16)
            if dice.random() < 0.4:
                store(adapter, key(number), payload(number))
            elif dice.random() < 0.1:
                adapter.delete(key(number))
            else:
                size, _, data = load(adapter, key(number), 5000)
                assert size is None or data == payload(number)
            turns += 1
        return turns

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(work, worker) for worker in range(3)]
        try:
            for turn in range(40):
                adapter.add(str(c), 24 * SLOT)
                adapter.resize(str(b), (20 + turn % 2) * SLOT)
                adapter.remove(str(a), "migrate" if turn % 2 else "evict")
                adapter.add(str(a), 24 * SLOT)
                adapter.remove(str(c), force=True)
                wait_for(lambda: not device_state(adapter, 2)["closing"], 10, "the last copies to end")
        finally:
            stop.set()
        assert all(future.result(30) for future in working)
    assert numbers_in(adapter) <= set(range(16))
    adapter.close()


class Devices(RuleBasedStateMachine):
    """put, get, delete, add, remove, resize and restart against a plain dictionary of payload numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._paths = [device(Path(self._folder.name) / name, 6) for name in "abc"]
        self._adapter = opened(self._paths[0])
        self._model: dict[int, int] = {}

    def teardown(self) -> None:
        self._adapter.close()
        self._folder.cleanup()

    def _free(self) -> int:
        devices = self._adapter.status()["devices"]
        return sum(one["max_slots"] - one["live_slot_count"] for one in devices if one["state"] == "active")

    def _change(self, allowed: set[str], change: Callable[[], Reconfigured]) -> None:
        try:
            done = change()
        except ReconfigureError as refusal:
            code = refusal.code
        else:
            code = None
            assert done.found == ()
            for gone in done.deleted:
                del self._model[int.from_bytes(gone.chunk_hash, "big")]
        assert code is None or code in allowed

    @rule(number=st.integers(0, 15), content=st.integers(0, 250))
    def put(self, number: int, content: int) -> None:
        free = self._free()
        try:
            store(self._adapter, key(number), payload(content))
        except StorageFull:
            assert free == 0
        else:
            assert free > 0
            self._model[number] = content

    @rule(number=st.integers(0, 15))
    def get(self, number: int) -> None:
        size, _, data = load(self._adapter, key(number), 5000)
        assert (size is not None) is (number in self._model) is self._adapter.exists(key(number))
        assert size is None or data == payload(self._model[number])

    @rule(number=st.integers(0, 15))
    def delete(self, number: int) -> None:
        assert self._adapter.delete(key(number)) is (self._model.pop(number, None) is not None)

    @rule(which=st.integers(0, 2), slots=st.integers(1, 6))
    def add(self, which: int, slots: int) -> None:
        self._change({"conflict"}, lambda: self._adapter.add(str(self._paths[which]), slots * SLOT))

    @rule(which=st.integers(0, 2), mode=st.sampled_from(["migrate", "evict", "drain"]), force=st.booleans())
    def remove(self, which: int, mode: str, force: bool) -> None:
        allowed = {"not_found", "no_room"} if mode == "migrate" else {"not_found"}
        self._change(allowed, lambda: self._adapter.remove(str(self._paths[which]), mode, force))

    @rule(which=st.integers(0, 2), slots=st.integers(1, 7), mode=st.sampled_from(["migrate", "evict"]))
    def resize(self, which: int, slots: int, mode: str) -> None:
        refusal = "bad_request" if slots > 6 else "no_room" if mode == "migrate" else "not_found"
        self._change({"not_found", refusal}, lambda: self._adapter.resize(str(self._paths[which]), slots * SLOT, mode))

    @rule()
    def restart(self) -> None:
        in_use = [one for one in self._adapter.status()["devices"] if one["state"] != "removed"]
        if not in_use:
            return
        devices = [{"device_path": one["device_path"], "size": one["max_dax_size_bytes"]} for one in in_use]
        self._adapter.close()
        self._adapter = DaxAdapter(DaxConfig(SLOT, devices, hotplug_enabled=True))

    @invariant()
    def agrees_with_the_dictionary(self) -> None:
        self._adapter.check()
        found = {int.from_bytes(stored.key.chunk_hash, "big") for stored in self._adapter.scan()}
        assert found == set(self._model)
        for number in found:
            assert load(self._adapter, key(number), 5000)[2] == payload(self._model[number])


TestDevices = Devices.TestCase
TestDevices.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
