"""L2 fails under load and comes back: no wrong byte, no late answer, and the counters tell what happened.

Short versions of tests/soak/test_l2_campaigns.py: the storage's times (how long a call may hang, how long a breaker
pauses) are shortened where the engine runs in this process.
"""

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from engine.l2.fault_adapter import FaultAdapter, Faults
from tests.campaign.l2_client import (
    CHUNK_TOKENS,
    CHUNKS,
    FRESH,
    PROMPT_BYTES,
    PromptClient,
    Round,
    salt_of,
    tokens_of,
)
from tests.campaign.l2_load import Drill, EngineSite, L2Load, StackSite, killed, run_drill, wait_until_quiet
from tests.conformance.redis_servers import server_in
from tests.conformance.s3_servers import Rclone, config_for
from tests.e2e.served_engine import ServedEngine
from tests.stack import Larder
from tests.waiting import wait_for

POOL_BYTES = 2 << 20
PROMPTS = 6 * POOL_BYTES // PROMPT_BYTES
DEADLINE_S = 0.8
CALM_S, FAULT_S = 0.5, 1.8

CALLS, WRITES = "larder_l2_calls_total", "larder_l2_write_back_objects_total"
QUARANTINED, STALLED = "larder_l2_quarantined_objects_total", "larder_l2_stalled_calls_total"


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l2.breaker.FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr("engine.l2.breaker.LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr("engine.l2.calls.STALL_S", 0.7)
    monkeypatch.setattr("engine.movement.second_tier.WATCH_INTERVAL_S", 0.1)
    monkeypatch.setattr("engine.movement.write_queue.RETRY_PAUSES_S", (0.1, 0.2, 0.4))


class Site(EngineSite):
    """An engine whose L2 is files behind a fault adapter."""

    def __init__(self, served: ServedEngine) -> None:
        super().__init__(served.engine, served.port)
        adapter = served.engine.l2.tiers[0].adapter
        assert isinstance(adapter, FaultAdapter)
        self.adapter = adapter

    @contextmanager
    def fault(self, **rates: float) -> Iterator[None]:
        self.adapter.set_faults(Faults(**rates))
        try:
            yield
        finally:
            self.adapter.set_faults(Faults())


@pytest.fixture
def site(tmp_path: Path, short_times: None, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    adapter = {"type": "fault", "inner": {"type": "fs", "base_path": str(tmp_path / "kv")}}
    with ServedEngine(
        l1_size_bytes=POOL_BYTES,
        chunk_size=CHUNK_TOKENS,
        l2_adapter=(adapter,),
        l2_lookup_deadline_seconds=DEADLINE_S,
    ) as served:
        yield Site(served)
    crashes = [record.getMessage() for record in caplog.get_records("call") if record.exc_info]
    assert not crashes, f"{len(crashes)} exceptions nobody expected, the first: {crashes[0]}"


@pytest.fixture
def load(site: Site, tmp_path: Path) -> Iterator[L2Load]:
    with L2Load(site.port, tmp_path / "clients", prompts=PROMPTS) as load:
        yield load


def test_a_storage_that_fails_is_left_alone_until_it_answers_again(site: Site, load: L2Load) -> None:
    drill = run_drill(site, load, site.fault(error_rate=1.0), calm_s=CALM_S, fault_s=FAULT_S)

    assert "open" in drill.states
    assert drill.times_opened >= 1
    assert drill.counted(CALLS, outcome="fault") >= 3
    assert drill.counted(WRITES, outcome="breaker_open") > 0
    assert drill.counted(QUARANTINED) == 0
    assert drill.after.hit_chunks > 0


def test_a_storage_that_takes_half_a_minute_holds_up_nobody(site: Site, load: L2Load) -> None:
    drill = run_drill(site, load, site.fault(latency_rate=1.0, latency_s=30.0), calm_s=CALM_S, fault_s=FAULT_S)

    assert "open" in drill.states
    assert drill.counted(STALLED) >= 3
    assert drill.counted(CALLS, outcome="fault") == 0
    assert drill.after.hit_chunks > 0


@pytest.mark.parametrize("kind", ["short_read", "flipped_bit"])
def test_what_is_damaged_is_never_served(site: Site, load: L2Load, kind: str) -> None:
    met = site.adapter.injected()[kind]
    drill = run_drill(site, load, site.fault(**{f"{kind}_rate": 0.3}), calm_s=CALM_S, fault_s=FAULT_S)

    damaged = site.adapter.injected()[kind] - met
    assert damaged > 0
    assert drill.counted(CALLS, operation="read", outcome="corrupt") == drill.counted(QUARANTINED)
    assert drill.states == {"closed"}
    # A bit in the padding of the header hurts nobody.
    assert 0 < drill.counted(QUARANTINED) <= damaged


def test_a_full_disk_stops_no_store_and_is_written_to_again_once_there_is_room(site: Site, load: L2Load) -> None:
    drill = run_drill(site, load, site.fault(full_rate=1.0), calm_s=CALM_S, fault_s=FAULT_S)

    assert drill.counted(CALLS, operation="write", outcome="full") > 0
    assert drill.counted(WRITES, outcome="retried") > 0
    assert drill.states == {"closed"}
    assert drill.counted(QUARANTINED) == 0


def whole(directory: Path, adapter: dict[str, object]) -> Larder:
    """The product with a pool that most prompts do not fit into."""
    return Larder(
        directory,
        l1_size_gb=POOL_BYTES / 2**30,
        chunk_size=CHUNK_TOKENS,
        l2_adapter=json.dumps(adapter),
        l2_lookup_deadline_seconds=DEADLINE_S,
        log_level="WARNING",
    )


def drill_whole(larder: Larder, directory: Path, fault: AbstractContextManager[None]) -> Drill:
    site = StackSite(larder, DEADLINE_S)
    with L2Load(site.port, directory / "clients", prompts=PROMPTS) as load:
        return run_drill(site, load, fault, calm_s=CALM_S, fault_s=FAULT_S)


def assert_outage_is_told(drill: Drill) -> None:
    assert "open" in drill.states
    assert drill.times_opened >= 1
    assert drill.counted(CALLS, outcome="fault") >= 3
    assert drill.counted(WRITES, outcome="breaker_open") > 0
    assert drill.counted(QUARANTINED) == 0
    assert drill.after.hit_chunks > 0


def test_s3_goes_down_and_comes_back(tmp_path: Path) -> None:
    with Rclone(tmp_path / "s3") as server:
        server.make_bucket()
        adapter = {"type": "s3", **dataclasses.asdict(config_for(server.url))}
        with whole(tmp_path / "larder", adapter) as larder:
            assert_outage_is_told(drill_whole(larder, tmp_path, killed(server)))


def test_the_adapters_redis_is_restarted(tmp_path: Path) -> None:
    with (
        server_in(tmp_path / "redis") as server,
        whole(tmp_path / "larder", {"type": "redis", "url": server.url}) as larder,
    ):
        assert_outage_is_told(drill_whole(larder, tmp_path, killed(server)))


@pytest.mark.parametrize("how", ["ended", "freed", "looked up again"])
def test_who_waits_for_a_lookup_that_is_called_off_is_told_at_once(site: Site, how: str) -> None:
    with PromptClient(site.port, 0) as waiting, PromptClient(site.port, 2) as other:
        waiting.fresh_store(FRESH)
        wait_for(lambda: len(site.engine.l2.tiers[0].catalog) == CHUNKS, 5, "the prompt is written to L2")
        waiting.wire.clear(force=True)
        with site.fault(latency_rate=1.0, latency_s=30.0):
            seen = Round(0.0)
            waiter = threading.Thread(target=waiting.lookup, args=(FRESH, "request", seen))
            waiter.start()
            wait_for(lambda: site.engine.l2.gauges()["l2_lookups"], 5, "the lookup is under way")
            if how == "ended":
                other.wire.end_session("request")
            elif how == "freed":
                other.wire.free(tokens_of(FRESH), "request", cache_salt=salt_of(FRESH))
            else:
                other.lookup(FRESH + 1, "request", Round(0.0))
            waiter.join(DEADLINE_S)
            told = not waiter.is_alive()
            waiter.join()
        assert told
        assert seen.hit_chunks == 0


def test_what_hangs_in_the_storage_can_be_stored_anew_and_is_found_at_once(site: Site) -> None:
    with PromptClient(site.port, 0) as client:
        client.fresh_store(FRESH)
        wait_for(lambda: len(site.engine.l2.tiers[0].catalog) == CHUNKS, 5, "the prompt is written to L2")
        client.wire.clear(force=True)
        with site.fault(latency_rate=1.0, latency_s=30.0):
            first, second = client.one_round(FRESH), client.one_round(FRESH)
            site.check()
        assert (first.hit_chunks, first.stored_chunks) == (0, CHUNKS)
        assert (second.hit_chunks, second.wrong_chunks, second.lost_chunks) == (CHUNKS, 0, 0)
        assert second.lookup_s < DEADLINE_S / 2
        wait_until_quiet(site)
        third = client.one_round(FRESH)
        assert (third.hit_chunks, third.wrong_chunks, third.lost_chunks) == (CHUNKS, 0, 0)
