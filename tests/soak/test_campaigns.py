"""The long versions of tests/e2e/test_faults_*.py: a minute of clients, ten seconds of outage, kill after kill."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.dataplane.server import DataPlaneServer
from engine.engine import Engine
from tests.campaign.campaign import Campaign, holds_left, prompts_for, run_campaign
from tests.campaign.outage import run_outage
from tests.campaign.transfer_load import TransferLoad
from tests.e2e.test_faults_engine import NEVER, kill_engine
from tests.stack import Larder, RedisServer
from tests.waiting import wait_for

pytestmark = pytest.mark.soak

POOL_BYTES = 64 * 1024**2
TTL_S = 5
REAP_S = 30
CAMPAIGN_S = 60.0
OUTAGE_S = 10.0
QUIET_TIMEOUT_S = 45.0
KILLS = 5

TIMES = {
    "l1_read_ttl_seconds": TTL_S,
    "l1_write_ttl_seconds": TTL_S,
    "worker_reap_timeout_seconds": REAP_S,
    "worker_registration_grace_seconds": REAP_S,
}


def assert_right(seen: dict[str, int]) -> None:
    assert seen["wrong_chunks"] == seen["broken_promises"] == 0, seen
    assert seen["stored_chunks"] * 256 * 1024 > 10 * POOL_BYTES, seen
    assert seen["retrieved_chunks"] > 1000, seen


@pytest.fixture
def served_engine() -> Iterator[tuple[Engine, int]]:
    """An engine in this process, so that its tables can be checked while clients work; and its port."""
    engine = Engine(EngineConfig(l1_size_bytes=POOL_BYTES, **TIMES))
    engine.start()
    server = DataPlaneServer(engine, "127.0.0.1", 0)
    try:
        server.start()
        yield engine, server.port
    finally:
        server.stop()
        engine.stop()


@pytest.mark.timeout(300)
def test_eight_clients_and_a_killed_one_keep_the_tables_sound(served_engine: tuple[Engine, int]) -> None:
    engine, port = served_engine
    campaign = Campaign(port, clients=8, seconds=CAMPAIGN_S, prompts=prompts_for(POOL_BYTES, 10))

    seen = run_campaign(campaign, while_running=engine.check)

    assert_right(seen)
    wait_for(lambda: not holds_left(engine.l1.report()), QUIET_TIMEOUT_S, "every hold is gone")
    engine.check()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", ["LRU", "ARC"])
def test_eight_clients_and_a_killed_one_leave_no_hold_in_the_status(tmp_path: Path, policy: str) -> None:
    with Larder(tmp_path / "larder", l1_size_gb=POOL_BYTES / 1024**3, eviction_policy=policy, **TIMES) as larder:
        campaign = Campaign(larder.port, clients=8, seconds=CAMPAIGN_S, prompts=prompts_for(POOL_BYTES, 10), seed=2)

        def l1_status() -> dict[str, Any]:
            answer = larder.http("GET", "/status")
            assert answer.status == 200, answer.body
            return dict(answer.json()["storage_manager"]["l1_manager"])

        seen = run_campaign(campaign, while_running=lambda: l1_status() and None)

        assert_right(seen)
        wait_for(lambda: not holds_left(l1_status()), QUIET_TIMEOUT_S, "every hold is gone from /status")
        assert larder.http("GET", "/status").json()["is_healthy"]


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
def test_ten_seconds_without_redis_stop_no_transfer(tmp_path: Path, any_redis: RedisServer, frozen: bool) -> None:
    with Larder(tmp_path / "larder", redis_url=any_redis.url) as larder:
        run_outage(larder, any_redis, frozen=frozen, seconds=OUTAGE_S)


def test_kill_after_kill_the_engine_comes_back_with_its_quotas(tmp_path: Path) -> None:
    chance = random.Random(1)
    with Larder(tmp_path / "larder") as larder, TransferLoad(larder.port, call_timeout_s=2.0) as load:
        for kill in range(KILLS):
            assert larder.http("PUT", f"/quota/tenant-{kill}", {"limit_gb": kill + 1}).status == 200
            load.wait_for_rounds(chance.randint(1, 50), timeout_s=60)
            kill_engine(larder)
            users = larder.http("GET", "/quota").json()["users"]
            assert {salt: row["limit_gb"] for salt, row in users.items()} == {
                f"tenant-{done}": done + 1 for done in range(kill + 1)
            }
        load.wait_for_rounds(5, timeout_s=60)
        assert not [error for error in load.errors if any(wrong in error for wrong in NEVER)], load.errors
