"""Quotas that Redis may have lost delete nothing: when limit 0 is suspended, what ends that, and what is kept."""

import logging
import stat
from pathlib import Path

import pytest

from engine.l1.quota import MAX_LIMIT_BYTES, QuotaTable
from engine.quota_epoch import FILE_NAME, PATIENCE_S, Holdings, Mark, QuotaEpoch

NOTHING = Holdings(adapters=0, objects=0, nbytes=0, complete=True)
EMPTY = Holdings(adapters=2, objects=0, nbytes=0, complete=True)
FULL = Holdings(adapters=2, objects=9, nbytes=900, complete=True)
SCANNING = Holdings(adapters=2, objects=0, nbytes=0, complete=False)
FOUND_SOME = Holdings(adapters=2, objects=3, nbytes=300, complete=False)


class World:
    """An engine that starts beside some L2, with a clock to be moved."""

    def __init__(self, directory: Path | None, holdings: Holdings, *, isolates: bool = True) -> None:
        self.holdings, self.now = holdings, 0.0
        self.quotas = QuotaTable()
        self.epoch = QuotaEpoch(
            self.quotas, directory, lambda: self.holdings, isolates=isolates, clock=lambda: self.now
        )

    def start(self, epoch: str) -> None:
        self.epoch.take(epoch)
        self.quotas.load({"alice": 5})


def kept(directory: Path) -> str | None:
    path = directory / FILE_NAME
    return path.read_text().strip() if path.exists() else None


def keep(directory: Path, epoch: str | None) -> None:
    if epoch is not None:
        (directory / FILE_NAME).write_text(epoch + "\n")


@pytest.mark.parametrize(
    ("before", "holdings", "suspended", "after"),
    [
        ("life 1", FULL, False, "life 1"),
        ("life 1", SCANNING, False, "life 1"),
        ("life 1", EMPTY, False, "life 1"),
        ("life 1:4", FULL, True, "life 1:4"),
        ("life 1:4", SCANNING, True, "life 1:4"),
        ("life 1:4", EMPTY, False, "life 1"),
        ("life 1:4", NOTHING, False, "life 1:4"),
        (None, EMPTY, False, "life 1"),
        ("life 0", EMPTY, False, "life 1"),
        (None, FULL, True, None),
        ("life 0", FULL, True, "life 0"),
        (None, SCANNING, True, None),
        ("life 0", FOUND_SOME, True, "life 0"),
        (None, NOTHING, False, None),
        ("life 0", NOTHING, False, "life 0"),
    ],
)
def test_an_engine_that_starts(
    tmp_path: Path, before: str | None, holdings: Holdings, suspended: bool, after: str | None
) -> None:
    keep(tmp_path, before)
    world = World(tmp_path, holdings)

    world.start("life 1")

    assert world.quotas.limit_of("nobody") == (MAX_LIMIT_BYTES if suspended else 0)
    assert world.quotas.limit_of("alice") == 5
    assert (world.epoch.suspended_because is not None) == suspended
    assert world.epoch.review() is False
    assert kept(tmp_path) == after


def test_the_next_quota_ends_the_suspension_and_the_epoch_is_kept_once_it_is_durable(tmp_path: Path) -> None:
    world = World(tmp_path, FULL)
    world.start("life 1")
    world.quotas.delete("alice")
    assert world.epoch.review() is False

    world.quotas.set("bob", 7)

    assert world.quotas.limit_of("nobody") == 0
    assert world.epoch.suspended_because is None
    assert kept(tmp_path) is None
    assert world.epoch.review() is True
    world.epoch.keep()
    assert kept(tmp_path) == "life 1"
    assert world.epoch.review() is False


def test_a_crash_before_the_quota_was_durable_finds_the_doubt_again(tmp_path: Path) -> None:
    first = World(tmp_path, FULL)
    first.start("life 1")
    first.quotas.set("bob", 7)
    assert first.epoch.review() is True

    second = World(tmp_path, FULL)
    second.start("life 1")

    assert second.epoch.suspended_because is not None


@pytest.mark.parametrize("before", [SCANNING, FULL])
def test_an_l2_that_proves_to_be_empty_ends_it(tmp_path: Path, before: Holdings) -> None:
    world = World(tmp_path, before)
    world.start("life 1")

    world.holdings = EMPTY

    assert world.epoch.review() is False
    assert world.epoch.suspended_because is None
    assert world.quotas.limit_of("nobody") == 0
    assert kept(tmp_path) == "life 1"


def test_a_restart_alone_ends_nothing(tmp_path: Path) -> None:
    keep(tmp_path, "life 0")
    for _ in range(2):
        world = World(tmp_path, FULL)
        world.start("life 1")
        assert world.epoch.suspended_because is not None
    assert kept(tmp_path) == "life 0"


