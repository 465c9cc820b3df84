"""Changing adapters at runtime: who is found, what is refused first, and what the catalog learns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client import CollectorRegistry

from engine.l1.eviction import LRU
from engine.l2.base import Stored
from engine.l2.catalog import Catalog
from engine.l2.dax_adapter import DaxAdapter, DaxConfig
from engine.l2.memory_adapter import MemoryAdapter, MemoryConfig
from engine.l2.metrics import TierMetrics
from engine.l2.reconfigure import Reconfigured, ReconfigureError
from engine.l2.reconfiguring import reconfigure, statuses
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from engine.object_key import ObjectKey

SLOT = 4 * 4096
KEYS = [ObjectKey(bytes([number]), "m", 1) for number in range(4)]


class Switchable(MemoryAdapter):
    """A backend that anybody could write: it drops a key when told to, and says so."""

    supported_operations: ClassVar[tuple[str, ...]] = ("status", "drop")
    says_only = False

    def status(self) -> dict[str, object]:
        if self.says_only:
            raise OSError("no answer")
        return {"objects": len(list(self.scan()))}

    def reconfigure(self, operation: str, fields: Mapping[str, object]) -> Reconfigured:
        if operation == "promise":
            return Reconfigured({}, found=tuple(Stored(key, 5, 0.0) for key in KEYS))
        if operation != "drop":
            raise ReconfigureError("bad_request", f"what is {operation}?", fields=dict(fields))
        key = KEYS[int(str(fields["number"]))]
        if not self.says_only:
            self.delete(key)
        return Reconfigured({"dropped": 1}, deleted=(key,))


def make_tier(index: int, type_name: str, adapter: MemoryAdapter | DaxAdapter) -> Tier:
    catalog, counters = Catalog(LRU()), TierMetrics(CollectorRegistry()).of(type_name, index)
    tier = Tier(index, read_spec({"type": type_name}), catalog, counters)
    tier.adapter, tier.codec = adapter, None
    tier.take_scan()
    return tier


def put(tier: Tier, *keys: ObjectKey) -> None:
    for key in keys:
        tier.adapter.write(key, [memoryview(b"12345")])
        tier.catalog.add(key, 5)


def agrees(tier: Tier) -> bool:
    return sorted(tier.catalog.keys()) == sorted(stored.key for stored in tier.adapter.scan())


@pytest.fixture
def dax(tmp_path: Path) -> Iterator[Tier]:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(4 * SLOT))
    devices: list[dict[str, object]] = [{"device_path": str(tmp_path / "a"), "size": 4 * SLOT}]
    adapter = DaxAdapter(DaxConfig(SLOT, devices, hotplug_enabled=True))
    adapter._changes._settle_s = 0.05
    yield make_tier(2, "dax", adapter)
    adapter.close()


def refusal(tiers: list[Tier], *arguments: object) -> ReconfigureError:
    with pytest.raises(ReconfigureError) as error:
        reconfigure(tiers, *arguments)  # type: ignore[arg-type]
    return error.value


def test_entries_count_the_adapters_of_each_backend(dax: Tier) -> None:
    others = [make_tier(index, "memory", Switchable(MemoryConfig())) for index in (0, 1)]
    plain = make_tier(3, "memory", MemoryAdapter(MemoryConfig()))
    put(others[1], KEYS[0])

    entries = statuses([*others, dax, plain])

    assert [(entry["backend"], entry["adapter_index"], entry["l2_adapter_index"]) for entry in entries] == [
        ("memory", 0, 0),
        ("memory", 1, 1),
        ("dax", 0, 2),
    ]
    assert entries[1]["status"] == {"objects": 1}
    assert entries[2]["supported_operations"] == ["status", "add", "remove", "resize"]


@pytest.mark.parametrize(
    ("operation", "index", "fields", "code", "message"),
    [
        ("status", 9, {}, "bad_request", "unsupported dax reconfigure operation: status"),
        ("x", 0, {}, "bad_request", "unsupported dax reconfigure operation: x"),
        ("add", 9, {"device_path": "/x", "size": "many"}, "bad_request", "size must be a positive integer byte count"),
        ("add", 9, {"device_path": "/x", "size": 2**64}, "bad_request", "size must be a positive integer byte count"),
        ("add", 0, {"device_path": "/x", "size": 1}, "not_found", "dax adapter not found"),
        ("remove", -1, {"device_path": "/x"}, "not_found", "dax adapter not found"),
    ],
)
def test_what_is_wrong_with_an_operation_comes_before_who_should_do_it(
    operation: str, index: int, fields: dict[str, object], code: str, message: str
) -> None:
    error = refusal([], "dax", operation, index, fields)

    assert error.code == code
    assert message in str(error)


def test_a_backend_that_cannot_be_changed_is_not_found() -> None:
    plain = make_tier(0, "memory", MemoryAdapter(MemoryConfig()))

    assert str(refusal([plain], "memory", "drop", 0, {})) == "memory adapter not found"
    assert str(refusal([plain], "nope", "drop", 0, {})) == "nope adapter not found"


def test_a_generic_backend_gets_the_fields_as_they_are() -> None:
    tiers = [make_tier(index, "memory", Switchable(MemoryConfig())) for index in (0, 1)]
    put(tiers[1], *KEYS)
    told: list[ObjectKey] = []
    tiers[1].on_deleted = lambda tier, key: told.append(key)

    body = reconfigure(tiers, "memory", "drop", 1, {"number": 2, "more": None})

    assert body == {"adapter_index": 1, "dropped": 1}
    assert agrees(tiers[1])
    assert told == [KEYS[2]]
    assert refusal(tiers, "memory", "turn", 0, {"x": [1]}).fields == {"fields": {"x": [1]}}


def test_an_object_that_is_there_again_is_not_forgotten() -> None:
    adapter = Switchable(MemoryConfig())
    adapter.says_only = True
    tier = make_tier(0, "memory", adapter)
    put(tier, *KEYS)

    reconfigure([tier], "memory", "drop", 0, {"number": 0})

    assert tier.catalog.contains(KEYS[0])
    assert statuses([tier])[0]["status"] == {"error": "no answer"}


def test_an_object_that_is_gone_again_is_not_known_and_a_known_one_keeps_its_size() -> None:
    tier = make_tier(0, "memory", Switchable(MemoryConfig()))
    for key in KEYS[:2]:
        tier.adapter.write(key, [memoryview(b"12345")])
    tier.catalog.add(KEYS[0], 7)

    reconfigure([tier], "memory", "promise", 0, {})

    assert agrees(tier)
    assert [tier.catalog.size_of(key) for key in KEYS] == [7, 5, None, None]


def test_the_catalog_learns_what_devices_take_away_and_bring(dax: Tier, tmp_path: Path) -> None:
    put(dax, *KEYS[:2])
    told: list[ObjectKey] = []
    dax.on_deleted = lambda tier, key: told.append(key)
    path = str(tmp_path / "b")

    added = reconfigure([dax], "dax", "add", 0, {"device_path": path, "size": "64KiB"})
    put(dax, *KEYS[2:])
    reconfigure([dax], "dax", "remove", 0, {"device_path": str(tmp_path / "a"), "mode": "migrate"})
    resized = reconfigure([dax], "dax", "resize", 0, {"device_path": path, "size": 2 * SLOT, "mode": "evict"})

    assert list(added)[:3] == ["status", "operation", "adapter_index"]
    assert (added["operation"], added["adapter_index"]) == ("add", 0)
    assert resized["deleted_keys"] == len(told) == 2
    assert agrees(dax)
    assert len(dax.catalog) == 2

    DaxAdapter(DaxConfig(SLOT, [{"device_path": str(tmp_path / "a"), "size": 4 * SLOT}])).close()
    removed = reconfigure([dax], "dax", "remove", 0, {"device_path": path, "mode": "evict"})
    assert removed["deleted_keys"] == 2
    assert len(dax.catalog) == 0


def test_what_an_added_device_still_holds_is_known(dax: Tier, tmp_path: Path) -> None:
    other = DaxAdapter(DaxConfig(SLOT, [{"device_path": str(tmp_path / "b"), "size": 4 * SLOT}]))
    other.write(KEYS[3], [memoryview(b"12345")])
    other.close()

    reconfigure([dax], "dax", "add", 0, {"device_path": str(tmp_path / "b"), "size": 4 * SLOT})

    assert dax.catalog.size_of(KEYS[3]) == 5
    assert agrees(dax)
    assert dax.capacity_bytes == 8 * (SLOT - 4096)


def test_the_catalog_learns_what_was_deleted_before_a_refusal(dax: Tier, tmp_path: Path) -> None:
    put(dax, *KEYS)
    assert isinstance(dax.adapter, DaxAdapter)
    leased = dax.adapter._store.lease(KEYS[0])
    assert leased is not None

    error = refusal([dax], "dax", "remove", 0, {"device_path": str(tmp_path / "a"), "mode": "evict"})

    assert error.code == "conflict"
    assert error.fields["status"] == "blocked"
    assert agrees(dax)
    assert len(dax.catalog) == 0
    dax.adapter._store.give_back(leased[0])


def test_a_refusal_is_logged_with_the_device_and_the_reason(dax: Tier, caplog: pytest.LogCaptureFixture) -> None:
    refusal([dax], "dax", "add", 0, {"device_path": "/nowhere/dax9", "size": 1 << 20})

    line = next(message for message in caplog.messages if "refused" in message)
    assert "add refused: failed to map DAX device" in line
    assert "/nowhere/dax9" in line
    assert "No such file" in line
