"""What moves between L1 and L2: write-back, loading for lookups, and what happens when the storage fails."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import StartError
from engine.l2.base import Buffers
from engine.l2.fault_adapter import FaultAdapter, Faults
from engine.l2.memory_adapter import MemoryAdapter
from engine.l2.tier import Tier
from engine.object_key import ObjectKey
from tests.unit.engine.engine_client import CONFIG, OBJECT_BYTES, REGISTRATION, fill, held, hit, request, started
from tests.waiting import wait_for

MEMORY = {"type": "memory"}
DEADLINE_S = 0.5


def with_l2(*adapters: Mapping[str, Any], **fields: Any) -> EngineConfig:
    return replace(CONFIG, l2_adapter=adapters, l2_lookup_deadline_seconds=DEADLINE_S, **fields)


@contextmanager
def engine_with(*adapters: Mapping[str, Any], **fields: Any) -> Iterator[Engine]:
    with started(with_l2(*adapters, **fields)) as engine:
        engine.register_engine_driven(REGISTRATION)
        yield engine


def written(tier: Tier, number: int) -> None:
    wait_for(lambda: len(tier.catalog) == number, 5, f"{number} objects in {tier.label}")
    wait_for(lambda: not len(tier.calls), 5, "calls to end")


def looked_up(engine: Engine, chunks: int, request_id: str = "reader", *, ws: int = 1) -> int:
    """A lookup and its answer, waited for."""
    engine.lookup(replace(request(chunks, request_id, ws=ws), worker_id=None))
    return answer(engine, request_id)


def answer(engine: Engine, request_id: str = "reader") -> int:
    found: list[int] = []

    def ask() -> bool:
        chunks = engine.take_lookup_result(request_id)
        if chunks is not None:
            found.append(chunks)
        return chunks is not None

    wait_for(ask, DEADLINE_S + 5, "an answer to the lookup")
    return found[0]


def read_back(engine: Engine, chunks: int, request_id: str = "reader") -> list[bytes]:
    prepared = engine.prepare_retrieve(request(chunks, request_id), 1)
    assert prepared.success
    data = [bytes(engine.segment.view(slot.offset, slot.length)) for slot in prepared.slots]
    engine.commit_retrieve(request(chunks, request_id), 1)
    return data


def stored_then_forgotten(engine: Engine, chunks: int, value: int = 9) -> None:
    """Stored, written back everywhere, and gone from L1."""
    assert fill(engine, request(chunks, "writer"), value=value)
    for tier in engine.l2.tiers:
        written(tier, chunks)
    engine.clear(force=True)
    wait_for(lambda: not held(engine), 5, "nothing held")


def memory_of(tier: Tier) -> dict[ObjectKey, tuple[bytes, float]]:
    adapter = tier.adapter
    assert isinstance(adapter, MemoryAdapter)
    return adapter._objects


def faults_of(engine: Engine) -> FaultAdapter:
    adapter = engine.l2.tiers[0].adapter
    assert isinstance(adapter, FaultAdapter)
    return adapter


FAULTY = {"type": "fault", "inner": {"type": "memory"}}


def test_what_was_stored_comes_back_from_l2_after_l1_was_emptied() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 5, value=9)

        assert looked_up(engine, 6) == 5
        assert engine.l1.report()["leases"] == 5
        assert read_back(engine, 5) == [b"\x09" * OBJECT_BYTES] * 5
        assert held(engine) == {}
        assert looked_up(engine, 5, "again") == 5


def test_a_restarted_engine_finds_what_was_written(tmp_path: Path) -> None:
    disk = {"type": "fs", "base_path": str(tmp_path / "kv")}
    with engine_with(disk) as engine:
        assert fill(engine, request(4, "writer"), value=3)
        written(engine.l2.tiers[0], 4)
        used = engine.l2.bytes_by_salt()
    with engine_with(disk) as engine:
        assert looked_up(engine, 4) == 4
        assert read_back(engine, 4) == [b"\x03" * OBJECT_BYTES] * 4
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 5, "the scan")
        assert engine.l2.bytes_by_salt() == used == {"": 4 * (OBJECT_BYTES + 4096)}


def test_a_hole_in_l2_ends_the_prefix_and_what_l1_has_behind_it_does_not_count() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 5)
        keys = engine.sessions.object_keys(request(5), range(5))
        engine.l2.delete_keys(None, [keys[2]])

        assert looked_up(engine, 5) == 2
        assert looked_up(engine, 2, "short") == 2


def test_all_ranks_of_a_chunk_have_to_come() -> None:
    with started(with_l2(MEMORY)) as engine:
        for rank in range(2):
            engine.register_engine_driven(replace(REGISTRATION, instance_id=rank + 1, world_size=2))
            assert fill(engine, request(3, "writer", ws=2, rank=rank), rank + 1)
        written(engine.l2.tiers[0], 6)
        engine.clear(force=True)
        last = engine.sessions.object_keys(request(3, ws=2, rank=1), range(3))[2]
        engine.l2.delete_keys(None, [last])

        assert looked_up(engine, 3, ws=2) == 2


def test_damaged_objects_are_misses_and_are_quarantined() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 4)
        tier = engine.l2.tiers[0]
        key = engine.sessions.object_keys(request(4), range(4))[1]
        data, at = memory_of(tier)[key]
        memory_of(tier)[key] = (data[:-1] + bytes([data[-1] ^ 1]), at)

        assert looked_up(engine, 4) == 1
        wait_for(lambda: not tier.catalog.contains(key), 5, "the damaged object to go")
        assert key not in memory_of(tier)
        assert [entry["deleted"] for entry in tier.describe()["quarantined"]] == [True]  # type: ignore[attr-defined]
        assert 'larder_l2_quarantined_objects_total{adapter_index="0",l2_name="memory"} 1.0' in engine.metrics_text()


def test_objects_of_another_layout_are_misses_until_they_are_stored_anew() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 2, value=1)
        engine.unregister_engine_driven(1)
        engine.register_engine_driven(replace(REGISTRATION, dtype_str="int32"))

        assert looked_up(engine, 2) == 0
        assert fill(engine, request(2, "writer"), value=2)
        stored = engine.l2.tiers[0].counters.write_back["stored"]
        wait_for(lambda: stored._value.get() == 4, 5, "both written anew")
        engine.clear(force=True)
        assert looked_up(engine, 2) == 2
        assert read_back(engine, 2) == [b"\x02" * OBJECT_BYTES] * 2


def test_a_slow_storage_answers_the_lookup_at_its_deadline_and_its_objects_come_later() -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 3)
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=30))

        assert looked_up(engine, 3) == 0
        assert held(engine)["reservations"] == 3
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "the late loads to end")
        assert hit(engine, request(3, "later")) == 3


def test_a_storage_that_fails_opens_its_breaker_and_is_asked_again_by_itself() -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 3)
        tier = engine.l2.tiers[0]
        faults_of(engine).set_faults(Faults(error_rate=1))
        for attempt in range(3):
            assert looked_up(engine, 3, f"failing {attempt}") == 0
        assert tier.breaker.state == "open"
        assert not engine.status()["is_healthy"]
        assert hit(engine, request(3, "at once")) == 0

        faults_of(engine).set_faults(Faults())
        wait_for(lambda: looked_up(engine, 3, "mended") == 3, 10, "the breaker to close")
        assert tier.breaker.state == "closed"
        assert engine.status()["is_healthy"]


@pytest.mark.parametrize("fault", ["short_read_rate", "flipped_bit_rate"])
def test_a_storage_that_garbles_what_is_read_never_gives_wrong_bytes(fault: str) -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 12)
        faults_of(engine).set_faults(Faults(**{fault: 0.5}))

        found = looked_up(engine, 12)

        assert found < 12
        if found:
            assert read_back(engine, found) == [b"\x09" * OBJECT_BYTES] * found


def test_the_next_adapter_has_what_the_first_one_lost() -> None:
    with engine_with(FAULTY, {"type": "memory"}) as engine:
        stored_then_forgotten(engine, 3)
        faults_of(engine).set_faults(Faults(error_rate=1))

        assert looked_up(engine, 3) == 3
        assert read_back(engine, 3) == [b"\x09" * OBJECT_BYTES] * 3


def test_with_skip_l1_an_object_leaves_l1_once_it_is_written_and_held_ones_stay() -> None:
    with engine_with(MEMORY, l2_store_policy="skip_l1") as engine:
        assert fill(engine, request(3))
        wait_for(lambda: engine.l1.report()["total_object_count"] == 0, 5, "L1 to be empty")
        assert looked_up(engine, 3) == 3
        assert read_back(engine, 3) == [b"\x07" * OBJECT_BYTES] * 3


def test_dirty_bytes_are_bounded_and_what_finds_the_queue_full_is_clean() -> None:
    with engine_with(FAULTY, write_back_max_bytes=4 * OBJECT_BYTES, write_back_drain_seconds=0.0) as engine:
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=30))
        assert fill(engine, request(10))
        counters = engine.l2.tiers[0].counters.write_back
        wait_for(lambda: counters["queue_full"]._value.get() == 6, 5, "six objects not queued")

        assert engine.l2.write_back.queues[0].describe()["dirty_bytes"] == 4 * OBJECT_BYTES
        assert held(engine) == {"pins": 4}
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "all written")


def test_a_write_that_fails_is_tried_again_and_then_given_up_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.movement.write_queue.RETRY_PAUSES_S", (0.01, 0.01, 0.01))
    with engine_with(FAULTY) as engine:
        faults_of(engine).set_faults(Faults(full_rate=1))
        assert fill(engine, request(1))
        queue = engine.l2.write_back.queues[0]
        wait_for(lambda: queue.describe()["dead_letters"], 5, "a dead letter")

        (letter,) = queue.describe()["dead_letters"]  # type: ignore[misc]
        assert "no room" in letter["reason"]
        counters = engine.l2.tiers[0].counters.write_back
        assert (counters["retried"]._value.get(), counters["dead"]._value.get()) == (3, 1)
        assert held(engine) == {}


def test_a_stop_writes_what_is_queued(tmp_path: Path) -> None:
    disk = {"type": "fs", "base_path": str(tmp_path / "kv")}
    with engine_with(disk, write_back_max_bytes=CONFIG.l1_size_bytes) as engine:
        for number in range(8):
            assert fill(engine, request(4, f"w{number}", cache_salt=f"salt{number}"))
    with engine_with(disk) as engine:
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 5, "the scan")
        assert len(engine.l2.bytes_by_salt()) == 8
        assert len(engine.l2.tiers[0].catalog) == 32


def test_a_stop_says_what_it_left(caplog: pytest.LogCaptureFixture) -> None:
    with engine_with(FAULTY, write_back_drain_seconds=0.05) as engine:
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=60))
        assert fill(engine, request(5))
        wait_for(lambda: held(engine) == {"pins": 5}, 5, "five dirty objects")
        adapter = faults_of(engine)
        threading.Timer(0.3, adapter.set_faults, [Faults()]).start()
    assert "stopped with 5 objects not written" in caplog.text


def test_a_lookup_that_ends_before_its_answer_leases_nothing() -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 3)
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=30))
        engine.lookup(replace(request(3, "gone"), worker_id=None))
        assert engine.take_lookup_result("gone") is None
        engine.end_session("gone")
        assert engine.take_lookup_result("gone") == 0
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "nothing held")


def test_a_delete_calls_off_a_queued_write() -> None:
    with engine_with(FAULTY) as engine:
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 5, "the scan")
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=30))
        assert fill(engine, request(4))
        wait_for(lambda: held(engine) == {"pins": 4}, 5, "four dirty objects")
        wait_for(lambda: len(engine.l2.tiers[0].calls) == 2, 5, "two writes under way")
        keys = engine.sessions.object_keys(request(4), range(4))
        deleted: list[object] = []
        deleter = threading.Thread(target=lambda: deleted.append(engine.l2.delete_keys(None, keys)))
        deleter.start()
        wait_for(lambda: held(engine) == {"pins": 2}, 5, "the queued writes to be called off")
        faults_of(engine).set_faults(Faults())
        deleter.join(5)
        wait_for(lambda: not held(engine), 5, "nothing dirty")
        assert set(memory_of_inner(engine)) == set(keys[:2])


def memory_of_inner(engine: Engine) -> dict[ObjectKey, tuple[bytes, float]]:
    inner = faults_of(engine).inner
    assert isinstance(inner, MemoryAdapter)
    return inner._objects


class Gate(MemoryAdapter):
    """A storage whose reads wait until they may go on."""

    def __init__(self, inner: MemoryAdapter) -> None:
        super().__init__(inner._config)
        self._objects = inner._objects
        self.reads: list[ObjectKey] = []
        self.open = threading.Event()

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        self.reads.append(key)
        self.open.wait(20)
        return super().read(key, into)


def test_two_lookups_of_one_prefix_load_it_once() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 3)
        tier = engine.l2.tiers[0]
        assert isinstance(tier.adapter, MemoryAdapter)
        gate = tier.adapter = Gate(tier.adapter)
        for reader in ("a", "b"):
            engine.lookup(replace(request(3, reader), worker_id=None))
        wait_for(lambda: len(gate.reads) == 3, 5, "three reads")
        gate.open.set()

        assert [answer(engine, reader) for reader in ("a", "b")] == [3, 3]
        assert len(gate.reads) == 3
        assert engine.l1.report()["leases"] == 6


def test_codecs_make_smaller_objects_that_come_back_as_they_were(tmp_path: Path) -> None:
    packed = {"type": "fs", "base_path": str(tmp_path / "kv"), "serde": {"type": "zstd"}}
    with engine_with(packed) as engine:
        stored_then_forgotten(engine, 3, value=5)
        assert engine.l2.tiers[0].catalog.bytes_used < 3 * (4096 + OBJECT_BYTES // 4)
        assert looked_up(engine, 3) == 3
        assert read_back(engine, 3) == [b"\x05" * OBJECT_BYTES] * 3


def test_builtin_hashing_is_refused_with_l2() -> None:
    with pytest.raises(StartError, match="builtin"):
        Engine(with_l2(MEMORY, hash_algorithm="builtin"))


def test_a_warm_job_loads_what_is_missing_and_counts_every_key() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 6)
        assert looked_up(engine, 2) == 2
        keys = engine.sessions.object_keys(request(6), range(6))
        engine.l2.delete_keys(None, [keys[3]])
        tokens = request(7).tokens

        job = engine.start_warm("model", 1, tokens, "")

        assert job is not None
        assert job.wait(5)
        assert (job.outcome(), job.chunks, job.total_keys) == ("completed", 7, 7)
        assert job.counts()._asdict() == {"found": 3, "resident": 2, "missing": 2, "failed": 0, "over_quota": 0}
        assert engine.l1.report()["total_object_count"] == 5
        assert not engine.l2.warm_jobs


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"type": "tape"}, "unknown type 'tape'"),
        ({"type": "fs", "base_path": "/x", "colour": "red"}, "unknown field 'colour'"),
        ({"type": "fs"}, "base_path is missing"),
        ({"type": "memory", "shared": "yes"}, "shared is 'yes'"),
        ({"type": "memory", "serde": "zstd"}, "serde is an object"),
        ({"type": "memory", "serde": {"type": "rar"}}, "unknown type 'rar'"),
        ({"type": "memory", "eviction": {"eviction_policy": "ARC"}}, "allowed is one of LRU, IsolatedLRU, noop"),
        ({"type": "memory", "eviction": {"eviction_ratio": 0}}, "eviction_ratio is 0"),
        ({"type": "memory", "eviction": {"ratio": 1}}, "unknown field 'ratio'"),
    ],
)
def test_a_wrong_adapter_stops_the_start_and_leaves_nothing_open(adapter: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words), engine_with({"type": "memory"}, adapter):
        pass
