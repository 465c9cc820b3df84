"""One engine per directory, one live boot per instance id."""

import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from contract.engine_record import EngineRecord, read_redis_record, write_redis_beat
from contract.keys import Keys
from contract.redis_client import open_redis
from tests.stack import RedisServer
from workers.errors import CannotStart
from workers.ownership import claim_instance, lock_file

KEYS = Keys("owned")


def record(boot_id: str, *, pid: int | None = None, host: str | None = None) -> EngineRecord:
    now = time.time()
    host = socket.gethostname() if host is None else host
    return EngineRecord(boot_id, os.getpid() if pid is None else pid, host, "ready", "", now, now, 0.0)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(redis_server.url)
    yield client
    client.close()


@pytest.fixture
def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def claim(client: redis.Redis, boot_id: str) -> bool:
    return claim_instance(client, KEYS, record(boot_id), threading.Event())


def test_a_free_instance_is_ours_at_once(client: redis.Redis) -> None:
    assert claim(client, "new")
    found = read_redis_record(client, KEYS)
    assert found is not None
    assert found.boot_id == "new"


def test_a_dead_process_of_this_host_is_replaced_at_once(client: redis.Redis, dead_pid: int) -> None:
    write_redis_beat(client, KEYS, record("old", pid=dead_pid))
    began = time.monotonic()

    assert claim(client, "new")
    assert time.monotonic() - began < 1.0


def test_the_last_beat_of_another_host_is_waited_out(client: redis.Redis, dead_pid: int) -> None:
    write_redis_beat(client, KEYS, record("old", pid=dead_pid, host="elsewhere"))

    assert claim(client, "new")
    assert client.hget(KEYS.engine, "boot_id") == "new"


def test_one_that_beats_on_is_left_alone(client: redis.Redis) -> None:
    old = record("old", pid=1, host="elsewhere")
    write_redis_beat(client, KEYS, old)
    over = threading.Event()

    def beat_on() -> None:
        while not over.wait(0.3):
            write_redis_beat(client, KEYS, dataclasses.replace(old, beat_at=time.time()))

    beating = threading.Thread(target=beat_on)
    beating.start()
    try:
        with pytest.raises(CannotStart, match="belongs to boot old, process 1 on elsewhere, which is alive"):
            claim(client, "new")
    finally:
        over.set()
        beating.join()
    assert client.hget(KEYS.engine, "boot_id") == "old"


def test_asked_to_stop_it_does_not_claim(client: redis.Redis) -> None:
    stopping = threading.Event()
    stopping.set()

    assert not claim_instance(client, KEYS, record("new"), stopping)
    assert client.exists(KEYS.engine) == 0


def test_a_lock_is_held_while_its_file_is_open(tmp_path: Path) -> None:
    path = tmp_path / "run" / "engine.lock"
    held = lock_file(path, "engine")

    with pytest.raises(
        CannotStart, match=rf"data_dir: {tmp_path} is in use by another engine \(process {os.getpid()}\)"
    ):
        lock_file(path, "engine")
    held.close()

    lock_file(path, "engine").close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CannotStart, match=f"data_dir: {tmp_path}/file cannot be used"):
        lock_file(tmp_path / "file" / "run" / "engine.lock", "engine")
