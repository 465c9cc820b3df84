"""Changes of devices at runtime that the configuration does not name: what people are told of them."""

import json
from pathlib import Path

import pytest

from tests.conformance.test_dax_adapter import SLOT, device, opened


def test_what_the_next_start_would_forget_is_told_with_the_change_to_make(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = device(tmp_path / "a", 4), device(tmp_path / "b", 6)
    adapter = opened(a)

    def told(operation: str, **fields: object) -> str:
        caplog.clear()
        adapter.reconfigure(operation, fields)
        return "".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")

    entry = json.dumps({"device_path": str(b), "size": 6 * SLOT})
    assert f"does not name it, write {entry}" in told("add", device_path=str(b), size=6 * SLOT)
    assert f"gives it {4 * SLOT} bytes" in told("resize", device_path=str(a), size=2 * SLOT)
    assert told("resize", device_path=str(a), size=4 * SLOT) == ""
    assert f"{a} was drained" in told("remove", device_path=str(a), mode="drain")
    assert f"{a} was removed" in told("remove", device_path=str(a))
    assert told("add", device_path=str(a), size=4 * SLOT) == ""
    assert told("remove", device_path=str(b)) == ""
    adapter.close()
