"""The catalog follows a storage that loses objects by itself, and people hear of a storage that goes away."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from engine.engine import Engine
from engine.l1.eviction import LRU
from engine.l2.base import Stored
from engine.l2.catalog import Catalog
from engine.l2.fault_adapter import Faults
from engine.l2.memory_adapter import MemoryAdapter
from engine.l2.tier import Tier
from engine.object_key import ObjectKey
from tests.unit.engine.engine_client import OBJECT_BYTES, fill, request
from tests.unit.engine.test_second_tier import (
    FAULTY,
    MEMORY,
    engine_with,
    faults_of,
    looked_up,
    memory_of,
    stored_then_forgotten,
    written,
)
from tests.waiting import wait_for

KEYS = [ObjectKey(bytes([number]), "model", 1) for number in range(6)]


class Forgetful(MemoryAdapter):
    """Objects can go by themselves."""

    is_ours_alone: ClassVar[bool] = False

    def __init__(self, inner: MemoryAdapter) -> None:
        super().__init__(inner._config)
        self._objects = inner._objects


def make_forgetful(engine: Engine) -> Tier:
    tier = engine.l2.tiers[0]
    wait_for(lambda: tier.catalog.complete, 5, "the scan")
    assert isinstance(tier.adapter, MemoryAdapter)
    tier.adapter = Forgetful(tier.adapter)
    return tier


def test_what_a_storage_has_lost_is_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.movement.care.COMPARE_GAP_S", 0.0)
    with engine_with(MEMORY) as engine:
        tier = make_forgetful(engine)
        stored_then_forgotten(engine, 12)
        memory_of(tier).clear()

        assert looked_up(engine, 12) == 0
        wait_for(lambda: len(tier.catalog) == 0, 10, "the catalog to learn it")
        assert fill(engine, request(12))
        written(tier, 12)
        assert len(memory_of(tier)) == 12


def test_after_an_outage_the_catalog_is_compared_with_the_storage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 3)
        tier, inner = engine.l2.tiers[0], faults_of(engine).inner
        assert isinstance(inner, MemoryAdapter)
        faults_of(engine).set_faults(Faults(error_rate=1))
        for attempt in range(3):
            assert looked_up(engine, 3, f"failing {attempt}") == 0
        assert "away" in caplog.text
        assert "injected" in str(tier.breaker.describe()["last_fault"])
        inner._objects.clear()
        faults_of(engine).set_faults(Faults())

        wait_for(lambda: len(tier.catalog) == 0, 20, "the catalog to be empty too")
        assert "answers again" in caplog.text
        assert "3 objects are gone from the storage" in caplog.text


def test_a_comparison_leaves_alone_what_changes_meanwhile() -> None:
    catalog = Catalog(LRU())
    catalog.take_scan([Stored(key, 1, 0.0) for key in KEYS[:3]])

    def found() -> Iterator[Stored]:
        yield Stored(KEYS[0], 1, 0.0)
        yield Stored(KEYS[5], 7, 0.0)
        catalog.add(KEYS[3], 9)
        catalog.remove(KEYS[0])
        yield Stored(KEYS[4], 5, 0.0)
        catalog.remove(KEYS[4])
        catalog.add(KEYS[1], 2)

    assert catalog.compare(found()) == (1, 1)
    assert dict(catalog.oldest(0, 10)) == {KEYS[1]: 2, KEYS[3]: 9, KEYS[5]: 7}
    assert catalog.bytes_used == 18


def test_a_comparison_that_breaks_off_changes_nothing() -> None:
    catalog = Catalog(LRU())
    catalog.take_scan([Stored(key, 1, 0.0) for key in KEYS[:3]])

    def broken() -> Iterator[Stored]:
        yield Stored(KEYS[4], 1, 0.0)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        catalog.compare(broken())
    assert set(catalog.keys()) == set(KEYS[:3])


def test_a_prefetch_job_is_patient_with_a_storage_that_is_only_slow() -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 10)
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=1.0))

        job = engine.start_warm("model", 1, request(10).tokens, "")

        assert job is not None
        assert job.wait(20)
        assert job.counts().found == 10


def test_what_a_storage_that_is_away_may_have_is_not_called_missing() -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 4)
        for _ in range(3):
            engine.l2.tiers[0].breaker.failed("a test")

        job = engine.start_warm("model", 1, request(5).tokens, "")

        assert job is not None
        assert job.wait(5)
        assert job.counts()._asdict() == {"found": 0, "resident": 0, "missing": 1, "failed": 4, "over_quota": 0}
        assert job.outcome() == "failed"


def test_a_job_stops_at_its_tenants_quota_also_with_objects_on_their_way() -> None:
    with engine_with(FAULTY, eviction_policy="IsolatedLRU") as engine:
        engine.load_quotas({"": 100 * OBJECT_BYTES})
        stored_then_forgotten(engine, 10)
        engine.set_quota("", 4 * OBJECT_BYTES)
        faults_of(engine).set_faults(Faults(latency_rate=1, latency_s=0.2))

        job = engine.start_warm("model", 1, request(10).tokens, "")

        assert job is not None
        assert job.wait(10)
        assert (job.counts().found, job.counts().over_quota) == (4, 6)
