"""Series about tenants and loops, and what became of the tokens that lookups asked for."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest
from prometheus_client.core import Metric

from engine.engine import Engine
from engine.gauges import MAX_LABEL_CHARACTERS, OTHER, SHOWN, QuotaGauges, ThreadGauges
from engine.l2.fault_adapter import Faults
from engine.periodic import PeriodicThreads, RunRecord
from engine.stats import LOOKUP_RESULTS
from tests.unit.engine.engine_client import CHUNK, fill, request, started
from tests.unit.engine.test_second_tier import (
    FAULTY,
    MEMORY,
    engine_with,
    faults_of,
    looked_up,
    stored_then_forgotten,
    with_l2,
)


class Bytes(NamedTuple):
    l1_bytes: int
    l2_bytes: int


def values(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {(family.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def tenants(limits: dict[str, int], usage: dict[str, Bytes]) -> dict[tuple[str, ...], float]:
    return values(QuotaGauges(lambda: limits, lambda: usage).collect())


def test_without_tenants_there_is_the_rest_at_zero() -> None:
    assert tenants({}, {}) == {
        ("larder_quota_limit_bytes", OTHER): 0,
        ("larder_quota_used_bytes", OTHER, "l1"): 0,
        ("larder_quota_used_bytes", OTHER, "l2"): 0,
    }


def test_the_largest_have_a_series_and_the_rest_is_summed() -> None:
    limits = {f"t{number}": 1000 + number for number in range(SHOWN + 5)}
    shown = tenants(limits, {"t0": Bytes(1, 9999), "t1": Bytes(3, 4), "without a quota": Bytes(10, 20)})

    labels = {key[1] for key in shown}
    assert len(labels) == SHOWN + 1
    assert {"t0", "t24", OTHER} <= labels
    assert "without a quota" not in labels
    assert shown["larder_quota_used_bytes", "t0", "l2"] == 9999
    assert shown["larder_quota_used_bytes", OTHER, "l1"] == 13
    assert sum(value for key, value in shown.items() if key[0] == "larder_quota_limit_bytes") == sum(limits.values())


def test_salts_as_labels() -> None:
    long = "x" * 200
    shown = tenants({"": 1, OTHER: 2, long + "a": 3, long + "b": 4, 'q"\n\\': 5}, {})

    labels = [key[1] for key in shown if key[0] == "larder_quota_limit_bytes"]
    assert len(labels) == 5
    assert {"_default", OTHER, 'q"\n\\'} <= set(labels)
    assert max(map(len, labels)) == MAX_LABEL_CHARACTERS
    assert shown["larder_quota_limit_bytes", OTHER] == 2


def test_many_tenants_are_not_looked_through_at_each_scrape() -> None:
    looks: list[int] = []
    gauges = QuotaGauges(lambda: looks.append(1) or {}, dict)  # type: ignore[func-returns-value]

    for _ in range(5):
        list(gauges.collect())

    assert len(looks) == 1


def test_ages_of_loops() -> None:
    threads = PeriodicThreads()
    threads.add(RunRecord("one", "high", 1.0))

    assert values(ThreadGauges(threads).collect()) == {
        ("larder_thread_last_run_age_seconds", "one", "high"): 0.0,
        ("larder_thread_active", "one", "high"): 0.0,
    }


def tokens(engine: Engine) -> dict[str, int]:
    """Chunks by what came of them, without zeros."""
    found = {name: engine.stats.lookup_tokens[name]._value.get() / CHUNK for name in LOOKUP_RESULTS}
    return {name: int(number) for name, number in found.items() if number}


def test_what_came_of_a_lookups_tokens_in_l1_alone() -> None:
    with started(with_l2()) as engine:
        looked_up(engine, 2, "nobody")
        assert tokens(engine) == {"unregistered": 2}
    with engine_with() as engine:
        assert fill(engine, request(3, "writer"), value=1)
        looked_up(engine, 5)
        assert tokens(engine) == {"l1": 3, "absent": 2}


def test_what_came_of_them_in_l2() -> None:
    with engine_with(MEMORY) as engine:
        stored_then_forgotten(engine, 3)
        looked_up(engine, 5)
        assert tokens(engine) == {"l2": 3, "absent": 2}
        looked_up(engine, 4, "again")
        assert tokens(engine) == {"l1": 3, "l2": 3, "absent": 3}


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(error_rate=1), "failed"),
        (Faults(flipped_bit_rate=1), "failed"),
        (Faults(latency_rate=1, latency_s=2.5), "late"),
    ],
)
def test_why_a_storage_brought_nothing(faults: Faults, reason: str) -> None:
    with engine_with(FAULTY) as engine:
        stored_then_forgotten(engine, 2)
        faults_of(engine).set_faults(faults)
        try:
            looked_up(engine, 2)
        finally:
            faults_of(engine).set_faults(Faults())
        assert tokens(engine) == {reason: 2}
