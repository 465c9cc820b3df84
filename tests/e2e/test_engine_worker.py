"""The engine's process with a real Redis beside it: ready, killed, refused, cut off, stopped."""

import ctypes
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import snapshots
from contract.command_queue import WAIT_SLICE_S, CommandSubmitter
from contract.commands import ClearCache, DeleteQuota, PingEngine, SetQuota
from contract.engine_record import ALIVE_S, EngineRecord, read_record, write_redis_beat
from contract.errors import ContractError, EngineAway
from contract.keys import Keys
from contract.redis_client import open_blocking_redis, open_redis
from tests.stack import EngineProcess, RedisServer, free_port
from tests.waiting import wait_for
from workers.engine_worker import EXIT_USURPED
from workers.errors import EXIT_CANNOT_START

pytestmark = pytest.mark.redis
KEYS = Keys("default")


class Operator:
    """What a person with the queue and redis-cli can do."""

    def __init__(self, url: str) -> None:
        self.redis = open_redis(url)
        self._blocking = open_blocking_redis(url, block_s=WAIT_SLICE_S)
        self.submitter = CommandSubmitter(self.redis, self._blocking, KEYS, 100, 1 << 20)

    def call(self, command: Any) -> dict[str, Any]:
        return self.submitter.call(command)

    def tries(self, command: Any) -> dict[str, Any] | None:
        try:
            return self.call(command)
        except ContractError:
            return None

    def snapshot(self, name: str) -> snapshots.Snapshot:
        found = snapshots.read(self.redis, KEYS, name)
        assert found is not None, f"no snapshot {name}"
        return found

    def close(self) -> None:
        self.redis.close()
        self._blocking.close()


@pytest.fixture
def operator(redis_server: RedisServer) -> Iterator[Operator]:
    operator = Operator(redis_server.url)
    yield operator
    operator.close()


def has_pool(boot_id: str) -> bool:
    return any(name.endswith(boot_id) for name in os.listdir("/dev/shm"))


def test_a_ready_engine_has_published_everything(engine_process: EngineProcess, operator: Operator) -> None:
    boot_id = operator.call(PingEngine())["boot_id"]

    assert operator.snapshot(snapshots.STATUS).body["boot_id"] == boot_id
    assert operator.snapshot(snapshots.CONF).body["mp"]["chunk_size"] == 256
    assert 'larder_commands_total{outcome="replied"}' in operator.snapshot(snapshots.METRICS).body["text"]
    names = {entry["name"] for entry in operator.snapshot(snapshots.PERIODIC_THREADS).body}
    assert {"command-loop", "publisher", "heartbeat", "data-plane", "l1-eviction"} <= names
    assert operator.snapshot(snapshots.STATUS).body["unhealthy_threads"] == []
    row = json.loads(str(operator.redis.hget(KEYS.instances, "default")))
    assert row["boot_id"] == boot_id
    assert row["address"] == f"127.0.0.1:{engine_process.port}"


def test_every_key_is_in_the_list(engine_process: EngineProcess, operator: Operator) -> None:
    operator.call(SetQuota("", 1))

    keys = {str(key) for key in operator.redis.scan_iter("*")}

    fixed = {KEYS.engine, KEYS.commands, KEYS.quota, KEYS.quota_epoch, KEYS.instances}
    fixed |= {KEYS.snapshot(name) for name in snapshots.NAMES}
    assert fixed <= keys
    assert {key for key in keys - fixed if not key.startswith(KEYS.command(""))} == set()


def test_a_stopped_engine_leaves_nothing_behind(engine_process: EngineProcess, operator: Operator) -> None:
    boot_id = operator.call(PingEngine())["boot_id"]
    assert has_pool(boot_id)

    assert engine_process.stop() == 0

    assert operator.redis.exists(KEYS.engine) == 0
    assert operator.redis.hgetall(KEYS.instances) == {}
    assert engine_process.record() == {}
    assert not has_pool(boot_id)


