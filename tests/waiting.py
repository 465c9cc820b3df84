"""Waiting for a condition, with a deadline: what tests do instead of sleeping."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_for(predicate: Callable[[], Answer], timeout_s: float, what: str, *, every_s: float = 0.01) -> Answer:
    """The first true value that `predicate` returns; AssertionError naming `what` once `timeout_s` has passed.

    The predicate is asked at least once, and once more after the deadline, so that a slow machine that could
    not run it in time is not blamed. What the predicate raises ends the wait.
    """
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            last_chance = predicate()
            assert last_chance, f"{what}: not within {timeout_s:g} s (last answer {last_chance!r})"
            return last_chance
        pause.wait(every_s)
    return answer
