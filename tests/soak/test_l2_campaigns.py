"""L2 under load for as long as storages really hang, and a minute of clients that behave badly while nothing fails.

The short versions of the first ones are in tests/e2e/test_l2_faults.py; here no time of the engine is shortened.
"""

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from engine.l2.object_name import key_of_name
from tests.campaign.l2_client import CHUNK_TOKENS, PROMPT_BYTES
from tests.campaign.l2_load import (
    GRACE_S,
    Drill,
    EngineSite,
    L2Load,
    StackSite,
    assert_l2_gives_back,
    frozen,
    killed,
    pass_time,
    run_drill,
    wait_until_quiet,
)
from tests.conformance.redis_servers import server_in
from tests.conformance.s3_servers import Rclone, config_for
from tests.e2e.served_engine import ServedEngine
from tests.e2e.test_l2_faults import CALLS, QUARANTINED, STALLED, WRITES, Site
from tests.stack import Larder
from tests.waiting import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]

POOL_BYTES = 2 << 20
PROMPTS = 10 * POOL_BYTES // PROMPT_BYTES
CALM_S, LATENCY_S, OUTAGE_S, DAMAGE_S, CAMPAIGN_S = 5.0, 30.0, 20.0, 60.0, 60.0
ROLES = ("reader", "reader", "reader", "storer")
#: One for which the server copies, and one that copies by itself.
KILLED = (2, 3)
ALL_FAULTS: list[dict[str, float]] = [
    {},
    {"error_rate": 0.3},
    {"flipped_bit_rate": 0.3, "short_read_rate": 0.2},
    {"full_rate": 0.5},
    {"latency_rate": 0.05, "latency_s": 5.0},
    {},
]
FAULT_TURN_S = 8.0
CLEAR_EVERY_S, DELETE_EVERY_S = 0.5, 0.2


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    adapter = {"type": "fault", "inner": {"type": "fs", "base_path": str(tmp_path / "kv")}}
    with ServedEngine(l1_size_bytes=POOL_BYTES, chunk_size=CHUNK_TOKENS, l2_adapter=(adapter,)) as served:
        yield Site(served)


def drill(site: Site, directory: Path, fault_s: float, **rates: float) -> Drill:
    with L2Load(site.port, directory / "clients", prompts=PROMPTS, roles=ROLES) as load:
        return run_drill(site, load, site.fault(**rates), calm_s=CALM_S, fault_s=fault_s)


def test_a_minute_of_errors(site: Site, tmp_path: Path) -> None:
    seen = drill(site, tmp_path, DAMAGE_S, error_rate=1.0)

    assert {"open", "closed"} <= seen.states
    assert seen.counted(CALLS, outcome="fault") >= 3
    assert seen.counted(WRITES, outcome="breaker_open") > 0


def test_errors_now_and_then_open_no_breaker_for_long(site: Site, tmp_path: Path) -> None:
    seen = drill(site, tmp_path, DAMAGE_S, error_rate=0.1)

    assert seen.counted(WRITES, outcome="stored") > 0
    assert seen.counted(CALLS, operation="read", outcome="ok") > 0
    assert seen.during.hit_chunks > 0


def test_half_a_minute_for_each_call(site: Site, tmp_path: Path) -> None:
    """Longer than a call takes, so that late answers come while calls are slow."""
    seen = drill(site, tmp_path, 2 * LATENCY_S + CALM_S, latency_rate=1.0, latency_s=LATENCY_S)

    assert "open" in seen.states
    assert seen.times_opened >= 1
    assert seen.counted(STALLED) >= 3


@pytest.mark.parametrize("kind", ["short_read", "flipped_bit"])
def test_a_minute_of_damage(site: Site, tmp_path: Path, kind: str) -> None:
    met = site.adapter.injected()[kind]
    seen = drill(site, tmp_path, DAMAGE_S, **{f"{kind}_rate": 0.2})

    assert 0 < seen.counted(QUARANTINED) <= site.adapter.injected()[kind] - met
    assert seen.counted(CALLS, operation="read", outcome="corrupt") == seen.counted(QUARANTINED)
    assert seen.states == {"closed"}


def test_a_minute_of_full_disk(site: Site, tmp_path: Path) -> None:
    held: list[int] = []
    catalog = site.engine.l2.tiers[0].catalog

    @contextmanager
    def full() -> Iterator[None]:
        held.append(len(catalog))
        with site.fault(full_rate=1.0):
            yield
            held.append(len(catalog))

    with L2Load(site.port, tmp_path / "clients", prompts=PROMPTS, roles=ROLES) as load:
        seen = run_drill(site, load, full(), calm_s=CALM_S, fault_s=DAMAGE_S)

    assert held[1] > held[0] / 4, "what is deleted for room that never comes is not much"
    assert seen.counted(CALLS, operation="write", outcome="full") > 0
    assert seen.states == {"closed"}


def drill_whole(directory: Path, adapter: dict[str, object], fault: AbstractContextManager[None]) -> Drill:
    larder = Larder(
        directory / "larder",
        l1_size_gb=POOL_BYTES / 2**30,
        chunk_size=CHUNK_TOKENS,
        l2_adapter=json.dumps(adapter),
        log_level="WARNING",
    )
    with larder, L2Load(larder.port, directory / "clients", prompts=PROMPTS, roles=ROLES) as load:
        return run_drill(StackSite(larder, 2.0), load, fault, calm_s=CALM_S, fault_s=OUTAGE_S)


