"""What `larder status`, `top` and `describe` say of what operators switched off."""

from typing import Any

from cli.commands.describe import adapter_lines, server_lines
from cli.commands.health import switched_pairs


def test_what_is_switched_off_is_one_line_and_nothing_while_all_is_on() -> None:
    adapter = {"adapter_index": 0, "type_name": "fs", "bypassed": False}
    report = {"frozen": False, "hot_cache": True, "storage_manager": {"l2_adapters": [adapter]}}
    assert switched_pairs(report) == []
    assert switched_pairs({"storage_manager": {}}) == []

    [(name, line)] = switched_pairs(
        {"frozen": True, "hot_cache": False, "storage_manager": {"l2_adapters": [{**adapter, "bypassed": True}]}}
    )

    assert name == "switched"
    for part in ("FROZEN", "hot cache off", "L2 adapter 0-fs bypassed"):
        assert part in str(line)


def test_a_description_says_what_is_switched_off() -> None:
    adapter: dict[str, Any] = {
        "adapter_index": 0,
        "type_name": "fs",
        "type": "FsAdapter",
        "is_healthy": True,
        "bypassed": True,
        "current_size_bytes": 0,
        "stored_object_count": 0,
        "serde": [],
        "eviction_policy": "LRU",
    }
    report: dict[str, Any] = {
        "is_healthy": True,
        "frozen": True,
        "chunk_size": 256,
        "hash_algorithm": "blake3",
        "active_sessions": 0,
        "active_prefetch_jobs": 0,
        "cache_context_meta": {},
        "non_cuda_context_meta": {},
        "storage_manager": {
            "l1_manager": {"total_object_count": 0, "memory_used_bytes": 0, "memory_total_bytes": 1},
            "l1_eviction_controller": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
            "l2_adapters": [adapter],
        },
    }

    [of_server] = [line for line in server_lines("url", "1", report, {}) if "FROZEN" in line]
    assert "L2 adapter 0-fs bypassed" in of_server
    assert any("BYPASSED" in line for line in adapter_lines(adapter, {}))
    in_service = {**adapter, "bypassed": False}
    assert not any("BYPASSED" in line for line in adapter_lines(in_service, {}))
    report.update(frozen=False, storage_manager={**report["storage_manager"], "l2_adapters": [in_service]})
    assert not any("Switched" in line for line in server_lines("url", "1", report, {}))
