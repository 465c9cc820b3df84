"""kill -9 of the engine in mid-command: nothing is applied twice, nothing is lost without an answer."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract.command_queue import WAIT_SLICE_S, CommandSubmitter
from contract.command_taker import GROUP
from contract.commands import Command, DeleteQuota, SetQuota
from contract.errors import CommandFailed, OutcomeUnknown
from contract.redis_client import open_blocking_redis, open_redis
from tests.e2e.queue_side import KEYS
from tests.stack import Part, RedisServer
from tests.waiting import wait_for

pytestmark = pytest.mark.redis


class Side(Part):
    """The engine's side of the queue in a process of its own."""

    name = "queue_side"

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory)
        self.url = url

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "tests.e2e.queue_side", self.url, str(self.directory)]

    def is_ready(self) -> bool:
        return (self.directory / f"ready.{self.pid}").exists()

    def effects(self) -> list[str]:
        path = self.directory / "effects"
        return path.read_text().splitlines() if path.exists() else []

    def restart_killed(self) -> None:
        self.kill()
        self.start()


class Caller:
    """Submits from threads of its own."""

    def __init__(self, url: str) -> None:
        self.client = open_redis(url)
        self._blocking = open_blocking_redis(url, block_s=WAIT_SLICE_S)
        self._submitter = CommandSubmitter(self.client, self._blocking, KEYS, 100, 1 << 20)
        self._pool = ThreadPoolExecutor(8)

    def call(self, command: Command) -> "Future[dict[str, Any]]":
        return self._pool.submit(self._submitter.call, command)

    def dead(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.client.xrange(KEYS.dead)]  # type: ignore[misc,union-attr]

    def close(self) -> None:
        self._pool.shutdown()
        self.client.close()
        self._blocking.close()


@pytest.fixture(autouse=True)
def patient_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process takes a while to start again on a busy machine."""
    for command in (SetQuota, DeleteQuota):
        monkeypatch.setattr(command, "timeout_s", 60.0)


@pytest.fixture
def side(tmp_path: Path, any_redis: RedisServer) -> Iterator[Side]:
    process = Side(tmp_path / "side", any_redis.url)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def caller(any_redis: RedisServer) -> Iterator[Caller]:
    caller = Caller(any_redis.url)
    yield caller
    caller.close()


def test_a_repeatable_command_cut_off_is_done_by_the_next_boot(side: Side, caller: Caller) -> None:
    reply = caller.call(SetQuota("hang", 1))
    wait_for(lambda: "begin hang" in side.effects(), 20, "the command has begun")

    side.restart_killed()

    assert reply.result(60)["cache_salt"] == "hang"
    assert side.effects() == ["begin hang", "begin hang", "end hang"]
    assert caller.client.xlen(KEYS.commands) == 0
    assert caller.dead() == []


def test_a_command_that_must_not_run_twice_is_not_run_again(side: Side, caller: Caller) -> None:
    reply = caller.call(DeleteQuota("hang"))
    wait_for(lambda: "begin hang" in side.effects(), 20, "the command has begun")

    side.restart_killed()

    with pytest.raises(OutcomeUnknown):
        reply.result(60)
    assert side.effects() == ["begin hang"]
    (letter,) = caller.dead()
    assert letter["op"] == "quota.delete"
    assert "outcome unknown" in letter["reason"]
    assert '"hang"' in letter["body"]


def test_a_poison_command_is_given_up_after_three_deliveries(side: Side, caller: Caller) -> None:
    poison = caller.call(SetQuota("poison", 1))
    for deaths in range(1, 4):
        wait_for(lambda: side.process is not None and side.process.poll() is not None, 30, "the process died")
        assert side.effects() == ["begin poison"] * deaths
        side.launch()
    wait_for(side.is_ready, 30, "the process survives its fourth start")

    with pytest.raises(CommandFailed, match="3 deliveries"):
        poison.result(60)
    assert caller.call(SetQuota("well", 1)).result(60)["cache_salt"] == "well"
    assert side.effects() == ["begin poison"] * 3 + ["begin well", "end well"]
    assert [letter["op"] for letter in caller.dead()] == ["quota.set"]


def test_commands_that_wait_while_the_engine_is_dead_are_done_by_the_next_boot(side: Side, caller: Caller) -> None:
    first = caller.call(SetQuota("hang", 1))
    wait_for(lambda: "begin hang" in side.effects(), 20, "the command has begun")
    others = [caller.call(SetQuota(f"salt-{number}", 1)) for number in range(5)]
    wait_for(lambda: caller.client.xlen(KEYS.commands) == 6, 20, "all commands wait")

    side.restart_killed()

    assert first.result(60)["cache_salt"] == "hang"
    assert sorted(reply.result(60)["cache_salt"] for reply in others) == [f"salt-{number}" for number in range(5)]
    ends = [line for line in side.effects() if line.startswith("end")]
    assert len(ends) == len(set(ends)) == 6
    assert caller.client.xlen(KEYS.commands) == 0
    assert caller.client.xpending(KEYS.commands, GROUP)["pending"] == 0
