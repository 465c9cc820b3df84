"""What operators change while the engine runs: freeze, bypass, hot cache, settings, statistics of chunks."""

from array import array
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from engine.chunk_statistics import ChunkStatistics
from engine.engine import Engine
from engine.errors import BadRequest, NoKVMemory, TooBusy
from tests.unit.engine.engine_client import CHUNK, CONFIG, REGISTRATION, fill, hit, request, started
from tests.waiting import wait_for

WITH_L2 = replace(CONFIG, l2_adapter=({"type": "memory"},))


@pytest.fixture
def engine() -> Iterator[Engine]:
    with started(WITH_L2) as engine:
        engine.register_engine_driven(REGISTRATION)
        yield engine


def stored_in_l2(engine: Engine) -> int:
    return len(engine.l2.tiers[0].catalog)


def queued(engine: Engine) -> float:
    return sum(queue.gauges()["dirty_bytes"] for queue in engine.l2.write_back.queues)


def found(engine: Engine, chunks: int, request_id: str) -> int | None:
    """What a lookup finds in the end."""
    wanted = request(chunks, request_id)
    results = [hit(engine, wanted)]
    wait_for(lambda: results[-1] is not None or results.append(engine.take_lookup_result(request_id)), 10, "an answer")
    engine.free_lookup_locks(replace(wanted, worker_id=None))
    return results[-1]


def test_a_frozen_cache_stores_nothing_and_asks_l1_alone(engine: Engine) -> None:
    fill(engine, request(2))
    wait_for(lambda: stored_in_l2(engine) == 2, 10, "both chunks are in L2")
    engine.clear(force=True)
    fill(engine, request(1, "again"))

    assert engine.steering.set_frozen(True) is False
    assert engine.prepare_store(request(4, "new"), 1).slots == []
    assert engine.commit_store(request(4, "new"), 1, b"not even looked at") is True
    assert found(engine, 4, "frozen") == 1
    with pytest.raises(TooBusy, match="frozen"):
        engine.start_warm("model", 1, array("I", range(1, 2 * CHUNK + 1)), "")

    assert engine.steering.set_frozen(False) is True
    assert found(engine, 4, "thawed") == 2
    assert fill(engine, request(4, "after"))
    assert found(engine, 4, "all") == 4


def test_what_was_prepared_before_the_freeze_is_committed(engine: Engine) -> None:
    prepared = engine.prepare_store(request(1), 1)
    engine.steering.set_frozen(True)

    assert len(prepared.slots) == 1
    assert engine.commit_store(request(1), 1)
    assert found(engine, 1, "r2") == 1


def test_a_bypassed_adapter_is_neither_asked_nor_written(engine: Engine) -> None:
    fill(engine, request(2))
    wait_for(lambda: stored_in_l2(engine) == 2, 10, "both chunks are in L2")
    assert engine.steering.set_bypass("memory", True) == ("0-memory", False)
    assert engine.steering.bypassed() == ["0-memory"]
    engine.clear(force=True)

    assert found(engine, 2, "bypassed") == 0
    fill(engine, request(4, "new"))
    counters = engine.l2.tiers[0].counters.write_back
    wait_for(lambda: counters["bypassed"]._value.get() == 2, 10, "the two new chunks were left out")
    assert stored_in_l2(engine) == 2

    assert engine.steering.set_bypass("0-memory", False) == (engine.l2.tiers[0].label, True)
    engine.clear(force=True)
    assert found(engine, 4, "again") == 2


def test_l1_and_unknown_backends_cannot_be_bypassed(engine: Engine) -> None:
    assert engine.steering.backends() == {"LocalCPUBackend": "L1Cache", "0-memory": "MemoryAdapter"}
    for name, reason in (("LocalCPUBackend", "every object passes"), ("redis", "unknown backend 'redis'")):
        with pytest.raises(BadRequest, match=reason):
            engine.steering.set_bypass(name, True)


def test_without_the_hot_cache_objects_leave_l1_for_l2(engine: Engine) -> None:
    assert engine.steering.set_hot(False) is True
    fill(engine, request(2))
    wait_for(lambda: stored_in_l2(engine) == 2 and not engine.l1.usage()[0], 10, "L1 is empty")
    assert engine.config.l2_store_policy == "skip_l1"

    assert engine.steering.set_hot(True) is False
    fill(engine, request(4, "kept"))
    wait_for(lambda: stored_in_l2(engine) == 4 and not queued(engine), 10, "all are in L2")
    assert engine.l1.usage()[0] > 0


