"""Clients that die in the middle of things, beside others that go on: right bytes, no hold left, sound tables."""

from collections.abc import Iterator

import pytest

from engine.config import EngineConfig
from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.server import DataPlaneServer
from engine.engine import Engine
from tests.campaign.campaign import Campaign, holds_left, prompts_for, run_campaign
from tests.waiting import wait_for

POOL_BYTES = 16 * 1024**2
QUIET_TIMEOUT_S = 45.0


@pytest.fixture(params=["LRU", "ARC"])
def served_engine(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, int]]:
    """An engine in this process with its data plane, so that its tables can be checked; and its port."""
    engine = Engine(
        EngineConfig(
            l1_size_bytes=POOL_BYTES,
            eviction_policy=request.param,
            l1_read_ttl_seconds=2,
            l1_write_ttl_seconds=2,
            worker_reap_timeout_seconds=4,
            worker_registration_grace_seconds=4,
        )
    )
    engine.start()
    server = DataPlaneServer(engine, "127.0.0.1", 0, DataPlaneLimits())
    try:
        server.start()
        yield engine, server.port
    finally:
        server.stop()
        engine.stop()


def test_a_killed_client_leaves_nothing_held_and_others_get_right_bytes(served_engine: tuple[Engine, int]) -> None:
    engine, port = served_engine

    seen = run_campaign(
        Campaign(port, clients=4, seconds=4, prompts=prompts_for(POOL_BYTES, 10)), while_running=engine.check
    )

    assert seen["wrong_chunks"] == seen["broken_promises"] == 0, seen
    assert seen["retrieved_chunks"] > 100, seen
    assert seen["stored_chunks"] * 256 * 1024 > POOL_BYTES, seen
    wait_for(lambda: not holds_left(engine.l1.report()), QUIET_TIMEOUT_S, "every hold is gone")
    engine.check()
    wait_for(lambda: not engine.registrations.all(), 10, "the killed client is forgotten")
