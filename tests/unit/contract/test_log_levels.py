"""What loggers and their handlers let through once levels were set at runtime."""

import itertools
import logging
from collections.abc import Iterator

import pytest

from contract.log_levels import AppliedLevels

CRIER, TOWN, STREET = "larder_crier", "larder_crier.town", "larder_crier.town.street"


class Heard(logging.Handler):
    """Keeps the texts that come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[Heard]:
    """The handler of CRIER, at whose level INFO no DEBUG is said below it."""
    crier, handler = logging.getLogger(CRIER), Heard()
    crier.setLevel(logging.INFO)
    crier.addHandler(handler)
    yield handler
    crier.removeHandler(handler)


def said(heard: Heard) -> list[str]:
    """Which of two loggers are heard, each at DEBUG and at ERROR."""
    heard.texts.clear()
    for name, level in itertools.product((TOWN, STREET), (logging.DEBUG, logging.ERROR)):
        logging.getLogger(name).log(level, "%s %s", name.rpartition(".")[2], logging.getLevelName(level))
    return list(heard.texts)


@pytest.mark.parametrize("order", list(itertools.permutations([(CRIER, "ERROR"), (STREET, "DEBUG")])))
def test_a_logger_is_heard_through_the_handlers_of_one_above(heard: Heard, order: list[tuple[str, str]]) -> None:
    levels = AppliedLevels()
    for name, level in order:
        assert levels.apply(name, level)

    assert said(heard) == ["town ERROR", "street DEBUG", "street ERROR"]

    levels.sync(dict)
    assert said(heard) == ["town ERROR", "street ERROR"]
    assert heard.level == logging.NOTSET


def test_a_logger_that_follows_its_parent_opens_no_handler(heard: Heard) -> None:
    levels = AppliedLevels()
    levels.sync(lambda: {CRIER: "ERROR", STREET: "NOTSET"})

    assert said(heard) == ["town ERROR", "street ERROR"]
    assert heard.level == logging.ERROR

    levels.sync(lambda: {CRIER: "ERROR", STREET: "DEBUG"})
    assert "street DEBUG" in said(heard)
    levels.sync(lambda: {CRIER: "ERROR"})
    assert heard.level == logging.ERROR
    levels.sync(dict)
