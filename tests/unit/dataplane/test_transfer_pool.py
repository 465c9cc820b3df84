"""Lanes: order within, none between; bounds; a clean end."""

import logging
import threading
from collections.abc import Iterator

import pytest

from engine.dataplane.transfer_pool import TransferPool, Work
from tests.waiting import wait_for


@pytest.fixture
def pool() -> Iterator[TransferPool]:
    pool = TransferPool(threads=2, max_queued=100)
    pool.start()
    yield pool
    pool.close()


def appending(seen, item):
    return Work(run=lambda: seen.append(item), refuse=lambda: seen.append(("refused", item)))


def test_work_of_a_lane_runs_in_order(pool):
    seen = []

    for number in range(50):
        assert pool.submit(b"lane", appending(seen, number))
    wait_for(lambda: not pool.is_busy(b"lane"), 20, "the lane is empty")

    assert seen == list(range(50))


def test_a_blocked_lane_leaves_the_other_thread_to_the_others(pool):
    opened, seen = threading.Event(), []
    pool.submit(b"blocked", Work(run=lambda: opened.wait(20), refuse=opened.set))
    pool.submit(b"blocked", appending(seen, "behind"))

    pool.submit(b"free", appending(seen, "free"))
    wait_for(lambda: not pool.is_busy(b"free"), 20, "the free lane is done")

    assert seen == ["free"]
    assert pool.is_busy(b"blocked")
    opened.set()
    wait_for(lambda: not pool.is_busy(b"blocked"), 20, "the blocked lane is done")
    assert seen == ["free", "behind"]


def test_work_that_raises_ends_neither_its_thread_nor_its_lane(pool, caplog):
    caplog.set_level(logging.CRITICAL)
    seen = []
    for _ in range(4):
        pool.submit(b"lane", Work(run=lambda: 1 / 0, refuse=lambda: None))
    pool.submit(b"lane", appending(seen, "after"))

    wait_for(lambda: seen == ["after"], 20, "the work behind ran")


def test_closing_refuses_what_has_not_begun_and_takes_nothing_more():
    pool = TransferPool(threads=1, max_queued=2)
    opened, entered, seen = threading.Event(), threading.Event(), []

    def block():
        entered.set()
        opened.wait(20)

    pool.start()
    pool.submit(b"a", Work(run=block, refuse=lambda: None))
    assert entered.wait(20)
    assert pool.submit(b"a", appending(seen, 1))
    assert pool.submit(b"b", appending(seen, 2))
    assert not pool.submit(b"c", appending(seen, 3))
    assert pool.submit(b"c", appending(seen, 4), extra_room=1)
    opener = threading.Timer(0.05, opened.set)
    opener.start()
    pool.close()
    opener.join()

    assert seen == [("refused", 1), ("refused", 2), ("refused", 4)]
    assert not pool.submit(b"a", appending(seen, 5))