def test_without_an_adapter_the_hot_cache_stays_on() -> None:
    with started(CONFIG) as engine:
        with pytest.raises(BadRequest, match="the only place"):
            engine.steering.set_hot(False)
        with pytest.raises(BadRequest, match="the only place"):
            engine.steering.change({"eviction_ratio": 0.5, "l2_store_policy": "skip_l1"})
        assert engine.config == CONFIG
        assert engine.steering.is_hot


def test_a_lower_watermark_evicts_at_once() -> None:
    with started(replace(CONFIG, eviction_trigger_watermark=1.0)) as engine:
        engine.register_engine_driven(REGISTRATION)
        fill(engine, request(60))
        engine.steering.change({"eviction_trigger_watermark": 0.5, "eviction_ratio": 0.5})

        wait_for(lambda: engine.l1.usage()[0] <= engine.l1.usage()[1] / 4, 10, "a quarter of L1 is in use")
        shown = engine.configuration()["storage_manager"]
        assert shown["eviction_config"] == {"eviction_policy": "LRU", "trigger_watermark": 0.5, "eviction_ratio": 0.5}


def test_leases_handed_out_from_now_on_last_as_long_as_was_set() -> None:
    with started(CONFIG) as engine:
        engine.register_engine_driven(REGISTRATION)
        fill(engine, request(1))
        engine.steering.change({"l1_read_ttl_seconds": 0.001})
        assert hit(engine, request(1, "reader")) == 1

        wait_for(lambda: engine.l1.report()["leases"] == 0, 10, "the lease ran out")


def test_what_parts_have_made_their_own_cannot_be_changed(engine: Engine) -> None:
    with pytest.raises(BadRequest, match="chunk_size, host cannot be changed"):
        engine.steering.change({"host": "x", "chunk_size": 1})


def test_block_ids_are_logged_while_that_is_on(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    switches = engine.steering.switches
    with caplog.at_level("INFO", "engine.switches"):
        switches.note_blocks("store", request(1, "quiet"), 7, [[1, 2]])
        assert engine.steering.set_log_blocks(True) is False
        switches.note_blocks("store", request(1, "told"), 7, [[3, 4]])

    lines = [record.message for record in caplog.records]
    assert lines == ["store 'told' tokens [0, 16), worker 7, blocks [[3, 4]]"]


def test_without_server_driven_workers_there_is_no_memory_to_look_at(engine: Engine) -> None:
    with pytest.raises(NoKVMemory, match="no KV caches"):
        engine.kv_layers(None)
    with pytest.raises(NoKVMemory, match="worker 1 has none"):
        engine.checksum_slots(1, [0], 1, False)


def test_chunks_are_counted_once_each_while_that_is_on(engine: Engine) -> None:
    statistics = engine.prefixes.chunk_statistics
    found(engine, 3, "before")
    assert statistics.describe()["total_requests"] == 0
    statistics.start()
    found(engine, 3, "a")
    found(engine, 5, "b")
    statistics.stop()
    found(engine, 5, "after")

    shown = statistics.describe()
    assert shown.pop("since") > 0  # type: ignore[operator]
    assert shown == {
        "enabled": False, "total_requests": 2, "total_chunks": 8, "unique_chunks": 5, "duplicate_chunks": 3,
        "reuse_rate": 3 / 8,
    }  # fmt: skip
    statistics.reset()
    assert statistics.describe()["total_chunks"] == 0


def test_the_number_of_different_chunks_is_estimated_well() -> None:
    statistics = ChunkStatistics()
    statistics.start()
    digests = [row.tobytes() for row in np.random.default_rng(1).integers(0, 256, (200_000, 8), dtype=np.uint8)]
    for first in range(0, len(digests), 4000):
        statistics.note(digests[first : first + 4000])
        statistics.note(digests[first : first + 4000])

    assert statistics.describe()["total_chunks"] == 400_000
    assert abs(int(str(statistics.describe()["unique_chunks"])) - 200_000) < 1000


def test_what_is_switched_off_shows_in_the_status_and_in_the_metrics(engine: Engine) -> None:
    def shown() -> tuple[object, object, list[str]]:
        names = ("larder_frozen", "larder_hot_cache", "larder_l2_bypassed")
        lines = sorted(line for line in engine.metrics_text().splitlines() if line.startswith(names))
        return engine.status()["frozen"], engine.status()["hot_cache"], [line.rpartition(" ")[2] for line in lines]

    assert shown() == (False, True, ["0.0", "1.0", "0.0"])
    engine.steering.set_frozen(True)
    engine.steering.set_hot(False)
    assert shown() == (True, False, ["1.0", "0.0", "0.0"])
    engine.steering.set_frozen(False)
    engine.steering.set_bypass(engine.l2.tiers[0].label, True)
    assert shown() == (False, False, ["0.0", "0.0", "1.0"])