def assert_outage_is_told(seen: Drill) -> None:
    assert "open" in seen.states
    assert seen.times_opened >= 1
    assert seen.counted(WRITES, outcome="breaker_open") > 0
    assert seen.counted(CALLS, outcome="fault") + seen.counted(STALLED) >= 3
    assert seen.counted(QUARANTINED) == 0


@pytest.mark.parametrize("how", [killed, frozen])
def test_s3_is_down_for_twenty_seconds(tmp_path: Path, how: type[AbstractContextManager[None]]) -> None:
    with Rclone(tmp_path / "s3") as server:
        server.make_bucket()
        adapter = {"type": "s3", **dataclasses.asdict(config_for(server.url))}
        assert_outage_is_told(drill_whole(tmp_path, adapter, how(server)))


@pytest.mark.parametrize("how", [killed, frozen])
def test_the_adapters_redis_is_down_for_twenty_seconds(tmp_path: Path, how: type[AbstractContextManager[None]]) -> None:
    with server_in(tmp_path / "redis") as server:
        assert_outage_is_told(drill_whole(tmp_path, {"type": "redis", "url": server.url}, how(server)))


class Operator:
    """Deletes objects of L2 and clears L1 now and then."""

    def __init__(self, site: EngineSite, *, faults_are_meant: bool = False) -> None:
        self._site, self._chance, self._faults_are_meant = site, random.Random(5), faults_are_meant
        self._clear_at = self._delete_at = 0.0
        self.deleted = 0

    def work(self) -> None:
        """What is due by now; the tables are checked in any case."""
        engine, now = self._site.engine, time.monotonic()
        if now >= self._clear_at:
            self._clear_at = now + CLEAR_EVERY_S
            engine.clear(force=self._chance.random() < 0.3)
        if now >= self._delete_at:
            self._delete_at = now + DELETE_EVERY_S
            keys = engine.l2.tiers[0].catalog.keys()
            result = engine.l2.delete_keys(None, self._chance.sample(keys, min(20, len(keys))))
            assert not result.error or self._faults_are_meant
            self.deleted += result.deleted
        self._site.check()


def bytes_on_disk(base: Path) -> dict[str, int]:
    """Bytes of the files of each salt."""
    found: dict[str, int] = {}
    for path in base.glob("??/*"):
        key = key_of_name(path.name)
        assert key is not None, f"{path} is no object of ours"
        found[key.cache_salt] = found.get(key.cache_salt, 0) + path.stat().st_size
    return found


@pytest.mark.parametrize("policy", ["default", "skip_l1"])
def test_rude_clients_an_operator_and_a_killed_client_leave_all_tables_sound(tmp_path: Path, policy: str) -> None:
    files = tmp_path / "kv"
    config = {"l2_store_policy": policy, "l1_read_ttl_seconds": 5.0, "l1_write_ttl_seconds": 5.0}
    adapter = {"type": "fs", "base_path": str(files)}
    with ServedEngine(l1_size_bytes=POOL_BYTES, chunk_size=CHUNK_TOKENS, l2_adapter=(adapter,), **config) as served:
        site = EngineSite(served.engine, served.port)
        operator = Operator(site)
        with L2Load(site.port, tmp_path / "clients", prompts=PROMPTS, roles=["rude"] * 8) as load:
            for number in KILLED:
                pass_time(CAMPAIGN_S / 3, operator.work)
                load.kill(number)
            pass_time(CAMPAIGN_S / 3, operator.work)
            load.idle()
            wait_until_quiet(site)
            seen = load.seen()
            assert (seen.wrong_chunks, seen.errors) == (0, ()), (seen, load.complaints())
            assert seen.slowest_lookup_s <= site.deadline_s + GRACE_S, seen
            assert seen.hit_chunks > 1000, seen
            assert operator.deleted > 100
            assert served.engine.l2.bytes_by_salt() == bytes_on_disk(files)
            assert_l2_gives_back(site)
        wait_until_quiet(site)
        assert served.engine.l2.bytes_by_salt() == bytes_on_disk(files)
        assert list((files / "tmp").iterdir()) == []


def test_every_fault_in_turn_beside_a_sound_adapter_leaves_both_catalogs_right(tmp_path: Path) -> None:
    faulty = {"type": "fault", "inner": {"type": "fs", "base_path": str(tmp_path / "a")}, "serde": {"type": "zstd"}}
    small = {"type": "fs", "base_path": str(tmp_path / "b"), "max_bytes": 3 * POOL_BYTES}
    config = {"l2_adapter": (faulty, small), "l1_read_ttl_seconds": 5.0, "l1_write_ttl_seconds": 5.0}
    with ServedEngine(l1_size_bytes=POOL_BYTES, chunk_size=CHUNK_TOKENS, **config) as served:
        site = Site(served)
        operator = Operator(site, faults_are_meant=True)
        with L2Load(site.port, tmp_path / "clients", prompts=PROMPTS, roles=["rude"] * 6) as load:
            for rates in ALL_FAULTS:
                with site.fault(**rates):
                    pass_time(FAULT_TURN_S, operator.work)
            load.idle()
            wait_until_quiet(site)
            seen = load.seen()
        assert (seen.wrong_chunks, seen.errors) == (0, ()), (seen, load.complaints())
        assert seen.slowest_lookup_s <= site.deadline_s + GRACE_S, seen
        for tier, place in zip(served.engine.l2.tiers, ("a", "b"), strict=True):
            files = tmp_path / place
            wait_for(
                lambda tier=tier, files=files: tier.catalog.bytes_by_salt() == bytes_on_disk(files),
                20,
                f"the catalog of {tier.label} says what is stored",
            )
