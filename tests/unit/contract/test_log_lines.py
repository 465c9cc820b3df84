"""What our processes write to their logs."""

import logging
import os
import re
from collections.abc import Iterator

import pytest

from contract.log_lines import set_up_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_has_its_time_level_part_and_process(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("web %(process)d", "INFO")

    logging.getLogger("app.somewhere").warning("%s is full", "it")

    line = capsys.readouterr().err
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} WARNING web {os.getpid()}: it is full\n", line)


def test_passwords_in_urls_reach_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("engine", "INFO")
    logger = logging.getLogger("some.storage")

    logger.info("asking %s", "http://usr:hush@127.0.0.1:9000/b")
    try:
        raise OSError("no answer from redis://:hush@h:1/0")
    except OSError:
        logger.exception("failed")

    lines = capsys.readouterr().err
    assert "engine: asking http://usr:***@127.0.0.1:9000/b" in lines
    assert "redis://:***@h:1/0" in lines
    assert "hush" not in lines


def test_secrets_of_other_forms_reach_no_line_either(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("engine", "INFO")

    logging.getLogger("some.storage").warning("refused: %s", {"secret_access_key": "hush", "bucket": "b"})

    assert "engine: refused: {'secret_access_key': '***', 'bucket': 'b'}" in capsys.readouterr().err
