"""A process that the launcher keeps alive, and one that will never live."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_for
from workers.child import Child, ChildPlan
from workers.errors import EXIT_CANNOT_START


def ended(directory: Path, code: int) -> Child:
    argv = [sys.executable, "-c", f"raise SystemExit({code})"]
    child = Child(ChildPlan("engine", argv, {}, directory, lambda pid: False, 5.0))
    child.start()
    look: Callable[[], int | None] = child.check
    assert wait_for(look, 20, "it ends") == code
    return child


def test_one_that_cannot_start_is_not_promised_another_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    child = ended(tmp_path, EXIT_CANNOT_START)
    try:
        assert "exit code 78" in caplog.text
        assert "trying again will not help" in caplog.text
        assert "starting it again" not in caplog.text
    finally:
        child.stop()


def test_any_other_end_is_followed_by_another_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    child = ended(tmp_path, 3)
    try:
        assert "starting it again in 0.2 s" in caplog.text
    finally:
        child.stop()


COPY = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write(sys.stdin.read())"


def test_one_is_told_its_text_at_each_start_and_nobody_else(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    argv = [sys.executable, "-c", COPY, str(heard)]
    plan = ChildPlan("redis", argv, {}, tmp_path, lambda pid: False, 5.0, told="hush\n")
    child = Child(plan)

    def has_heard_twice() -> bool:
        child.check()
        return heard.exists() and heard.read_text().startswith("hush\nhush\n")

    try:
        child.start()
        wait_for(has_heard_twice, 30, "it was started and told twice")
        assert "hush" not in repr(plan)
    finally:
        child.stop()


def test_one_that_ends_before_it_listens_is_like_any_other_end(tmp_path: Path) -> None:
    plan = ChildPlan("redis", ["/bin/false"], {}, tmp_path, lambda pid: False, 5.0, told="hush\n")
    child = Child(plan)
    child.start()
    look: Callable[[], int | None] = child.check
    try:
        assert wait_for(look, 20, "it ends") == 1
    finally:
        child.stop()
