"""Usage over both tiers is told whole and in changes, and the status says where quotas act and why not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.l1.cache import L1Cache
from engine.l1.eviction import LRU
from engine.l1.pool import PAGE, SlotPool
from engine.l1.quota import QuotaTable
from engine.l2.base import Stored
from engine.l2.catalog import Catalog
from engine.l2.spec import TierSpec, read_spec
from engine.object_key import ObjectKey
from engine.tenants import Tenants, Usage
from tests.unit.engine.engine_client import CONFIG, OBJECT_BYTES, REGISTRATION, fill, request, started
from tests.waiting import wait_for

SALTS = ("", "alice", "bob")
KEYS = [ObjectKey(bytes([number]), "model", 16777472, 0, salt) for salt in SALTS for number in range(3)]
LAYOUT = b"layout"


class Storage(NamedTuple):
    label: str
    spec: TierSpec
    catalog: Catalog


class Catalogs:
    """An L2 of catalogs alone."""

    def __init__(self, *policies: str) -> None:
        specs = [read_spec({"type": "memory", "eviction": {"eviction_policy": policy}}) for policy in policies]
        self.tiers: Sequence[Storage] = [
            Storage(f"{index}-memory", spec, Catalog(LRU())) for index, spec in enumerate(specs)
        ]

    def bytes_by_salt(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for tier in self.tiers:
            for salt, nbytes in tier.catalog.bytes_by_salt().items():
                total[salt] = total.get(salt, 0) + nbytes
        return total

    def take_changed_salts(self) -> dict[str, int]:
        changed = set[str]().union(*(tier.catalog.take_changed_salts() for tier in self.tiers))
        return {salt: sum(tier.catalog.bytes_of(salt) for tier in self.tiers) for salt in changed}


def tenants_of(l2: Catalogs, **config: object) -> tuple[Tenants, L1Cache]:
    l1 = L1Cache(SlotPool(16 * PAGE), LRU(), write_ttl_s=60, read_ttl_s=60)
    settings = replace(EngineConfig(), **config)  # type: ignore[arg-type]
    return Tenants(settings, QuotaTable(), l1, l2, quotas_changed=lambda: None), l1


steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "clear", "write 0", "write 1", "remove 0", "scan 1", "publish"]),
        st.sampled_from(KEYS),
        st.integers(1, 9),
    ),
    max_size=40,
)


@given(steps)
def test_the_changes_add_up_to_the_whole(history: list[tuple[str, ObjectKey, int]]) -> None:
    l2 = Catalogs("LRU", "LRU")
    tenants, l1 = tenants_of(l2)
    published: dict[str, Usage] = {}

    def publish() -> None:
        changed = tenants.changed_usage()
        published.update(changed)
        for salt in [salt for salt, used in published.items() if not any(used)]:
            del published[salt]

    for what, key, size in history:
        verb, _, index = what.partition(" ")
        if verb == "store":
            l1.commit(l1.reserve([key], PAGE, LAYOUT, 1))
        elif verb == "clear":
            l1.clear(force=True)
        elif verb == "write":
            l2.tiers[int(index)].catalog.add(key, size)
        elif verb == "remove":
            l2.tiers[int(index)].catalog.remove(key)
        elif verb == "scan":
            l2.tiers[int(index)].catalog.take_scan([Stored(key, size, 1.0)])
        else:
            publish()
            assert published == tenants.usage_by_salt()
    publish()

    assert published == tenants.usage_by_salt()
    assert tenants.changed_usage() == {}
    assert {salt: used.l1_bytes for salt, used in published.items() if used.l1_bytes} == l1.bytes_by_salt()
    assert {salt: used.l2_bytes for salt, used in published.items() if used.l2_bytes} == l2.bytes_by_salt()


@pytest.mark.parametrize(
    ("l1_policy", "l2_policies", "enforced_on"),
    [
        ("LRU", (), []),
        ("LRU", ("LRU", "noop"), []),
        ("IsolatedLRU", (), ["l1"]),
        ("LRU", ("IsolatedLRU",), ["0-memory"]),
        ("IsolatedLRU", ("LRU", "IsolatedLRU"), ["l1", "1-memory"]),
    ],
)
def test_the_status_says_where_quotas_act(l1_policy: str, l2_policies: Sequence[str], enforced_on: list[str]) -> None:
    tenants, _ = tenants_of(Catalogs(*l2_policies), eviction_policy=l1_policy)
    before = tenants.report()
    tenants.load({"alice": 5})

    report = tenants.report()

    assert (report["enforced"], report["enforced_on"]) == (bool(enforced_on), enforced_on)
    assert report["registered"] == 1
    assert report["unregistered_suspended_because"] is None
    assert before["enforced"] is False
    if enforced_on:
        assert "not been read" in str(before["not_enforced_because"])
        assert report["not_enforced_because"] is None
    else:
        assert f"l1 {l1_policy}" in str(report["not_enforced_because"])


def test_an_engine_tells_both_tiers_and_keeps_the_epoch_of_an_empty_l2(tmp_path: Path) -> None:
    adapter = {"type": "memory", "eviction": {"eviction_policy": "IsolatedLRU"}}
    config = replace(CONFIG, l2_adapter=(adapter,), data_dir=str(tmp_path), instance_id="unit-tenants")
    with started(config) as engine:
        wait_for(lambda: engine.l2.tiers[0].catalog.complete, 10, "the catalog is read")
        engine.load_quotas({"alice": 100 * OBJECT_BYTES}, "life 1")
        assert (tmp_path / "l2" / "quota_epoch").read_text() == "life 1\n"

        engine.register_engine_driven(REGISTRATION)
        assert fill(engine, request(2, cache_salt="alice"))
        wait_for(lambda: len(engine.l2.tiers[0].catalog) == 2, 10, "both objects are written back")

        stored = engine.l2.tiers[0].catalog.bytes_of("alice")
        assert engine.usage_by_salt() == engine.changed_usage() == {"alice": Usage(2 * OBJECT_BYTES, stored)}
        engine.clear(force=True)
        assert engine.changed_usage() == {"alice": Usage(0, stored)}
        engine.load_quotas({}, "life 2")
        assert engine.status()["quotas"]["unregistered_suspended_because"] is not None  # type: ignore[index]
        engine.set_quota("bob", 1)
        assert engine.review_quota_epoch()
        wait_for(lambda: engine.usage_by_salt() == {}, 10, "alice has no quota any more")
        engine.keep_quota_epoch()
        assert (tmp_path / "l2" / "quota_epoch").read_text() == "life 2\n"
