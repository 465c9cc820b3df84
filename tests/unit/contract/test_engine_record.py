"""The heartbeat: two places, the fresher one counts, and nobody else's is overwritten."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from contract.engine_record import (
    ALIVE_S,
    RECORD_FILE,
    EngineRecord,
    forget_beat,
    read_file_record,
    read_record,
    write_beat,
    write_file_beat,
    write_redis_beat,
)
from contract.errors import RedisAway
from contract.keys import Keys
from contract.redis_client import open_redis
from tests.stack import RedisServer, free_port

KEYS = Keys("beats")


def record(boot_id: str = "b1", *, beat_at: float | None = None, state: str = "ready") -> EngineRecord:
    now = time.time()
    return EngineRecord(boot_id, 7, "host", state, "", now - 5, now if beat_at is None else beat_at, 0.25)


@pytest.fixture
def client(any_redis: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(any_redis.url)
    yield client
    client.close()


def test_a_beat_is_alive_for_three_seconds_on_either_side() -> None:
    beat = record(beat_at=1000.0)

    assert beat.is_alive(1000.0 + ALIVE_S - 0.01)
    assert not beat.is_alive(1000.0 + ALIVE_S)
    assert not beat.is_alive(1000.0 - ALIVE_S)


def test_a_beat_can_be_read_from_both_places(client: redis.Redis, tmp_path: Path) -> None:
    written = record()
    write_beat(client, KEYS, tmp_path, written)

    for found in (read_record(client, KEYS, None), read_record(None, KEYS, tmp_path)):
        assert found is not None
        assert dataclasses.replace(found, beat_at=0, started_at=0) == dataclasses.replace(
            written, beat_at=0, started_at=0
        )
        assert abs(found.beat_at - written.beat_at) < 0.5
    assert 0 < client.pttl(KEYS.engine) <= ALIVE_S * 1000


def test_the_fresher_one_counts(client: redis.Redis, tmp_path: Path) -> None:
    write_file_beat(tmp_path, record("old", beat_at=time.time() - 60))
    write_redis_beat(client, KEYS, record("new"))

    found = read_record(client, KEYS, tmp_path)

    assert found is not None
    assert found.boot_id == "new"


def test_a_fresh_file_answers_while_redis_is_away(tmp_path: Path) -> None:
    nobody = open_redis(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(RedisAway):
        read_record(nobody, KEYS, tmp_path)

    write_file_beat(tmp_path, record())

    found = read_record(nobody, KEYS, tmp_path)
    assert found is not None
    assert found.is_alive(time.time())


def test_another_boots_fresh_beat_is_left_alone(client: redis.Redis) -> None:
    assert write_redis_beat(client, KEYS, record("b1")) == "b1"
    assert write_redis_beat(client, KEYS, record("b2")) == "b1"
    assert write_redis_beat(client, KEYS, record("b2"), replaces="b1") == "b2"
    assert client.hget(KEYS.engine, "boot_id") == "b2"


def test_only_its_own_beat_is_forgotten(client: redis.Redis, tmp_path: Path) -> None:
    write_beat(client, KEYS, tmp_path, record("b1"))

    forget_beat(client, KEYS, tmp_path, "b2")
    assert client.exists(KEYS.engine) == 1

    forget_beat(client, KEYS, tmp_path, "b1")
    assert client.exists(KEYS.engine) == 0
    assert read_record(client, KEYS, tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"boot_id": "x", "pid": "many"}'])
def test_a_file_nobody_can_read_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)

    assert read_file_record(tmp_path / RECORD_FILE) is None