def test_quotas_outlive_a_killed_engine_and_its_successor_takes_over_at_once(
    engine_process: EngineProcess, operator: Operator
) -> None:
    operator.call(SetQuota("alice", 5))
    operator.call(SetQuota("", 7))
    operator.call(SetQuota("gone", 9))
    assert operator.call(DeleteQuota("gone")) == {"removed": True}
    first_boot = operator.call(PingEngine())["boot_id"]

    engine_process.kill()
    began = time.monotonic()
    engine_process.start()

    assert time.monotonic() - began < 20
    second_boot = operator.call(PingEngine())["boot_id"]
    assert second_boot != first_boot
    assert operator.redis.hgetall(KEYS.quota) == {"alice": "5", "_default": "7"}
    assert operator.call(DeleteQuota("alice")) == {"removed": True}
    assert operator.call(DeleteQuota("alice")) == {"removed": False}
    assert has_pool(second_boot)
    assert not has_pool(first_boot)


def test_a_killed_engine_is_missing_after_three_beats(
    engine_process: EngineProcess, operator: Operator, redis_server: RedisServer
) -> None:
    engine_process.kill()
    began = time.monotonic()

    def is_away() -> bool:
        record = read_record(operator.redis, KEYS, engine_process.run_dir)
        return record is None or not record.is_alive(time.time())

    wait_for(is_away, 10, "the engine counts as dead")
    assert time.monotonic() - began < 4.0
    with pytest.raises(EngineAway):
        operator.call(PingEngine())
    engine_process.start()


def test_a_second_engine_of_a_live_instance_is_refused(
    engine_process: EngineProcess, redis_server: RedisServer, tmp_path: Path
) -> None:
    second = EngineProcess(tmp_path / "second", redis_server.url)
    second.launch()
    assert second.process is not None

    assert second.process.wait(30) == EXIT_CANNOT_START
    assert "instance_id: 'default' belongs to boot" in second.log_tail()
    assert engine_process.record()["state"] == "ready"


