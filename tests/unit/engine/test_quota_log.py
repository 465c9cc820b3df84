"""What quotas delete is told by salt: in few lines, and loudly when a tenant has no quota."""

import logging

import pytest

from engine.quota_log import NAMED, REMEMBERED, SAY_AGAIN_S, WARN_AGAIN_S, QuotaLog
from tests.unit.engine.l2_world import SIZE, World, isolated, key, keys, loaded


class Log:
    """A log with a clock to be moved."""

    def __init__(self, **limits: int) -> None:
        self.now = 0.0
        self.log = QuotaLog("here", loaded(limits), lambda: self.now)

    def note(self, salt: str, limit: int, objects: int = 2) -> None:
        self.log.note(salt, objects, 10 * objects, limit)


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelno == level]
    caplog.clear()
    return messages


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_evictions_are_summed_by_salt_and_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(alice=5)
    log.note("alice", 5)
    log.log.tell()
    assert said(caplog, logging.INFO) == [
        "tenant 'alice' was over its limit of 5 bytes: 2 objects, 20 bytes deleted from here"
    ]
    for _ in range(3):
        log.note("alice", 5)
        log.log.tell()
    assert said(caplog, logging.INFO) == []

    log.now = SAY_AGAIN_S
    log.log.tell()
    log.log.tell()

    assert [line for line in said(caplog, logging.INFO) if "6 objects, 60 bytes" in line] != []


def test_a_tenant_without_a_quota_is_warned_of_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(zero=0)
    for _ in range(2):
        log.note("bob", 0)
        log.note("bob", 0)
        log.note("zero", 0)
        log.log.tell()
    (warning,) = said(caplog, logging.WARNING)
    assert "no quota is registered for tenant 'bob'" in warning
    assert "4 objects, 40 bytes" in warning

    log.now = WARN_AGAIN_S
    log.note("bob", 0)
    log.log.tell()

    assert len(said(caplog, logging.WARNING)) == 1


@pytest.mark.parametrize("limit", [0, 7])
def test_many_tenants_are_summed_in_one_line(caplog: pytest.LogCaptureFixture, limit: int) -> None:
    log = Log()
    for number in range(2 * REMEMBERED):
        log.note(f"{number}-" + 1000 * "x", limit)
    log.log.tell()

    lines = said(caplog, logging.INFO if limit else logging.WARNING)

    assert len(lines) == NAMED + 1
    rest = 2 * REMEMBERED - NAMED
    assert f"{2 * rest} objects, {20 * rest} bytes" in lines[-1]
    assert max(map(len, lines)) < 300


def test_an_l2_pass_tells_what_quotas_took(caplog: pytest.LogCaptureFixture) -> None:
    world = World(loaded({"alice": 2 * SIZE}), eviction=isolated())
    world.put(*keys(3, "alice"), *keys(2, "bob"))

    world.evictor.run_pass()

    (alice,) = [line.getMessage() for line in caplog.records if "'alice'" in line.getMessage()]
    (bob,) = [line for line in caplog.records if "'bob'" in line.getMessage()]
    assert f"limit of {2 * SIZE} bytes: 1 objects, {SIZE} bytes deleted from L2 adapter" in alice
    assert bob.levelno == logging.WARNING
    assert f"2 objects, {2 * SIZE} bytes" in bob.getMessage()
    assert key(0, "bob") not in world.left()
