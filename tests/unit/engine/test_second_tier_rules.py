"""Rules that only show when things cross: changed objects, hanging storages, lost answers, other builds."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.l1.holds import ENGINE
from engine.l2.base import Buffers, ConnectionFault
from engine.l2.catalog import Form
from engine.l2.fault_adapter import Faults
from engine.l2.memory_adapter import MemoryAdapter
from engine.l2.tier import Outcome
from engine.movement.loads import THREADS
from engine.movement.lookups import Wanted
from engine.object_key import ObjectKey
from tests.unit.engine.engine_client import OBJECT_BYTES, REGISTRATION, fill, held, request, started
from tests.unit.engine.test_second_tier import (
    FAULTY,
    MEMORY,
    engine_with,
    faults_of,
    looked_up,
    memory_of,
    read_back,
    stored_then_forgotten,
    with_l2,
    written,
)
from tests.waiting import wait_for

SLOW = Faults(latency_rate=1, latency_s=60)


def keys_of(engine: Engine, chunks: int) -> list[ObjectKey]:
    return engine.sessions.object_keys(request(chunks), range(chunks))


def layout_of(engine: Engine) -> bytes:
    return engine.registrations.object_layouts(("model", 1))[0].fingerprint


def test_what_is_written_back_is_told_as_it_is_when_it_is_pinned() -> None:
    """Committed complete, gone, and stored again with a KV group missing before the dispatcher came to it."""
    with engine_with(MEMORY) as engine:
        write_back = engine.l2.write_back
        write_back._stopping = True
        write_back._wake.set()
        wait_for(lambda: not write_back._thread.is_alive(), 5, "the dispatcher to stand still")
        assert fill(engine, request(1))
        (key,), layout = keys_of(engine, 1), layout_of(engine)
        committed = engine.l1.hold([key], (layout,))[0]
        assert committed is not None
        engine.l1.unpin(committed)
        engine.clear(force=True)
        again = engine.l1.reserve([key], OBJECT_BYTES, layout, ENGINE, [1])
        assert engine.l1.commit(again)

        write_back._deal_out()
        tier = engine.l2.tiers[0]
        wait_for(lambda: tier.catalog.form_of(key) == Form(layout, 1), 5, "what lies there now, and as it is")


def test_a_poorer_object_does_not_replace_a_fuller_one() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 1)
        (key,), layout, tier = keys_of(engine, 1), layout_of(engine), engine.l2.tiers[0]

        assert tier.knows(key, Form(layout, 0))
        assert tier.knows(key, Form(layout, 4))
        tier.catalog.note_form(key, Form(layout, 4))
        assert tier.knows(key, Form(layout, 6))
        assert not tier.knows(key, Form(layout, 2))
        assert not tier.knows(key, Form(b"another layout", 4))


def test_a_record_of_another_layout_stays_good_for_those_who_have_that_layout(tmp_path: Path) -> None:
    disk = {"type": "fs", "base_path": str(tmp_path / "kv")}
    with engine_with(disk) as engine:
        stored_then_forgotten(engine, 3, value=4)
    with started(with_l2(disk)) as engine:
        engine.register_engine_driven(replace(REGISTRATION, instance_id=2, dtype_str="int32"))
        assert looked_up(engine, 3, "other") == 0
        engine.register_engine_driven(REGISTRATION)

        assert looked_up(engine, 3) == 3
        assert read_back(engine, 3) == [b"\x04" * OBJECT_BYTES] * 3


def test_after_a_restart_with_another_layout_all_is_written_anew_at_once(tmp_path: Path) -> None:
    disk = {"type": "fs", "base_path": str(tmp_path / "kv")}
    other = replace(REGISTRATION, dtype_str="int32")
    with engine_with(disk) as engine:
        stored_then_forgotten(engine, 6, value=4)
    with started(with_l2(disk)) as engine:
        engine.register_engine_driven(other)
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 5, "the scan")
        assert fill(engine, request(6, "writer"), value=5)
        wait_for(lambda: engine.l2.tiers[0].counters.write_back["stored"]._value.get() == 6, 5, "six objects anew")
        engine.clear(force=True)

        assert looked_up(engine, 6) == 6
        assert read_back(engine, 6) == [b"\x05" * OBJECT_BYTES] * 6


def test_a_storage_that_hangs_does_not_shadow_the_next_one() -> None:
    with engine_with(FAULTY, {"type": "memory"}) as engine:
        stored_then_forgotten(engine, 6)
        faults_of(engine).set_faults(SLOW)
        looked_up(engine, 6, "finds out")

        wait_for(lambda: looked_up(engine, 6) == 6, 10, "the second adapter to serve")
        assert read_back(engine, 6) == [b"\x09" * OBJECT_BYTES] * 6
        faults_of(engine).set_faults(Faults())


def test_a_prefetch_job_ends_although_its_storage_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.movement.loads.OVER_AFTER_S", 1.0)
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 8)
        faults_of(engine).set_faults(SLOW)

        job = engine.start_warm("model", 1, request(8).tokens, "")

        assert job is not None
        assert job.wait(10)
        counts = job.counts()
        assert (counts.found, counts.failed + counts.missing) == (0, 8)
        assert held(engine) == {"reservations": THREADS}
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "the slots of the late loads")


def test_what_is_queued_for_a_storage_that_hangs_is_clean_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.movement.write_queue.STALL_S", 0.2)
    with engine_with(FAULTY, write_back_drain_seconds=0.0) as engine:
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 5, "the scan")
        faults_of(engine).set_faults(SLOW)
        assert fill(engine, request(10))
        wait_for(lambda: held(engine) == {"pins": 2}, 5, "only the two that are being written to be dirty")
        assert fill(engine, request(4, "later", cache_salt="later"))
        counter = engine.l2.tiers[0].counters.write_back["breaker_open"]
        wait_for(lambda: counter._value.get() == 12, 5, "what came later to be left out")
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "nothing dirty")


class AnswersLate(MemoryAdapter):
    """Does what it is told, and then the answer is lost."""

    def __init__(self, inner: MemoryAdapter) -> None:
        super().__init__(inner._config)
        self._objects, self.lost = inner._objects, True

    def write(self, key: ObjectKey, data: Buffers) -> None:
        super().write(key, data)
        if self.lost:
            raise ConnectionFault("no answer")


def test_a_write_without_an_answer_leaves_nothing_behind_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.movement.write_queue.MAX_ATTEMPTS", 1)
    with engine_with(MEMORY) as engine:
        tier = engine.l2.tiers[0]
        assert isinstance(tier.adapter, MemoryAdapter)
        wait_for(lambda: tier.catalog.complete, 5, "the scan")
        late = tier.adapter = AnswersLate(tier.adapter)
        assert fill(engine, request(2))
        wait_for(lambda: tier.counters.write_back["dead"]._value.get() == 2, 5, "both given up")

        wait_for(lambda: not late._objects, 10, "what was written all the same to be deleted")
        late.lost = False
        engine.clear(force=True)
        assert fill(engine, request(2))
        written(tier, 2)
        assert set(memory_of(tier)) == set(keys_of(engine, 2))
        assert tier.settle_doubts() == 0


def test_what_an_old_read_has_shown_is_not_said_of_a_newer_object() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 1)
        (key,), layout, tier = keys_of(engine, 1), layout_of(engine), engine.l2.tiers[0]
        good, at = memory_of(tier)[key]
        memory_of(tier)[key] = (good[:-1] + b"\0", at)
        read = tier.adapter.read

        def then_written(key: ObjectKey, into: Buffers) -> int | None:
            size = read(key, into)
            tier.adapter.read = read  # type: ignore[method-assign]
            tier.store(key, Form(layout, 0), memoryview(good)[4096:])
            return size

        tier.adapter.read = then_written  # type: ignore[method-assign]

        assert tier.load(key, layout, memoryview(bytearray(OBJECT_BYTES))).outcome is Outcome.CORRUPT
        assert memory_of(tier)[key][0] == good
        assert tier.load(key, layout, memoryview(bytearray(OBJECT_BYTES))).outcome is Outcome.LOADED
        assert not tier.describe()["quarantined"]


def test_a_lookup_called_off_while_it_asks_keeps_no_pin() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 2)
        lookups = engine.l2.lookups
        rows = [[key] for key in keys_of(engine, 2)]
        wanted = Wanted(rows, engine.registrations.object_layouts(("model", 1)), "r", ("model", 1), 1)
        lookup = lookups.prepare(wanted, 0, lambda _: None)
        assert lookup is not None

        def none_left(*_: Any, **__: Any) -> None:
            """Somebody else has brought the object, and the request ends just now."""
            assert fill(engine, request(1, "other"))
            lookup.cancel()

        engine.l2.loader.request = none_left  # type: ignore[method-assign,assignment]
        lookup.start()

        wait_for(lambda: not held(engine), 5, "nothing held")


def test_a_scan_is_not_the_probe_of_an_open_breaker() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 1)
        tier = engine.l2.tiers[0]
        now = [time.monotonic()]
        tier.breaker._clock = lambda: now[0]
        for _ in range(3):
            tier.breaker.failed()
        now[0] += 2
        assert tier.breaker.state == "half_open"
        with pytest.raises(ConnectionFault):
            tier.take_scan()
        assert looked_up(engine, 1) == 1
        assert tier.breaker.state == "closed"


def test_a_stop_does_not_wait_for_each_hanging_storage_in_turn() -> None:
    adapters = [{"type": "fault", "inner": {"type": "memory"}} for _ in range(3)]
    began = 0.0
    with engine_with(*adapters, write_back_drain_seconds=0.1) as engine:
        stored_then_forgotten(engine, 3)
        for tier in engine.l2.tiers:
            tier.adapter.set_faults(SLOW)  # type: ignore[attr-defined]
        assert looked_up(engine, 3) == 0
        release = threading.Timer(12, lambda: [tier.adapter.set_faults(Faults()) for tier in engine.l2.tiers])  # type: ignore[attr-defined]
        release.start()
        began = time.monotonic()
    took_s = time.monotonic() - began
    release.cancel()
    for tier in engine.l2.tiers:
        tier.adapter.set_faults(Faults())  # type: ignore[attr-defined]
    release.join()
    assert took_s < 10, f"the stop took {took_s:.1f} s"


def test_writes_dropped_because_their_storage_is_bypassed_are_counted_as_such() -> None:
    with engine_with(FAULTY, write_back_drain_seconds=0.0) as engine:
        tier = engine.l2.tiers[0]
        wait_for(lambda: tier.catalog.complete, 5, "the scan")
        faults_of(engine).set_faults(SLOW)
        assert fill(engine, request(6))
        wait_for(lambda: held(engine) == {"pins": 6}, 5, "six dirty objects")
        tier.bypassed = True
        wait_for(lambda: held(engine) == {"pins": 2}, 5, "those in the queue to be clean")

        assert tier.counters.write_back["bypassed"]._value.get() == 4
        assert tier.counters.write_back["breaker_open"]._value.get() == 0
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "nothing dirty")


def test_a_changed_deadline_is_the_patience_with_hanging_loads_too() -> None:
    with engine_with(MEMORY) as engine:
        engine.l2.follow(replace(engine.config, l2_lookup_deadline_seconds=7.0))

        assert engine.l2.loader.patience_s == engine.l2.lookups.deadline_s == 7.0
