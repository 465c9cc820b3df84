"""Connections that fail in time, never repeat a call, and keep passwords out of what people read."""

import time

import pytest
import redis

from contract.errors import RedisAway
from contract.redis_client import check_server, open_blocking_redis, open_redis
from tests.stack import RedisServer, free_port


def test_nobody_listening_is_known_at_once() -> None:
    client = open_redis(f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()

    with pytest.raises(RedisAway):
        check_server(client)
    assert time.monotonic() - began < 1.0


def test_a_server_that_does_not_answer_is_given_up_after_a_second(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    client.ping()
    redis_server.freeze()
    began = time.monotonic()
    try:
        with pytest.raises(redis.TimeoutError):
            client.ping()
    finally:
        redis_server.thaw()
        client.close()

    assert 0.9 < time.monotonic() - began < 2.5


def test_a_blocking_read_outlasts_its_block(redis_server: RedisServer) -> None:
    client = open_blocking_redis(redis_server.url, block_s=0.3)
    try:
        assert client.blpop(["nothing"], timeout=0.3) is None
    finally:
        client.close()


def test_a_supported_server_is_fit(any_redis: RedisServer) -> None:
    client = open_redis(any_redis.url)
    try:
        assert check_server(client) is None
        client.config_set("maxmemory-policy", "volatile-lru")
        assert "noeviction is needed" in str(check_server(client))
    finally:
        client.close()
