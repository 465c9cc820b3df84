"""Slow commands: who waits for whom."""

import threading
from collections.abc import Iterator

import pytest

from tests.waiting import wait_for
from workers import slow_commands
from workers.slow_commands import STORAGE_MAX_WAITING, STORAGE_THREADS, Lane, SlowCommands

HANGING, OTHER = Lane("l2-0-s3", is_storage=True), Lane("l2-1-fs", is_storage=True)


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
def slow(gate: threading.Event) -> Iterator[SlowCommands]:
    slow = SlowCommands()
    yield slow
    gate.set()
    slow.stop()


def hang(slow: SlowCommands, gate: threading.Event, count: int) -> list[bool]:
    return [slow.offer(HANGING, lambda: assert_opened(gate)) for _ in range(count)]


def assert_opened(gate: threading.Event) -> None:
    assert gate.wait(20)


def test_a_storage_that_hangs_keeps_up_nobody_else(slow: SlowCommands, gate: threading.Event) -> None:
    most = STORAGE_THREADS + STORAGE_MAX_WAITING
    assert hang(slow, gate, most + 2) == [True] * most + [False] * 2

    for lane in (OTHER, Lane("l2.scrub"), Lane("prefetch.cancel")):
        ran = threading.Event()
        assert slow.offer(lane, ran.set)
        assert ran.wait(5), lane


def test_a_storage_all_of_whose_threads_hang_gets_nothing_more(
    slow: SlowCommands, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_commands, "STUCK_S", 0.0)
    began = threading.Semaphore(0)

    def job() -> None:
        began.release()
        assert_opened(gate)

    for _ in range(STORAGE_THREADS):
        assert slow.offer(HANGING, job)
        assert began.acquire(timeout=5)
    assert not slow.offer(HANGING, job)

    gate.set()
    ran = threading.Event()
    wait_for(lambda: slow.offer(HANGING, ran.set), 5, "it is given work again")
    assert ran.wait(5)


def test_all_threads_of_a_lane_work_and_end(slow: SlowCommands) -> None:
    together = threading.Barrier(slow_commands.THREADS)
    done = threading.Semaphore(0)

    def job() -> None:
        together.wait(5)
        done.release()

    for _ in range(2 * slow_commands.THREADS):
        assert slow.offer(Lane("kvcache.check"), job)
    for _ in range(2 * slow_commands.THREADS):
        assert done.acquire(timeout=5)
    slow.stop()
    assert not any(thread.name.startswith("larder-slow-") for thread in threading.enumerate())
    assert not slow.offer(OTHER, together.abort)
