"""Redis goes away under transfer load: the data plane does not notice, HTTP says so, and all comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaign.outage import run_outage
from tests.stack import Larder, RedisServer

OUTAGE_S = 3.0


@pytest.fixture
def larder_beside_redis(tmp_path: Path, redis_server: RedisServer) -> Iterator[Larder]:
    """The whole product beside a Redis that is not its own, so that nobody restarts it."""
    with Larder(tmp_path / "larder", redis_url=redis_server.url, log_level="WARNING") as larder:
        yield larder


def test_a_killed_redis_stops_no_transfer(larder_beside_redis: Larder, redis_server: RedisServer) -> None:
    run_outage(larder_beside_redis, redis_server, frozen=False, seconds=OUTAGE_S)


def test_a_frozen_redis_stops_no_transfer(larder_beside_redis: Larder, redis_server: RedisServer) -> None:
    run_outage(larder_beside_redis, redis_server, frozen=True, seconds=OUTAGE_S)
