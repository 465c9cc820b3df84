"""Devices added, resized and removed over HTTP while the server runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.l2_stack import SLOT, SLOTS, L2Stack, start_l2_stack
from tests.stack import Answer
from tests.waiting import wait_for

OBJECTS = 5
FULL = SLOTS * SLOT


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[L2Stack]:
    with start_l2_stack(tmp_path) as made:
        made.store(OBJECTS, "e2e/dax")
        made.wait_for_objects(OBJECTS, ["dax"])
        wait_for(lambda: devices(made)[0]["live_slot_count"] == OBJECTS, 10, "the objects are shown as the device's")
        yield made


def post(stack: L2Stack, operation: str, device: Path | str, **fields: Any) -> Answer:
    return stack.http("POST", f"/reconfigure/dax/{operation}", {"device_path": str(device), **fields})


def refusal(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]


def devices(stack: L2Stack) -> list[dict[str, Any]]:
    status = stack.http("GET", "/reconfigure/%20DAX%20/status").json()
    return list(status["adapters"][0]["status"]["devices"])


def test_what_can_be_changed_is_shown(stack: L2Stack) -> None:
    assert stack.http("GET", "/reconfigure/backends").json() == {
        "enabled": True,
        "num_backends": 1,
        "backends": ["dax"],
    }
    status = stack.http("GET", "/reconfigure/dax/status").json()
    first, second = status["adapters"]
    assert (status["enabled"], status["backend"], status["num_adapters"]) == (True, "dax", 2)
    assert [(entry["adapter_index"], entry["l2_adapter_index"]) for entry in (first, second)] == [(0, 1), (1, 3)]
    assert first["backend"] == "dax"
    assert first["supported_operations"] == ["status", "add", "remove", "resize"]
    assert first["status"]["hotplug_enabled"] is True
    assert first["status"]["slot_bytes"] == SLOT
    assert first["status"]["total_capacity_bytes"] == FULL
    nope = {"enabled": False, "backend": "fs", "num_adapters": 0, "adapters": []}
    assert stack.http("GET", "/reconfigure/fs/status").json() == nope


def test_devices_come_grow_shrink_and_go(stack: L2Stack) -> None:
    first, second = stack.directory / "dax-a", stack.device("dax-b")

    added = post(stack, "add", second, size=4 * SLOT)
    assert added.status == 200
    body = added.json()
    assert (body["status"], body["operation"], body["adapter_index"]) == ("ok", "add", 0)
    assert body["device"]["device_path"] == str(second)
    assert [device["state"] for device in devices(stack)] == ["active", "active"]
    assert post(stack, "add", second, size=4 * SLOT).status == 200
    assert refusal(post(stack, "add", second, size=SLOT)) == (409, "device_path already active with a different size")

    resized = post(stack, "resize", second, size=f"{FULL // 1024} KiB", adapter_index=0)
    assert resized.status == 200
    assert {"operation": "resize", "adapter_index": 0, "old_size_bytes": 4 * SLOT}.items() <= resized.json().items()
    assert resized.json()["new_size_bytes"] == FULL
    assert post(stack, "resize", second, size=FULL).status == 200

    drained = post(stack, "remove", second, mode="drain")
    assert drained.json() == {
        "status": "ok", "operation": "drain", "adapter_index": 0,
        "device_path": str(second), "index": 1, "state": "draining",
    }  # fmt: skip
    assert post(stack, "add", second, size=FULL).json()["device"]["state"] == "active"

    removed = post(stack, "remove", first)
    assert removed.status == 200
    assert (removed.json()["state"], removed.json()["moved_keys"]) == ("removed", OBJECTS)
    assert removed.json()["adapter_index"] == 0
    assert [device["state"] for device in devices(stack)] == ["removed", "active"]
    assert len(stack.entries("adapter=dax")) == OBJECTS
    report = stack.adapter_status(1)
    assert (report["is_healthy"], report["num_devices"]) == (True, 2)

    evicted = post(stack, "remove", second, mode="evict", force=True)
    assert (evicted.status, evicted.json()["deleted_keys"]) == (200, OBJECTS)
    assert stack.entries("adapter=dax") == []
    report = stack.adapter_status(1)
    assert (report["stored_object_count"], report["current_size_bytes"], report["is_healthy"]) == (0, 0, True)


def test_what_a_device_brings_with_it_is_listed(stack: L2Stack) -> None:
    first, second = stack.directory / "dax-a", stack.device("dax-b")
    before = stack.entries("adapter=dax")
    image = first.read_bytes()
    assert post(stack, "add", second, size=FULL).status == 200
    assert post(stack, "remove", first, mode="evict").json()["deleted_keys"] == OBJECTS
    assert stack.entries("adapter=dax") == []
    first.write_bytes(image)

    assert post(stack, "add", first, size=FULL).status == 200

    assert stack.entries("adapter=dax") == before


def test_refusals(stack: L2Stack) -> None:
    first, small = stack.directory / "dax-a", stack.device("dax-small", slots=1)

    assert refusal(post(stack, "add", small, size=2 * SLOT)) == (400, "failed to map DAX device")
    assert refusal(post(stack, "add", stack.directory / "none", size=SLOT)) == (400, "failed to map DAX device")
    assert refusal(post(stack, "add", small, size=1)) == (400, "size_bytes does not fit one slot")
    assert refusal(post(stack, "add", "", size=SLOT)) == (400, "device_path must be non-empty")
    assert refusal(post(stack, "resize", first, size="1 TiB")) == (400, "failed to remap DAX device")
    for operation, fields in (("resize", {"size": SLOT}), ("remove", {})):
        assert refusal(post(stack, operation, "/dev/none", **fields)) == (404, "DAX device not found")
    status, text = refusal(post(stack, "remove", first))
    assert status == 507
    assert "no room to migrate" in text
    assert refusal(post(stack, "add", small, size=SLOT, adapter_index=1)) == (403, "DAX hotplug is disabled")
    for index in (-1, 2):
        assert refusal(post(stack, "remove", first, adapter_index=index)) == (404, "dax adapter not found")
    assert refusal(stack.http("POST", "/reconfigure/fs/grow", {})) == (404, "fs adapter not found")
    assert post(stack, "remove", first, mode="burn").status == 422
    assert post(stack, "add", small, size=True).status == 422
    assert [device["live_slot_count"] for device in devices(stack)] == [OBJECTS]
    assert len(stack.entries("adapter=dax")) == OBJECTS
