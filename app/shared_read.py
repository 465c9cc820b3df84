"""One read for several requests, without ever showing an old answer after a newer one."""

import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How long a read may serve further requests, if no command changed anything since: a small part of the half second
# after which the engine publishes again.
REUSE_S = 0.02


class LastChange:
    """When a worker of this gunicorn last answered a command that changes snapshots, in memory that all of them share.

    Made before the fork. Each process writes a slot of its own, so that none overwrites a later moment by an earlier.
    """

    SLOTS = 64

    def __init__(self) -> None:
        self._moments = memoryview(mmap.mmap(-1, self.SLOTS * 8)).cast("q")

    def note(self) -> None:
        self._moments[os.getpid() % self.SLOTS] = time.monotonic_ns()

    def moment_ns(self) -> int:
        return max(self._moments)


class SharedRead(Generic[T]):
    """Lets requests of about the same time share one read.

    A read serves for REUSE_S, and only requests that came before any later change was answered: who changes
    something and then looks, sees it, whichever worker answers.
    """

    def __init__(self, read: Callable[[], T], last_change: LastChange) -> None:
        self._read = read
        self._last_change = last_change
        self._lock = threading.Lock()
        self._latest: tuple[int, T] | None = None

    def get(self) -> T:
        latest = self._latest
        if latest is not None and self._serves(latest[0]):
            return latest[1]
        with self._lock:
            latest = self._latest
            if latest is None or not self._serves(latest[0]):
                began_ns = time.monotonic_ns()
                latest = self._latest = (began_ns, self._read())
            return latest[1]

    def _serves(self, began_ns: int) -> bool:
        age_s = (time.monotonic_ns() - began_ns) / 1e9
        return age_s < REUSE_S and began_ns > self._last_change.moment_ns()
