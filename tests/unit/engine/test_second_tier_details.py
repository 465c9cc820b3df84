"""What goes to L2 beside the bytes, who is told of deletes, and the series that people watch."""

import pytest

from engine.kv_layout import KVGroup
from engine.l2.fault_adapter import Faults
from engine.l2.metrics import GAUGES
from engine.l2.tier import Tier
from engine.object_key import ObjectKey
from tests.unit.device.test_block_copies import opened
from tests.unit.engine.engine_client import CHUNK, OBJECT_BYTES, fill, request, started
from tests.unit.engine.test_second_tier import (
    FAULTY,
    MEMORY,
    engine_with,
    faults_of,
    looked_up,
    stored_then_forgotten,
    with_l2,
    written,
)
from tests.unit.engine.test_server_driven import memory
from tests.waiting import wait_for


def test_what_a_hybrid_models_objects_lack_is_still_known_when_they_come_back() -> None:
    groups = [KVGroup(0, (0,), 4), KVGroup(1, (1,), 4, sw_size_tokens=CHUNK)]
    ids = [list(range(1, 13)), [0] * 8 + [1, 2, 3, 4]]
    with started(with_l2(MEMORY)) as engine, opened(memory(groups)) as tensors:
        engine.register_kv_cache(1, tensors, "model", 1)
        assert engine.store(request(3), 1, ids)
        written(engine.l2.tiers[0], 3)
        engine.clear(force=True)

        assert looked_up(engine, 2, "short") == 0
        assert looked_up(engine, 3, "long") == 3
        assert engine.retrieve(request(3, "long"), 1, ids, 0)


def test_a_listener_hears_of_each_object_that_is_deleted_and_of_no_other() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 4)
        tier = engine.l2.tiers[0]
        heard: list[ObjectKey] = []
        tier.on_deleted = lambda _, key: heard.append(key)
        keys = engine.sessions.object_keys(request(6), range(6))

        engine.l2.delete_keys(None, [keys[0], keys[0], keys[5]])
        tier.delete(keys[1], evicted=True)
        tier.quarantine(keys[2], "a test")

        assert heard == keys[:3]
        assert len(tier.catalog) == 1


def test_a_breaker_closes_without_traffic_and_a_probe_that_fails_keeps_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.movement.care.INTERVAL_S", 0.05)
    monkeypatch.setattr("engine.l2.breaker.FIRST_PAUSE_S", 0.1)
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 3)
        tier = engine.l2.tiers[0]
        faults_of(engine).set_faults(Faults(error_rate=1))
        for attempt in range(3):
            assert looked_up(engine, 3, f"failing {attempt}") == 0
        failed_probes = tier.counters.calls["exists", "fault"]
        wait_for(lambda: failed_probes._value.get() >= 2, 5, "probes that fail")
        assert not engine.status()["is_healthy"]

        faults_of(engine).set_faults(Faults())

        wait_for(lambda: engine.status()["is_healthy"], 5, "health without traffic")
        assert tier.breaker.state == "closed"


def test_every_series_of_an_adapter_is_there_from_the_start_and_tells_what_happened() -> None:
    with engine_with(MEMORY, {"type": "memory", "serde": [{"type": "zstd"}]}) as engine:
        before = engine.metrics_text()
        labels = 'adapter_index="0",l2_name="memory"'
        for name, _ in GAUGES.values():
            assert f"{name}{{{labels}}}" in before
        for line in (
            f'larder_l2_calls_total{{{labels},operation="read",outcome="corrupt"}} 0.0',
            f'larder_l2_write_back_objects_total{{{labels},outcome="dead"}} 0.0',
            f"lmcache_mp_l2_evicted_objects_total{{{labels}}} 0.0",
            "lmcache_mp_lookup_hit_l2_total 0.0",
            "larder_l2_lookup_wait_seconds_count 0.0",
        ):
            assert line in before

        stored_then_forgotten(engine, 3)
        assert looked_up(engine, 3) == 3

        after = engine.metrics_text()
        for line in (
            f'larder_l2_calls_total{{{labels},operation="write",outcome="ok"}} 3.0',
            f'larder_l2_calls_total{{{labels},operation="read",outcome="ok"}} 3.0',
            f'larder_l2_write_back_objects_total{{{labels},outcome="stored"}} 3.0',
            f"larder_l2_objects{{{labels}}} 3.0",
            f"lmcache_mp_l2_usage_bytes{{{labels}}} {float(3 * (OBJECT_BYTES + 4096))}",
            f"lmcache_mp_lookup_hit_l2_total {float(3 * CHUNK)}",
            "larder_l2_lookup_wait_seconds_count 1.0",
        ):
            assert line in after


@pytest.mark.parametrize("number", [1, 3])
def test_an_object_that_is_in_l2_already_is_not_written_again(number: int) -> None:
    with engine_with(*[MEMORY] * number) as engine:
        stored_then_forgotten(engine, 2)
        assert fill(engine, request(2, "again"))

        def present(tier: Tier) -> float:
            return float(tier.counters.write_back["present"]._value.get())

        wait_for(lambda: [present(tier) for tier in engine.l2.tiers] == [2.0] * number, 5, "both seen to be there")
        assert all(tier.counters.write_back["stored"]._value.get() == 2 for tier in engine.l2.tiers)
