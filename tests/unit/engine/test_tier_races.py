"""What must hold when calls for one key cross, and when very many fail: of the catalog, loads, dirty bytes, the log."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.engine import Engine
from engine.l1.holds import Pin
from engine.l2.base import Buffers
from engine.l2.calls import Reading
from engine.l2.catalog import Form
from engine.l2.fault_adapter import Faults
from engine.l2.memory_adapter import MemoryAdapter
from engine.l2.tier import Outcome
from engine.movement.loads import Load, LoadEnd, Loader
from engine.object_key import ObjectKey
from tests.unit.engine.engine_client import OBJECT_BYTES, fill, held, request
from tests.unit.engine.test_second_tier import FAULTY, MEMORY, engine_with, faults_of, stored_then_forgotten
from tests.waiting import wait_for

SHARED = {"type": "memory", "shared": True}


def first_key(engine: Engine) -> ObjectKey:
    return engine.sessions.object_keys(request(1), range(1))[0]


def fingerprint_of(engine: Engine) -> bytes:
    return engine.registrations.object_layouts(("model", 1))[0].fingerprint


class WrittenMeanwhile(MemoryAdapter):
    """Finds nothing, and the object is stored before it can say so."""

    def __init__(self, inner: MemoryAdapter, engine: Engine) -> None:
        super().__init__(inner._config)
        self._engine = engine

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        found = super().read(key, into)
        self._engine.l2.tiers[0].store(key, Form(fingerprint_of(self._engine), 0), memoryview(bytes(OBJECT_BYTES)))
        return found


def test_an_object_written_while_a_read_finds_nothing_is_known() -> None:
    with engine_with(SHARED) as engine:
        tier = engine.l2.tiers[0]
        assert isinstance(tier.adapter, MemoryAdapter)
        tier.adapter = WrittenMeanwhile(tier.adapter, engine)
        key = first_key(engine)

        loaded = tier.load(key, fingerprint_of(engine), memoryview(bytearray(OBJECT_BYTES)))

        assert loaded.outcome is Outcome.MISS
        assert tier.adapter.exists(key)
        assert tier.catalog.contains(key)


def test_an_object_deleted_right_after_it_was_read_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 1)
        tier, key = engine.l2.tiers[0], first_key(engine)
        reading = tier.calls.reading

        @contextmanager
        def then_deleted(key: ObjectKey) -> Iterator[Reading]:
            with reading(key) as own:
                yield own
            assert tier.delete(key)

        monkeypatch.setattr(tier.calls, "reading", then_deleted)

        loaded = tier.load(key, fingerprint_of(engine), memoryview(bytearray(OBJECT_BYTES)))

        assert loaded.outcome is Outcome.LOADED
        assert not tier.adapter.exists(key)
        assert not tier.catalog.contains(key)
        assert engine.l2.bytes_by_salt() == {}


def test_writes_that_are_tried_again_make_no_more_dirty_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.movement.write_queue.RETRY_PAUSES_S", (0.1, 0.1, 0.1))
    allowed, now = 4 * OBJECT_BYTES, [0.0]
    with engine_with(FAULTY, write_back_max_bytes=allowed, write_back_drain_seconds=0.0) as engine:
        queue, counters = engine.l2.write_back.queues[0], engine.l2.tiers[0].counters.write_back
        monkeypatch.setattr(queue, "_clock", lambda: now[0])
        faults_of(engine).set_faults(Faults(full_rate=1))
        for number in range(8):
            assert fill(engine, request(4, f"w{number}", cache_salt=f"salt{number}"))
            wait_for(
                lambda number=number: counters["retried"]._value.get() == 4 * (number + 1), 5, "four failed writes"
            )
        assert held(engine) == {}
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=30))
        now[0] = 1.0

        wait_for(lambda: not queue.describe()["waiting_for_retry"], 5, "all are tried again or dropped")

        assert queue.describe()["dirty_bytes"] == allowed
        assert held(engine) == {"pins": 4}
        assert counters["queue_full"]._value.get() == 28
        faults_of(engine).set_faults(Faults())
        wait_for(lambda: not held(engine), 5, "all is written")


def test_many_writes_given_up_are_all_counted_and_do_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.movement.write_queue.MAX_ATTEMPTS", 1)
    with engine_with(FAULTY) as engine:
        faults_of(engine).set_faults(Faults(full_rate=1))
        dead = engine.l2.tiers[0].counters.write_back["dead"]
        for number in range(10):
            assert fill(engine, request(4, f"w{number}", cache_salt=f"salt{number}"))
            wait_for(lambda number=number: dead._value.get() == 4 * (number + 1), 5, "four more dead letters")

        assert len([line for line in caplog.messages if "could not write object" in line]) == 1
        assert len(engine.l2.write_back.queues[0].describe()["dead_letters"]) == 40  # type: ignore[arg-type]


def test_who_asks_for_an_object_that_nobody_wanted_any_more_is_not_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 1)
        tier, key, layouts = engine.l2.tiers[0], first_key(engine), engine.registrations.object_layouts(("model", 1))
        loader = Loader(engine.l2.tiers, engine.l1, engine.segment, 2.0)
        ends: list[LoadEnd | None] = []
        finish = loader._finish

        def tell(load: Load) -> None:
            ends.append(load.end)

        def after_somebody_asked(load: Load, end: LoadEnd, pin: Pin | None) -> None:
            loader.request(key, layouts, tell, demand=True)
            finish(load, end, pin)

        load = loader.request(key, layouts, tell, demand=True)
        assert load is not None
        loader.abandon(load, tell)
        monkeypatch.setattr(loader, "_finish", after_somebody_asked)

        assert not loader._begin(load, tier)
        assert ends == []
        assert loader.request(key, layouts, tell, demand=True) is not load
