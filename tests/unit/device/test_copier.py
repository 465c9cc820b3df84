"""Two threads share the jobs of a batch; errors reach the caller; nothing waits for a busy helper."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from engine.device.copier import Copier

PATIENCE_S = 30.0


@pytest.fixture
def copier() -> Iterator[Copier]:
    copier = Copier("copier-under-test")
    yield copier
    copier.close()


def test_all_jobs_run_once_and_two_threads_take_part(copier: Copier) -> None:
    both_inside = threading.Barrier(2)
    ran: list[tuple[int, str]] = []

    def job(number: int) -> None:
        if number < 2:
            both_inside.wait(PATIENCE_S)
        ran.append((number, threading.current_thread().name))

    copier.run([lambda number=number: job(number) for number in range(20)])

    assert sorted(number for number, _ in ran) == list(range(20))
    assert {name for number, name in ran if number < 2} == {"MainThread", "copier-under-test"}


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_job_stay_with_the_caller(copier: Copier, count: int) -> None:
    names: list[str] = []

    copier.run([lambda: names.append(threading.current_thread().name)] * count)

    assert names == ["MainThread"] * count


def test_an_error_of_either_thread_is_raised_and_ends_the_batch(copier: Copier) -> None:
    both_inside = threading.Barrier(2)
    after: list[int] = []

    def fail() -> None:
        both_inside.wait(PATIENCE_S)
        raise ValueError(threading.current_thread().name)

    with pytest.raises(ValueError, match=r"MainThread|copier-under-test"):
        copier.run([fail, fail, *[lambda: after.append(1)] * 50])

    assert after == []
    copier.run([lambda: after.append(2)] * 3)
    assert after == [2, 2, 2]


def test_run_returns_only_when_the_helper_is_out_of_its_job(copier: Copier) -> None:
    helper_inside, caller_done = threading.Event(), threading.Event()
    finished: list[str] = []

    def job() -> None:
        if threading.current_thread().name == "copier-under-test":
            helper_inside.set()
            caller_done.wait(PATIENCE_S)
            finished.append("helper")
        else:
            helper_inside.wait(PATIENCE_S)
            finished.append("caller")
            caller_done.set()

    copier.run([job, job])

    assert sorted(finished) == ["caller", "helper"]


def test_a_busy_helper_delays_no_other_batch(copier: Copier) -> None:
    inside, leave = threading.Barrier(3), threading.Event()

    def held() -> None:
        inside.wait(PATIENCE_S)
        leave.wait(PATIENCE_S)

    other = threading.Thread(target=copier.run, args=([held, held],), name="other-caller")
    other.start()
    inside.wait(PATIENCE_S)
    ran: list[int] = []

    copier.run([lambda number=number: ran.append(number) for number in range(5)])

    assert ran == [0, 1, 2, 3, 4]
    leave.set()
    other.join(PATIENCE_S)
    assert not other.is_alive()


def test_many_callers_at_once(copier: Copier) -> None:
    totals = [0] * 8

    def caller(number: int) -> None:
        for _ in range(50):
            done: list[int] = []
            copier.run([partial(done.append, 1)] * 7)
            totals[number] += len(done)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert totals == [350] * 8


def test_a_closed_copier_works_in_the_calling_thread() -> None:
    copier = Copier("closed-copier")
    copier.close()
    names: list[str] = []

    copier.run([lambda: names.append(threading.current_thread().name)] * 3)

    assert names == ["MainThread"] * 3
