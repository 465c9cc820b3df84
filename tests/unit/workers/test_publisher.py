"""What is published costs Redis little while nothing changes, is dated honestly, and comes back after a loss."""

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from contract import snapshots
from contract.keys import Keys
from contract.redis_client import open_redis
from engine.periodic import PeriodicThreads
from tests.stack import RedisServer
from tests.waiting import wait_for
from workers import publisher as publisher_module
from workers.publisher import Publisher
from workers.tenant_tables import TenantTables

KEYS = Keys("publisher")
STATUS, METRICS = snapshots.STATUS, snapshots.METRICS


class NoTenants:
    def write(self, client: redis.Redis) -> None:
        """There are none."""


@pytest.fixture
def client(any_redis: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(any_redis.url)
    yield client
    client.close()


def read(client: redis.Redis, name: str) -> snapshots.Snapshot:
    found = snapshots.read(client, KEYS, name)
    assert found is not None
    return found


def written_bodies(client: redis.Redis, writer: snapshots.SnapshotWriter, bodies: dict[str, Any]) -> set[str]:
    """Of which names the body reached Redis: one that a person replaced by hand is replaced again."""
    for name in bodies:
        if client.exists(KEYS.snapshot(name)):
            client.hset(KEYS.snapshot(name), "body", '"by hand"')
    writer.held()
    writer.write(bodies, taken_at=1.0)
    return {name for name, body in bodies.items() if read(client, name).body == body}


def test_a_body_that_did_not_change_is_only_dated_anew(client: redis.Redis) -> None:
    writer = snapshots.SnapshotWriter(client, KEYS, "boot")
    assert written_bodies(client, writer, {STATUS: 1, METRICS: 1}) == {STATUS, METRICS}
    assert written_bodies(client, writer, {STATUS: 1, METRICS: 2}) == {METRICS}

    number = read(client, STATUS).number
    writer.write({STATUS: 1}, taken_at=2.5)

    assert (read(client, STATUS).number, read(client, STATUS).taken_at) == (number + 1, 2.5)


@pytest.mark.parametrize("loss", ["flush", "delete", "older copy", "another boot"])
def test_what_redis_lost_is_written_again(client: redis.Redis, loss: str) -> None:
    writer = snapshots.SnapshotWriter(client, KEYS, "boot")
    writer.write({STATUS: 1}, taken_at=1.0)
    older = client.hgetall(KEYS.snapshot(STATUS))
    writer.write({STATUS: 2}, taken_at=2.0)
    if loss == "older copy":
        client.hset(KEYS.snapshot(STATUS), mapping=cast(dict[Any, Any], older))
    elif loss == "another boot":
        snapshots.publish(client, KEYS, STATUS, 3, "another")
    elif loss == "delete":
        client.delete(KEYS.snapshot(STATUS))
    else:
        client.flushall()

    assert writer.held() == set()
    writer.write({STATUS: 2}, taken_at=3.0)

    assert (read(client, STATUS).body, read(client, STATUS).boot_id) == (2, "boot")


def test_a_loss_between_looking_and_writing_is_made_good_by_the_next(client: redis.Redis) -> None:
    writer = snapshots.SnapshotWriter(client, KEYS, "boot")
    writer.write({STATUS: 1}, taken_at=1.0)
    assert writer.held() == {STATUS}
    client.flushall()
    writer.write({STATUS: 1}, taken_at=2.0)

    writer.held()
    writer.write({STATUS: 1}, taken_at=3.0)

    assert read(client, STATUS).body == 1


def test_metrics_are_written_seldom_but_for_who_asks(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "METRICS_INTERVAL_S", 3600.0)
    monkeypatch.setattr(publisher_module, "INTERVAL_S", 0.05)
    made = [0]

    def metrics() -> dict[str, int]:
        made[0] += 1
        return {"made": made[0]}

    sources = {STATUS: lambda: {"ok": True}, METRICS: metrics}
    tenants = cast(TenantTables, NoTenants())
    publisher = Publisher(client, KEYS, "boot", sources, tenants, PeriodicThreads())
    publisher.start()
    try:
        first = read(client, STATUS).number
        wait_for(lambda: read(client, STATUS).number >= first + 3, 20, "three publications")
        assert read(client, METRICS).body == {"made": 1}
        assert read(client, METRICS).taken_at < read(client, STATUS).taken_at

        for number in (2, 3):
            asked = threading.Event()
            publisher.after_next(asked.set)
            assert asked.wait(20)
            assert read(client, METRICS).body["made"] >= number

        client.flushall()
        wait_for(lambda: snapshots.read(client, KEYS, METRICS), 20, "they are there again")
    finally:
        publisher.stop()
    assert made[0] < 8


def test_who_asks_for_a_publication_gets_one_that_begins_after(redis_server: RedisServer) -> None:
    counted = [0]
    with open_redis(redis_server.url) as client:
        publisher = Publisher(
            client, KEYS, "boot", {STATUS: lambda: counted[0]}, cast(TenantTables, NoTenants()), PeriodicThreads()
        )
        publisher.start()
        try:
            for number in range(1, 6):
                counted[0] = number
                publisher.publish_now(60.0)
                assert read(client, STATUS).body == number

            redis_server.kill()
            wait_for(lambda: publisher._outage.is_on, 30, "the publisher notices that Redis is away")
            began = time.monotonic()
            publisher.publish_now(60.0)
            assert time.monotonic() - began < 30
        finally:
            publisher.stop()
