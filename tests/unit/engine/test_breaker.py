"""The breaker: opens on connection faults in a row, lets one probe through, closes by itself."""

from hypothesis import given
from hypothesis import strategies as st

from engine.l2.breaker import FAULTS_TO_OPEN, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAULTS_TO_OPEN):
        assert breaker.allow()
        breaker.failed()
    return breaker, clock


def test_faults_that_are_not_in_a_row_do_not_open_it() -> None:
    breaker = Breaker(Clock())

    for _ in range(10 * FAULTS_TO_OPEN):
        assert breaker.allow()
        breaker.failed()
        assert breaker.allow()
        breaker.succeeded()

    assert breaker.state == "closed"


def test_an_open_breaker_refuses_until_its_time_is_over_and_then_lets_one_probe_through() -> None:
    breaker, clock = opened()
    assert breaker.state == "open"
    assert not breaker.allow()

    clock.now += FIRST_PAUSE_S

    assert breaker.state == "half_open"
    assert [breaker.allow(), breaker.allow(), breaker.allow()] == [True, False, False]
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.describe()["times_opened"] == 1


def test_each_failed_probe_doubles_the_pause_up_to_a_cap() -> None:
    breaker, clock = opened()
    pauses = []

    for _ in range(10):
        pauses.append(breaker.describe()["retry_in_seconds"])
        clock.now += LONGEST_PAUSE_S
        assert breaker.allow()
        breaker.failed()

    assert pauses[:4] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_late_faults_of_calls_begun_before_it_opened_change_nothing() -> None:
    breaker, _ = opened()
    before = breaker.describe()["retry_in_seconds"]

    breaker.failed()

    assert breaker.describe()["retry_in_seconds"] == before


@given(st.lists(st.sampled_from(["ok", "fault", "wait"]), max_size=60))
def test_it_is_never_stuck(history: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for event in history:
        clock.now += 0.3 if event == "wait" else 0.0
        if event != "wait" and breaker.allow():
            breaker.succeeded() if event == "ok" else breaker.failed()

    clock.now += LONGEST_PAUSE_S
    assert breaker.allow()
    breaker.succeeded()
    assert breaker.state == "closed"
