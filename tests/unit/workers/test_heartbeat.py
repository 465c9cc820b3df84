"""The engine's state as others see it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from contract.engine_record import RECORD_FILE, EngineRecord, read_file_record, read_redis_record, write_redis_beat
from contract.keys import Keys
from contract.redis_client import open_redis
from engine.periodic import PeriodicThreads
from tests.stack import RedisServer, free_port
from tests.waiting import wait_for
from workers.heartbeat import STUCK_DATA_PLANE_S, Heartbeat

KEYS = Keys("beating")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(redis_server.url)
    yield client
    client.close()


@pytest.fixture
def heartbeat(tmp_path: Path) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(KEYS, tmp_path, "boot", "127.0.0.1:1", PeriodicThreads())
    yield heartbeat
    heartbeat.stop(forget=False)


def in_file(directory: Path) -> EngineRecord:
    record = read_file_record(directory / RECORD_FILE)
    assert record is not None
    return record


def test_a_data_plane_that_does_not_turn_is_a_failed_engine(heartbeat: Heartbeat, tmp_path: Path) -> None:
    age_s = [0.0]
    heartbeat.watch_data_plane(lambda: age_s[0])
    heartbeat.set_state("ready")
    assert in_file(tmp_path).state == "ready"

    age_s[0] = STUCK_DATA_PLANE_S + 1
    heartbeat.set_state("ready")
    assert (in_file(tmp_path).state, in_file(tmp_path).error) == (
        "failed",
        "the data plane's loop has not turned for 11 s",
    )

    age_s[0] = 0.1
    heartbeat.set_state("ready")
    assert (in_file(tmp_path).state, in_file(tmp_path).error) == ("ready", "")


def test_nothing_goes_to_redis_before_the_instance_is_ours(
    heartbeat: Heartbeat, client: redis.Redis, tmp_path: Path
) -> None:
    heartbeat.set_state("starting")
    assert read_redis_record(client, KEYS) is None

    heartbeat.go_to_redis(client, lambda holder: None)
    heartbeat.set_state("ready")

    found = read_redis_record(client, KEYS)
    assert found is not None
    assert (found.boot_id, found.state) == ("boot", "ready")


class WatchedRedis(redis.Redis):
    """Notes what the file said whenever Redis was written to."""

    directory: Path
    states_in_file: list[str]

    def execute_command(self, *words: Any, **options: Any) -> Any:
        record = read_file_record(self.directory / RECORD_FILE)
        self.states_in_file.append("none" if record is None else record.state)
        return super().execute_command(*words, **options)


def test_who_reads_the_file_is_told_of_readiness_no_sooner_than_the_queue(
    heartbeat: Heartbeat, redis_server: RedisServer, tmp_path: Path
) -> None:
    with WatchedRedis.from_url(redis_server.url, decode_responses=True) as client:
        client.directory, client.states_in_file = tmp_path, []
        heartbeat.go_to_redis(client, lambda holder: None)
        heartbeat.set_state("starting")
        assert set(client.states_in_file) == {"starting"}

        client.states_in_file.clear()
        heartbeat.set_state("ready")
        assert set(client.states_in_file) == {"starting"}
        assert in_file(tmp_path).state == "ready"

        client.states_in_file.clear()
        heartbeat.set_state("failed", "as a test wants it")
        assert set(client.states_in_file) == {"failed"}


def test_the_file_beats_on_without_redis(heartbeat: Heartbeat, tmp_path: Path) -> None:
    heartbeat.go_to_redis(open_redis(f"redis://127.0.0.1:{free_port()}/0"), lambda holder: None)
    heartbeat.set_state("ready")
    first = in_file(tmp_path).beat_at

    heartbeat.start()

    wait_for(lambda: in_file(tmp_path).beat_at > first, 10, "the next beat")


def test_another_boot_in_our_place_is_told(heartbeat: Heartbeat, client: redis.Redis, tmp_path: Path) -> None:
    holders: list[str] = []
    heartbeat.go_to_redis(client, holders.append)
    heartbeat.set_state("ready")
    other = EngineRecord("other", 1, "elsewhere", "ready", "", 0.0, 0.0, 0.0)
    assert write_redis_beat(client, KEYS, other, replaces="boot") == "other"

    heartbeat.set_state("ready")

    assert holders == ["other"]
    assert client.hget(KEYS.engine, "boot_id") == "other"


def test_a_run_directory_that_cannot_be_written_does_not_end_the_beats(client: redis.Redis, tmp_path: Path) -> None:
    heartbeat = Heartbeat(KEYS, tmp_path / "missing", "boot", "", PeriodicThreads())
    heartbeat.go_to_redis(client, lambda holder: None)

    heartbeat.set_state("ready")

    assert read_redis_record(client, KEYS) is not None
