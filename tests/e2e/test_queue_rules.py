"""What the queue refuses, drops and remembers: bounds, deadlines, ids, malformed entries."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract import snapshots
from contract.command_queue import WAIT_SLICE_S
from contract.commands import ChecksumBlocks, DeleteQuota, PingEngine, SetQuota
from contract.errors import CommandFailed, DeadlinePassed, EngineAway, OutcomeUnknown, QueueFull
from contract.keys import DEAD_MAX_ENTRIES
from tests.e2e.queue_side import KEYS, QueueSide, queue_side
from tests.stack import RedisServer
from tests.waiting import wait_for
from workers.slow_commands import MAX_WAITING, THREADS

pytestmark = pytest.mark.redis


@pytest.fixture
def side(tmp_path: Path, any_redis: RedisServer) -> Iterator[QueueSide]:
    with queue_side(any_redis.url, tmp_path, max_length=6, max_bytes=16_384) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def dead(side: QueueSide) -> list[dict[str, str]]:
    return [fields for _, fields in side.client.xrange(KEYS.dead)]  # type: ignore[misc,union-attr]


def add_by_hand(side: QueueSide, **fields: Any) -> None:
    side.client.xadd(KEYS.commands, fields)


def fill(side: QueueSide, pool: ThreadPoolExecutor, count: int, salt: str = "s") -> list[Any]:
    """Holds the loop with a first command and lets the others wait behind it."""
    side.engine.gate.clear()
    calls = [pool.submit(side.submitter.call, SetQuota(f"{salt}{number}", 1)) for number in range(count)]
    wait_for(lambda: side.client.xlen(KEYS.commands) == count, 20, f"{count} commands wait")
    return calls


def test_a_full_queue_refuses_and_keeps_what_it_has(side: QueueSide, pool: ThreadPoolExecutor) -> None:
    calls = fill(side, pool, 6)

    with pytest.raises(QueueFull, match="6 commands") as refusal:
        side.submitter.call(SetQuota("one too many", 1))
    assert refusal.value.retry_after_s > 0
    side.engine.gate.set()

    assert [call.result(20)["limit_bytes"] for call in calls] == [1] * 6
    assert sorted(side.engine.effects) == [f"s{number}" for number in range(6)]


def test_a_queue_full_of_bytes_refuses_and_keeps_what_it_has(side: QueueSide, pool: ThreadPoolExecutor) -> None:
    calls = fill(side, pool, 2, salt="x" * 1000)
    big = ChecksumBlocks(1, tuple(range(3000)), 1, False)

    with pytest.raises(QueueFull, match="bytes"):
        side.submitter.call(big)
    side.engine.gate.set()

    assert [call.result(20)["limit_bytes"] for call in calls] == [1, 1]
    assert side.submitter.call(big) == {"num_chunks": 1}


def test_a_body_that_could_never_fit_is_the_callers_fault(side: QueueSide) -> None:
    with pytest.raises(CommandFailed, match="at most 16384") as failure:
        side.submitter.call(ChecksumBlocks(1, tuple(range(10_000)), 1, False))

    assert failure.value.code == "bad_request"
    assert side.client.xlen(KEYS.commands) == 0


def test_an_expired_command_is_not_run(
    side: QueueSide, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill(side, pool, 1)[0]
    monkeypatch.setattr(DeleteQuota, "timeout_s", 0.3)

    with pytest.raises(DeadlinePassed):
        side.submitter.call(DeleteQuota("late"))
    side.engine.gate.set()

    first.result(20)
    (letter,) = wait_for(lambda: dead(side), 20, "the dead letter is there")
    assert letter["op"] == "quota.delete"
    assert "after its deadline" in letter["reason"]
    assert side.engine.effects == ["s0"]
    assert side.taker.counts()["expired"] == 1


def test_a_command_that_must_not_run_twice_delivered_twice(side: QueueSide) -> None:
    fields = {"id": "twice", "op": "quota.delete", "body": '{"cache_salt":"a"}', "deadline": f"{time.time() + 60:.3f}"}

    add_by_hand(side, **fields)
    add_by_hand(side, **fields)

    (letter,) = wait_for(lambda: dead(side), 20, "the second one is a dead letter")
    wait_for(lambda: side.client.llen(KEYS.reply("twice")) == 2, 20, "both are answered")
    assert "outcome unknown" in letter["reason"]
    assert side.engine.effects == ["a"]
    assert side.client.xlen(KEYS.commands) == 0


def test_an_unknown_outcome_is_an_error_of_its_own(side: QueueSide) -> None:
    side.client.set(KEYS.command("again"), "started by another boot")
    add_by_hand(side, id="again", op="quota.delete", body='{"cache_salt":"a"}', deadline=f"{time.time() + 60:.3f}")

    with pytest.raises(OutcomeUnknown):
        side.submitter.call(DeleteQuota("a"), command_id="again")
    assert side.engine.effects == []


def test_the_same_id_is_run_once_and_its_second_submitter_gets_the_reply(side: QueueSide) -> None:
    add_by_hand(side, id="same", op="quota.set", body='{"cache_salt":"a","limit_bytes":4}',
                deadline=f"{time.time() + 60:.3f}")  # fmt: skip
    side.client.set(KEYS.command("same"), "seen")

    assert side.submitter.call(SetQuota("a", 4), command_id="same") == {"cache_salt": "a", "limit_bytes": 4}
    assert side.engine.effects == ["a"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"op": "quota.set"}, "no id"),
        ({"id": "x", "op": "quota.set", "body": "{}"}, "deadline"),
        ({"id": "x", "op": "rm -rf", "body": "{}", "deadline": "1"}, "unknown command"),
        ({"id": "x", "op": "quota.set", "body": "[" * 5000, "deadline": "1"}, "not JSON"),
        ({"id": "x", "op": "quota.set", "body": '{"cache_salt":1,"limit_bytes":1}', "deadline": "1"}, "cache_salt"),
    ],
)
def test_what_nobody_can_read_becomes_a_dead_letter(side: QueueSide, fields: dict[str, str], reason: str) -> None:
    add_by_hand(side, **fields)

    (letter,) = wait_for(lambda: dead(side), 20, "the dead letter is there")
    assert reason in letter["reason"]
    assert side.submitter.call(PingEngine()) == {"boot_id": side.engine.boot_id}
    assert side.client.xlen(KEYS.commands) == 0


def test_a_reply_that_cannot_be_written_stops_no_other(side: QueueSide, pool: ThreadPoolExecutor) -> None:
    (first,) = fill(side, pool, 1)
    ping = {"op": "engine.ping", "body": "{}", "deadline": f"{time.time() + 60:.3f}"}
    side.client.set(KEYS.reply("wrong"), "a text, where a list belongs")
    for command_id in ("before", "wrong", "after"):
        add_by_hand(side, id=command_id, **ping)
    side.engine.gate.set()

    first.result(20)
    (letter,) = wait_for(lambda: dead(side), 20, "the dead letter is there")

    assert letter["id"] == "wrong"
    assert "WRONGTYPE" in letter["reason"]
    assert side.submitter.call(PingEngine()) == {"boot_id": side.engine.boot_id}
    assert [side.client.llen(KEYS.reply(command_id)) for command_id in ("before", "after")] == [1, 1]
    wait_for(lambda: side.taker.in_hand() == 0, 20, "nothing is in hand")
    assert side.client.xlen(KEYS.commands) == 0
    assert len(dead(side)) == 1


def test_dead_letters_that_cannot_be_written_stop_no_answer(side: QueueSide) -> None:
    side.client.set(KEYS.dead, "a text, where a stream belongs")

    add_by_hand(side, id="unread", op="nonsense", body="{}", deadline="1")

    wait_for(lambda: side.client.llen(KEYS.reply("unread")) == 1, 20, "it is answered")
    assert side.submitter.call(PingEngine()) == {"boot_id": side.engine.boot_id}
    wait_for(lambda: side.taker.in_hand() == 0, 20, "nothing is in hand")
    assert side.client.llen(KEYS.reply("unread")) == 1
    assert side.client.xlen(KEYS.commands) == 0


def test_a_redis_that_knows_no_script_costs_no_wait(side: QueueSide) -> None:
    for salt in ("a", "b", "c"):
        side.client.script_flush()
        began = time.monotonic()

        side.submitter.call(SetQuota(salt, 1))

        assert time.monotonic() - began < WAIT_SLICE_S


def test_dead_letters_are_capped(side: QueueSide) -> None:
    with side.client.pipeline() as pipeline:
        for _ in range(DEAD_MAX_ENTRIES + 5):
            pipeline.xadd(KEYS.dead, {"reason": "old"})
        pipeline.execute()

    add_by_hand(side, op="nonsense")

    wait_for(lambda: side.client.xlen(KEYS.dead) == DEAD_MAX_ENTRIES, 20, "the dead letters are trimmed")
    assert dead(side)[-1]["op"] == "nonsense"


@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
def test_an_engine_that_is_not_ready_gets_no_commands(side: QueueSide, state: str) -> None:
    side.heartbeat.set_state(state, "because")

    with pytest.raises(EngineAway) as away:
        side.submitter.call(SetQuota("a", 1))
    assert (away.value.state, away.value.error) == (state, "because")
    assert side.client.xlen(KEYS.commands) == 0


def test_slow_commands_do_not_hold_up_the_others(
    tmp_path: Path, redis_server: RedisServer, pool: ThreadPoolExecutor
) -> None:
    with queue_side(redis_server.url, tmp_path) as side:
        side.engine.gate.clear()
        most = THREADS + MAX_WAITING
        calls = [pool.submit(side.submitter.call, ChecksumBlocks(number, (1,), 1, False)) for number in range(most)]
        wait_for(lambda: len(side.engine.effects) == THREADS, 20, "as many run as there are threads")
        wait_for(lambda: side.taker.in_hand() == most, 20, "the others wait")

        assert side.submitter.call(PingEngine()) == {"boot_id": side.engine.boot_id}
        with pytest.raises(QueueFull, match="slow commands"):
            side.submitter.call(ChecksumBlocks(99, (1,), 1, False))
        side.engine.gate.set()

        assert sorted(call.result(20)["num_chunks"] for call in calls) == list(range(most))


def test_what_a_command_changed_is_published_before_it_is_answered(side: QueueSide) -> None:
    for number in range(1, 21):
        side.submitter.call(SetQuota("alice", number))

        snapshot = snapshots.read(side.client, KEYS, snapshots.STATUS)

        assert snapshot is not None
        assert snapshot.body["limits"]["alice"] == number
        assert side.client.hget(KEYS.quota, "alice") == str(number)


def test_everything_temporary_in_redis_expires(side: QueueSide) -> None:
    side.submitter.call(SetQuota("a", 1), command_id="one")
    add_by_hand(side, id="unasked", op="engine.ping", body="{}", deadline=f"{time.time() + 60:.3f}")
    wait_for(lambda: side.client.llen(KEYS.reply("unasked")) == 1, 20, "it is answered")

    assert 0 < side.client.ttl(KEYS.reply("unasked")) <= 60
    assert 0 < side.client.ttl(KEYS.command("one")) <= 600
    assert 0 < side.client.pttl(KEYS.engine) <= 3000


def test_publications_are_numbered_and_dated_by_redis(side: QueueSide) -> None:
    first = snapshots.read(side.client, KEYS, snapshots.STATUS)
    assert first is not None

    side.publisher.wake()
    number = first.number
    later = wait_for(
        lambda: (s := snapshots.read(side.client, KEYS, snapshots.STATUS)) and s.number > number and s,
        20,
        "the next one",
    )

    assert later.taken_at > first.taken_at
    assert later.boot_id == side.engine.boot_id
    assert 0 <= later.age_s < 20