def test_another_epoch_at_runtime_is_judged_like_one_at_the_start(tmp_path: Path) -> None:
    keep(tmp_path, "life 1")
    world = World(tmp_path, FULL)
    world.start("life 1")

    world.epoch.take("restored")

    assert world.quotas.limit_of("nobody") == MAX_LIMIT_BYTES
    world.epoch.take("life 1")
    assert world.quotas.limit_of("nobody") == 0
    assert kept(tmp_path) == "life 1"


def test_people_are_told_once_and_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path, "life 0")
    world = World(tmp_path, FULL)

    world.start("life 1")
    world.epoch.review()

    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "9 objects, 900 bytes" in told
    assert "life 0" in told
    assert "life 1" in told
    assert "do not PUT them one by one" in told
    assert "redis-cli hset 'larder:{default}:quota'" in told
    assert "restart the engine, then PUT one of them" in told
    assert "docs/redis_keys.md" in told
    assert "docs/redis_keys.md" in str(world.epoch.suspended_because)


def test_a_first_start_is_no_reason_to_worry_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path, SCANNING)
    world.start("life 1")
    world.now = PATIENCE_S / 2
    world.epoch.review()
    world.holdings = EMPTY
    world.epoch.review()

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_scan_that_does_not_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path, SCANNING)
    world.start("life 1")
    world.now = PATIENCE_S + 1
    world.epoch.review()

    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_isolation_nobody_is_told_and_the_doubt_outlives_the_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = World(tmp_path, FULL, isolates=False)
    without.start("life 1")

    assert without.epoch.suspended_because is None
    assert caplog.records == []
    isolating = World(tmp_path, FULL)
    isolating.start("life 1")
    assert isolating.epoch.suspended_because is not None


def test_the_file_belongs_to_its_user_alone_and_its_directory_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "l2"

    World(directory, EMPTY).start("life 1")

    assert [entry.name for entry in directory.iterdir()] == [FILE_NAME]
    assert stat.S_IMODE((directory / FILE_NAME).stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "l2"
    directory.write_text("in the way")
    world = World(directory, EMPTY)

    world.start("life 1")
    world.epoch.review()

    assert world.quotas.limit_of("nobody") == 0
    assert [record.levelno for record in caplog.records if "cannot be kept" in record.getMessage()] == [logging.ERROR]
    directory.unlink()
    world.epoch.review()
    assert kept(directory) == "life 1"


def test_without_a_directory_no_epoch_is_known() -> None:
    world = World(None, FULL)
    world.start("life 1")

    assert world.epoch.suspended_because is not None
    world.quotas.set("bob", 1)
    assert world.epoch.review() is True
    world.epoch.keep()
    assert world.epoch.review() is False


def test_every_change_is_counted_and_the_file_follows(tmp_path: Path) -> None:
    world = World(tmp_path, EMPTY)
    world.start("life 1:4")
    assert [world.epoch.advance(), world.epoch.advance()] == ["life 1:5", "life 1:6"]
    assert kept(tmp_path) == "life 1:4"

    world.epoch.keep()

    assert kept(tmp_path) == "life 1:6"


@pytest.mark.parametrize("found", ["life 1:6", "life 1:7"])
def test_a_redis_that_is_as_new_as_the_file_or_ahead_of_it_is_trusted(tmp_path: Path, found: str) -> None:
    keep(tmp_path, "life 1:6")
    world = World(tmp_path, FULL)

    world.start(found)

    assert world.epoch.suspended_because is None
    assert kept(tmp_path) == found


def test_a_generation_that_lies_behind_does_not_catch_up_before_a_quota_is_set(tmp_path: Path) -> None:
    keep(tmp_path, "life 1:6")
    world = World(tmp_path, FULL)
    world.start("life 1:5")
    for _ in range(3):
        world.quotas.delete("alice")
        assert world.epoch.review() is False
        assert world.epoch.advance() == "life 1:5"
        world.epoch.keep()
    assert "older copy" in str(world.epoch.suspended_because)
    assert kept(tmp_path) == "life 1:6"

    world.quotas.set("alice", 5)
    assert world.epoch.advance() == "life 1:5", "not before it is known that all quotas are written"
    world.epoch.keep()
    assert kept(tmp_path) == "life 1:6"
    assert world.epoch.review() is True
    assert world.epoch.advance() == "life 1:7"
    world.epoch.keep()
    assert kept(tmp_path) == "life 1:7"


@pytest.mark.parametrize(
    ("text", "mark"),
    [("a", Mark("a", 0)), ("a:7", Mark("a", 7)), ("a:b", Mark("a:b", 0)), ("a:-1", Mark("a:-1", 0)), ("", Mark("", 0))],
)
def test_a_mark_is_read_as_it_is_written(text: str, mark: Mark) -> None:
    assert Mark.parse(text) == mark
    assert str(mark) == text