def test_a_second_engine_in_the_same_directory_is_refused(
    engine_process: EngineProcess, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = {"data_dir": engine_process.settings["data_dir"], "instance_id": "other"}
    second = EngineProcess(tmp_path / "second", redis_server.url, **settings)
    second.launch()
    assert second.process is not None

    assert second.process.wait(30) == EXIT_CANNOT_START
    assert f"in use by another engine (process {engine_process.pid})" in second.log_tail()
    assert engine_process.record()["state"] == "ready"


def test_an_occupied_port_stops_the_start_with_its_number(
    engine_process: EngineProcess, redis_server: RedisServer, tmp_path: Path
) -> None:
    second = EngineProcess(tmp_path / "second", redis_server.url, instance_id="other", port=engine_process.port)
    second.launch()
    assert second.process is not None

    assert second.process.wait(30) == EXIT_CANNOT_START
    assert str(engine_process.port) in second.log_tail(3)
    assert second.record()["state"] == "failed"
    assert str(engine_process.port) in second.record()["error"]


def test_without_redis_an_engine_waits_and_says_so(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.stop()
    engine = EngineProcess(tmp_path / "larder", redis_server.url)
    engine.launch()
    try:
        wait_for(lambda: "Redis cannot be reached" in engine.record().get("error", ""), 30, "the record says why")
        assert engine.record()["state"] == "starting"

        redis_server.start()

        wait_for(engine.is_ready, 30, "the engine is ready")
        assert engine.record()["error"] == ""
        assert engine.log_tail().count("cannot reach Redis") == 1
    finally:
        engine.stop()


def test_an_unfit_redis_stops_the_start(redis_server: RedisServer, operator: Operator, tmp_path: Path) -> None:
    operator.redis.config_set("maxmemory-policy", "allkeys-lru")
    engine = EngineProcess(tmp_path / "larder", redis_server.url)
    engine.launch()
    assert engine.process is not None

    assert engine.process.wait(30) == EXIT_CANNOT_START
    assert "redis_url" in engine.log_tail()
    assert "allkeys-lru" in engine.log_tail()


def test_an_engine_outlives_a_redis_that_dies_and_comes_back(
    engine_process: EngineProcess, operator: Operator, redis_server: RedisServer
) -> None:
    operator.call(SetQuota("alice", 5))
    redis_server.kill()
    beat = engine_process.record()["beat_at"]

    wait_for(lambda: float(engine_process.record()["beat_at"]) > float(beat) + 2, 20, "the file's beat goes on")
    assert engine_process.record()["state"] == "ready"
    redis_server.start()

    wait_for(lambda: operator.tries(SetQuota("bob", 6)), 30, "commands work again")
    assert operator.redis.hgetall(KEYS.quota) == {"alice": "5", "bob": "6"}
    for what in ("command loop", "publisher", "heartbeat"):
        assert engine_process.log_tail(1000).count(f"{what}: cannot reach Redis") == 1


def test_a_frozen_redis_does_not_age_the_beat(
    engine_process: EngineProcess, operator: Operator, redis_server: RedisServer
) -> None:
    redis_server.freeze()
    try:
        beat = float(engine_process.record()["beat_at"])
        oldest_s = 0.0

        def four_seconds_on() -> bool:
            nonlocal oldest_s
            now = float(engine_process.record()["beat_at"])
            oldest_s = max(oldest_s, time.time() - now)
            return now > beat + 4

        wait_for(four_seconds_on, 30, "the file's beat goes on")
    finally:
        redis_server.thaw()

    assert oldest_s < ALIVE_S
    wait_for(lambda: operator.tries(PingEngine()), 30, "commands work again")


def test_a_flushed_redis_gets_everything_back(engine_process: EngineProcess, operator: Operator) -> None:
    operator.call(SetQuota("alice", 5))
    epoch = operator.redis.get(KEYS.quota_epoch)

    operator.redis.flushall()

    wait_for(lambda: operator.redis.hgetall(KEYS.quota) == {"alice": "5"}, 20, "the quotas are back")
    wait_for(lambda: operator.tries(ClearCache(True)), 20, "commands work again")
    assert operator.redis.get(KEYS.quota_epoch) == epoch
    assert operator.redis.hexists(KEYS.instances, "default")


def test_an_engine_whose_instance_was_taken_over_stops(
    engine_process: EngineProcess, operator: Operator, redis_server: RedisServer
) -> None:
    os.kill(engine_process.pid, signal.SIGSTOP)
    wait_for(lambda: not operator.redis.exists(KEYS.engine), 10, "its beat is forgotten")
    now = time.time()
    write_redis_beat(operator.redis, KEYS, EngineRecord("usurper", 1, "elsewhere", "ready", "", now, now, 0.0))

    os.kill(engine_process.pid, signal.SIGCONT)

    assert engine_process.process is not None
    assert engine_process.process.wait(30) == EXIT_USURPED
    assert operator.redis.hget(KEYS.engine, "boot_id") in ("usurper", None)
    assert "boot usurper took over instance default" in engine_process.log_tail()


def test_a_signal_to_any_of_its_threads_stops_it(engine_process: EngineProcess) -> None:
    """Which one gets a signal is the kernel's choice: not the main thread when that was stopped a moment ago."""
    tasks = [int(task.name) for task in Path(f"/proc/{engine_process.pid}/task").iterdir()]
    loops = [task for task in tasks if task != engine_process.pid and not _blocks_signals(engine_process.pid, task)]

    assert ctypes.CDLL(None).tgkill(engine_process.pid, loops[-1], signal.SIGTERM) == 0

    assert engine_process.process is not None
    assert engine_process.process.wait(30) == 0


def _blocks_signals(pid: int, task: int) -> bool:
    status = Path(f"/proc/{pid}/task/{task}/status").read_text()
    return int(status.partition("SigBlk:")[2].split()[0], 16) != 0


def test_a_bad_setting_stops_the_start(redis_server: RedisServer, tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path / "larder", redis_server.url, chunk_size="many", port=free_port())
    engine.launch()
    assert engine.process is not None

    assert engine.process.wait(30) == EXIT_CANNOT_START
    assert "chunk_size: got 'many' (from LARDER_CHUNK_SIZE), allowed: a whole number from 1" in engine.log_tail()
