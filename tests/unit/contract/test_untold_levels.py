"""Log levels that a process sets for itself while the hash cannot be written."""

import logging
import threading
from collections.abc import Iterator

import pytest
import redis

from contract.errors import RedisAway
from contract.keys import Keys
from contract.log_levels import MAX_LOGGERS, AppliedLevels, hand_on_level
from tests.stack import RedisServer

NAME, OTHER = "tests.untold", "tests.untold.other"


@pytest.fixture
def levels() -> Iterator[AppliedLevels]:
    applied = AppliedLevels()
    yield applied
    applied.tell(lambda *told: "")
    applied.sync(dict)


def level_now() -> str:
    return logging.getLevelName(logging.getLogger(NAME).level)


def test_it_counts_whatever_the_hash_says_until_it_is_told(levels: AppliedLevels) -> None:
    levels.sync(lambda: {NAME: "ERROR"})
    assert levels.apply_alone(NAME, "DEBUG")
    for kept in ({NAME: "ERROR"}, {}):
        levels.sync(lambda kept=kept: kept)
        assert level_now() == "DEBUG"

    hash_of_all: dict[str, str] = {}
    levels.tell(lambda name, level, known: hash_of_all.update({name: level}) or "")

    assert hash_of_all == {NAME: "DEBUG"}
    levels.sync(lambda: hash_of_all)
    assert level_now() == "DEBUG"
    levels.sync(lambda: {NAME: "WARNING"})
    assert level_now() == "WARNING"
    levels.tell(lambda *told: pytest.fail("it is told once"))


def test_who_cannot_be_told_is_told_later(levels: AppliedLevels) -> None:
    def away(*told: object) -> str:
        raise RedisAway("timed out")

    assert levels.apply_alone(NAME, "ERROR")
    with pytest.raises(RedisAway):
        levels.tell(away)

    told: list[tuple[str, str, str | None]] = []
    levels.tell(lambda *what: told.append(what) or "")
    assert told == [(NAME, "ERROR", None)]


def test_what_the_hash_has_no_room_for_is_given_up(levels: AppliedLevels, caplog: pytest.LogCaptureFixture) -> None:
    assert levels.apply_alone(NAME, "ERROR")

    levels.tell(lambda *told: "too many loggers have one")
    levels.sync(dict)

    assert level_now() == "NOTSET"
    assert f"the level ERROR of {NAME}, set here alone, is given up: too many loggers have one" in caplog.text


def test_no_more_are_kept_than_the_hash_takes(levels: AppliedLevels) -> None:
    names = [f"{NAME}.{number}" for number in range(MAX_LOGGERS)]
    assert all(levels.apply_alone(name, "INFO") for name in names)

    assert not levels.apply_alone(NAME, "INFO")


def test_what_the_hash_said_then_is_told_too(levels: AppliedLevels) -> None:
    levels.sync(lambda: {NAME: "ERROR"})
    for level in ("INFO", "DEBUG"):
        assert levels.apply_alone(NAME, level)
    assert levels.apply_alone(OTHER, "INFO")

    told: list[tuple[str, str, str | None]] = []
    levels.tell(lambda *what: told.append(what) or "")

    assert told == [(NAME, "DEBUG", "ERROR"), (OTHER, "INFO", "")]


def test_what_is_set_for_all_is_not_replaced_by_what_was_set_alone_before(levels: AppliedLevels) -> None:
    assert levels.apply_alone(NAME, "DEBUG")

    def write(name: str, level: str) -> bool:
        """Another thread would hand on at the worst moment."""
        teller = threading.Thread(target=levels.tell, args=(lambda *told: handed_on.append(told) or "",))
        teller.start()
        tellers.append(teller)
        return True

    handed_on: list[tuple[str, str, str | None]] = []
    tellers: list[threading.Thread] = []
    assert levels.write(NAME, "ERROR", write)
    tellers[0].join(10)

    assert not tellers[0].is_alive()
    assert handed_on == []


@pytest.mark.parametrize(
    ("before", "known", "after"),
    [
        ("", "", "DEBUG"),
        ("ERROR", "ERROR", "DEBUG"),
        ("ERROR", None, "DEBUG"),
        ("", "ERROR", "DEBUG"),
        ("DEBUG", "ERROR", "DEBUG"),
        ("INFO", "ERROR", "INFO"),
        ("INFO", "", "INFO"),
    ],
)
def test_a_field_that_somebody_has_set_since_stays(
    redis_server: RedisServer, before: str, known: str | None, after: str
) -> None:
    keys = Keys(f"untold-{before}-{known}")
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        if before:
            client.hset(keys.loglevels, NAME, before)

        reason = hand_on_level(client, keys, NAME, "DEBUG", known)

        assert client.hgetall(keys.loglevels) == {NAME: after}
        assert reason == ("" if after == "DEBUG" else "INFO was set since")
