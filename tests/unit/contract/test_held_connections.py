"""Connections that are held: what a failure, a refusal or a Redis that was away in between leaves behind."""

from collections.abc import Iterator

import pytest
import redis

from contract.held_connections import HeldConnections
from contract.redis_client import open_redis
from tests.stack import RedisServer
from tests.waiting import wait_for

pytestmark = pytest.mark.redis


@pytest.fixture
def held(redis_server: RedisServer) -> Iterator[HeldConnections]:
    client = open_redis(redis_server.url)
    yield HeldConnections(client)
    client.close()


def test_several_commands_in_one_go(held: HeldConnections) -> None:
    assert held.exchange([("SET", "a", 1), ("GET", "a")], 2) == ["OK", "1"]


def test_a_silenced_command_has_no_reply(held: HeldConnections) -> None:
    assert held.exchange([("CLIENT", "REPLY", "SKIP"), ("SET", "a", "silent"), ("GET", "a")], 1) == ["silent"]


def test_what_a_refusal_left_unread_is_no_later_answer(held: HeldConnections) -> None:
    with pytest.raises(redis.ResponseError, match="unknown command"):
        held.exchange([("NONSENSE",), ("ECHO", "left over")], 2)

    assert held.exchange([("ECHO", "next")], 1) == ["next"]


def test_a_transaction_with_a_failed_command_raises_and_has_done_the_others(held: HeldConnections) -> None:
    held.exchange([("SET", "text", "x")], 1)

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        held.transaction([("SET", "a", "done"), ("RPUSH", "text", "y")])

    assert held.transaction([("GET", "a"), ("GET", "text")]) == ["done", "x"]


def test_a_connection_that_died_while_it_was_not_used_is_not_used(
    held: HeldConnections, redis_server: RedisServer
) -> None:
    held.exchange([("PING",)], 1)

    redis_server.kill()
    redis_server.start()

    assert held.exchange([("ECHO", "again")], 1) == ["again"]


def test_a_redis_that_is_away_is_an_error_and_then_works_again(
    held: HeldConnections, redis_server: RedisServer
) -> None:
    held.exchange([("PING",)], 1)
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        held.exchange([("PING",)], 1)

    redis_server.start()

    def works() -> bool:
        return held.exchange([("ECHO", "back")], 1) == ["back"]

    assert wait_for(works, 10, "it works again")
