"""Log levels that a process sets for itself while the hash cannot be written."""

import logging
from collections.abc import Iterator

import pytest

from contract.errors import RedisAway
from contract.log_levels import MAX_LOGGERS, AppliedLevels

NAME = "tests.untold"


@pytest.fixture
def levels() -> Iterator[AppliedLevels]:
    applied = AppliedLevels()
    yield applied
    applied.told(NAME)
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
    levels.tell(lambda name, level: hash_of_all.update({name: level}) is None)

    assert hash_of_all == {NAME: "DEBUG"}
    levels.sync(lambda: hash_of_all)
    assert level_now() == "DEBUG"
    levels.sync(lambda: {NAME: "WARNING"})
    assert level_now() == "WARNING"
    levels.tell(lambda name, level: pytest.fail("it is told once"))


def test_who_cannot_be_told_is_told_later(levels: AppliedLevels) -> None:
    def away(name: str, level: str) -> bool:
        raise RedisAway("timed out")

    assert levels.apply_alone(NAME, "ERROR")
    with pytest.raises(RedisAway):
        levels.tell(away)

    told: list[tuple[str, str]] = []
    levels.tell(lambda name, level: told.append((name, level)) is None)
    assert told == [(NAME, "ERROR")]


def test_what_the_hash_has_no_room_for_is_given_up(levels: AppliedLevels, caplog: pytest.LogCaptureFixture) -> None:
    assert levels.apply_alone(NAME, "ERROR")

    levels.tell(lambda name, level: False)
    levels.sync(dict)

    assert level_now() == "NOTSET"
    assert f"the level ERROR of {NAME} is given up" in caplog.text


def test_no_more_are_kept_than_the_hash_takes(levels: AppliedLevels) -> None:
    names = [f"{NAME}.{number}" for number in range(MAX_LOGGERS)]
    assert all(levels.apply_alone(name, "INFO") for name in names)

    assert not levels.apply_alone(NAME, "INFO")

    for name in names:
        levels.told(name)
