"""Redis killed, frozen, flushed, in mid-command and between commands: the queue goes on, nothing is applied twice."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract import snapshots
from contract.command_taker import GROUP
from contract.commands import DeleteQuota, PingEngine, SetQuota
from contract.errors import ContractError, DeadlinePassed, EngineAway, RedisAway
from tests.e2e.queue_side import KEYS, QueueSide, queue_side
from tests.stack import RedisServer
from tests.waiting import wait_for

pytestmark = pytest.mark.redis


@pytest.fixture
def side(tmp_path: Path, any_redis: RedisServer) -> Iterator[QueueSide]:
    with queue_side(any_redis.url, tmp_path) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def begun(side: QueueSide, salt: str) -> None:
    wait_for(lambda: salt in side.engine.effects, 20, f"{salt} has begun")


def works_again(side: QueueSide, salt: str) -> bool:
    """Whether a command goes through; while Redis and the heartbeat come back it may not yet."""
    try:
        return side.submitter.call(SetQuota(salt, 1)) == {"cache_salt": salt, "limit_bytes": 1}
    except (RedisAway, EngineAway, DeadlinePassed):
        return False


def test_redis_killed_in_mid_command(side: QueueSide, any_redis: RedisServer, pool: ThreadPoolExecutor) -> None:
    side.engine.gate.clear()
    call = pool.submit(side.submitter.call, DeleteQuota("a"))
    begun(side, "a")

    any_redis.kill()
    side.engine.gate.set()
    with pytest.raises(RedisAway):
        call.result(20)
    any_redis.start()

    wait_for(lambda: works_again(side, "b"), 30, "commands work again")
    wait_for(lambda: side.taker.in_hand() == 0, 20, "the kept answer was sent")
    assert side.engine.effects.count("a") == 1
    assert side.client.xlen(KEYS.commands) == 0
    assert side.taker.counts()["replied"] >= 2


def test_a_reply_kept_while_redis_was_away_reaches_who_asks_again(
    side: QueueSide, any_redis: RedisServer, pool: ThreadPoolExecutor
) -> None:
    side.engine.gate.clear()
    call = pool.submit(side.submitter.call, SetQuota("a", 5), command_id="told")
    begun(side, "a")
    side.client.config_set("appendfsync", "always")  # the command is in the file before Redis dies
    side.client.set("x", "y")
    any_redis.kill()
    side.engine.gate.set()
    with pytest.raises(RedisAway):
        call.result(20)

    any_redis.start()

    wait_for(lambda: works_again(side, "b"), 30, "commands work again")
    assert side.submitter.call(SetQuota("a", 5), command_id="told") == {"cache_salt": "a", "limit_bytes": 5}
    assert side.engine.effects.count("a") == 1


def test_a_frozen_redis_is_noticed_within_two_seconds(side: QueueSide, any_redis: RedisServer) -> None:
    any_redis.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(RedisAway):
            side.submitter.call(SetQuota("frozen", 1))
        took_s = time.monotonic() - began
    finally:
        any_redis.thaw()

    assert took_s < 2.0
    wait_for(lambda: works_again(side, "after"), 30, "commands work again")
    assert side.engine.effects.count("frozen") <= 1


def test_a_change_whose_submission_got_no_answer_may_still_be_done(side: QueueSide, any_redis: RedisServer) -> None:
    any_redis.freeze()
    try:
        with pytest.raises(RedisAway, match=r"quota\.delete may still be done"):
            side.submitter.call(DeleteQuota("frozen"))
    finally:
        any_redis.thaw()


def test_redis_frozen_in_mid_command(side: QueueSide, any_redis: RedisServer, pool: ThreadPoolExecutor) -> None:
    side.engine.gate.clear()
    call = pool.submit(side.submitter.call, DeleteQuota("a"))
    begun(side, "a")
    any_redis.freeze()
    try:
        side.engine.gate.set()
        began = time.monotonic()
        with pytest.raises(RedisAway):
            call.result(20)
        took_s = time.monotonic() - began
    finally:
        any_redis.thaw()

    assert took_s < 2.5
    wait_for(lambda: works_again(side, "after"), 30, "commands work again")
    wait_for(lambda: side.taker.in_hand() == 0, 20, "the answer was sent")
    assert side.engine.effects.count("a") == 1
    assert side.client.xlen(KEYS.commands) == 0


def test_a_flush_loses_no_quota_and_no_later_command(side: QueueSide) -> None:
    side.submitter.call(SetQuota("", 3))
    side.submitter.call(SetQuota("alice", 5))

    side.client.flushall()

    wait_for(lambda: works_again(side, "bob"), 30, "commands work again")
    assert side.client.hgetall(KEYS.quota) == {"_default": "3", "alice": "5", "bob": "1"}
    wait_for(lambda: snapshots.read(side.client, KEYS, snapshots.STATUS), 10, "the snapshot is back")
    assert json.loads(str(side.client.hget(KEYS.usage, "alice"))) == {"l1_bytes": 7, "l2_bytes": 0}


def test_a_flush_in_mid_command_does_not_lose_its_reply(side: QueueSide, pool: ThreadPoolExecutor) -> None:
    side.engine.gate.clear()
    call = pool.submit(side.submitter.call, SetQuota("a", 5))
    begun(side, "a")

    side.client.flushall()
    side.engine.gate.set()

    assert call.result(20) == {"cache_salt": "a", "limit_bytes": 5}
    assert side.engine.effects == ["a"]
    assert side.client.hget(KEYS.quota, "a") == "5"


def test_a_group_removed_by_hand_is_made_again_and_reads_what_was_missed(side: QueueSide) -> None:
    side.submitter.call(PingEngine())

    side.client.xgroup_destroy(KEYS.commands, GROUP)

    assert side.submitter.call(SetQuota("a", 1)) == {"cache_salt": "a", "limit_bytes": 1}
    assert side.engine.effects == ["a"]


def test_an_entry_that_somebody_else_took_is_done_after_the_next_reconnect(
    side: QueueSide, any_redis: RedisServer
) -> None:
    side.engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(_quietly, side, "first")
        begun(side, "first")
        pool.submit(_quietly, side, "second")
        wait_for(lambda: side.client.xlen(KEYS.commands) == 2, 20, "both wait")
        side.client.xreadgroup(GROUP, "a person with redis-cli", {KEYS.commands: ">"})
        side.taker.recover()
        side.engine.gate.set()

    wait_for(lambda: side.client.xlen(KEYS.commands) == 0, 20, "both are answered")
    assert side.engine.effects == ["first", "second"]


def _quietly(side: QueueSide, salt: str) -> None:
    try:
        side.submitter.call(SetQuota(salt, 1))
    except ContractError:
        pass


def test_a_silent_engine_is_reported_missing_after_three_beats(tmp_path: Path, any_redis: RedisServer) -> None:
    with queue_side(any_redis.url, tmp_path) as side:
        assert side.submitter.call(PingEngine()) == {"boot_id": side.engine.boot_id}
        side.heartbeat.stop(forget=False)

        def state() -> str:
            try:
                side.submitter.call(PingEngine())
            except EngineAway as away:
                return away.state
            return ""

        assert wait_for(state, 10, "the engine counts as away") == "missing"
