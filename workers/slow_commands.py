"""Threads for commands that take long, so that neither the command loop nor other kinds of commands wait for them.

Every kind of command has a lane of its own, and so has every storage: one that hangs keeps up nobody else.

lane            threads  waiting  refused besides
--------------  -------  -------  ----------------------------------------------------
of a kind       4        16
of a storage    2        4        at once, while all its threads work for over a second
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

THREADS = 4
#: Beside the running ones; what comes then is refused.
MAX_WAITING = 16
STORAGE_THREADS = 2
STORAGE_MAX_WAITING = 4
#: A storage all of whose threads work for longer is not given more.
STUCK_S = 1.0
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Lane:
    """What a command shares its threads with. There must be few: each keeps its threads."""

    name: str
    is_storage: bool = False

    @property
    def threads(self) -> int:
        return STORAGE_THREADS if self.is_storage else THREADS

    @property
    def max_waiting(self) -> int:
        return STORAGE_MAX_WAITING if self.is_storage else MAX_WAITING


class SlowCommands:
    """Runs the jobs of each lane in order of arrival. Jobs handle their own errors. Threads start when needed."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, _LaneThreads] = {}
        self._lock = threading.Lock()
        self._is_stopping = False

    def offer(self, lane: Lane, job: Callable[[], None]) -> bool:
        """Whether there was room for it."""
        with self._lock:
            if self._is_stopping:
                return False
            threads = self._lanes.get(lane)
            if threads is None:
                threads = self._lanes[lane] = _LaneThreads(lane)
        return threads.offer(job)

    def stop(self) -> None:
        """Waits a while for what runs; what waits is left, its commands are delivered again to the next boot."""
        with self._lock:
            self._is_stopping = True
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        threads = [thread for lane in lanes for thread in lane.threads]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if still := [thread.name for thread in threads if thread.is_alive()]:
            logger.warning("%s still at work, not waiting longer", ", ".join(still))


class _LaneThreads:
    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.threads: list[threading.Thread] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._began: dict[int, float] = {}
        self._is_closed = False
        self._changed = threading.Condition()

    def offer(self, job: Callable[[], None]) -> bool:
        with self._changed:
            unfinished = len(self._began) + len(self._jobs)
            if self._is_closed or unfinished >= self._lane.threads + self._lane.max_waiting or self._is_stuck():
                return False
            self._jobs.append(job)
            if unfinished >= len(self.threads) < self._lane.threads:
                self._start_thread()
            self._changed.notify()
        return True

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _is_stuck(self) -> bool:
        began = self._began.values()
        is_full = self._lane.is_storage and len(began) >= self._lane.threads
        return is_full and time.monotonic() - max(began) > STUCK_S

    def _start_thread(self) -> None:
        number = len(self.threads)
        name = f"larder-slow-{self._lane.name}-{number}"
        thread = threading.Thread(target=self._loop, args=(number,), name=name, daemon=True)
        thread.start()
        self.threads.append(thread)

    def _loop(self, number: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if self._is_closed:
                    return
                job = self._jobs.popleft()
                self._began[number] = time.monotonic()
            try:
                job()
            finally:
                with self._changed:
                    del self._began[number]
