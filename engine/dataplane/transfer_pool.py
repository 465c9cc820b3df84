"""The threads that copy: work of one client in order, work of different clients side by side."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: How long closing waits for a copy in progress.
JOIN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Work:
    """Something to run on a transfer thread. `refuse` is called instead when it will never run."""

    run: Callable[[], None]
    refuse: Callable[[], None]


class TransferPool:
    """Runs work in lanes, one per client connection.

    Within a lane one thing runs at a time, in order of arrival; a thread takes one piece of work from a lane and then
    puts the lane behind the others, so a client with a long queue does not starve the rest. A lane exists while it has
    work queued or running.
    """

    def __init__(self, threads: int, max_queued: int) -> None:
        self._max_queued = max_queued
        self._lanes: dict[bytes, deque[Work]] = {}
        self._ready: deque[bytes] = deque()
        self._queued = 0
        self._closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._loop, name=f"larder-transfer-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Work not yet begun, in all lanes."""
        return self._queued

    def is_busy(self, lane: bytes) -> bool:
        """Whether the lane has work queued or running. False means: everything submitted has had its effect."""
        return lane in self._lanes

    def submit(self, lane: bytes, work: Work, *, extra_room: int = 0) -> bool:
        """Queues `work`; False when `max_queued + extra_room` pieces wait already, or when closing."""
        with self._changed:
            if self._closing or self._queued >= self._max_queued + extra_room:
                return False
            self._queued += 1
            queue = self._lanes.get(lane)
            if queue is not None:
                queue.append(work)
                return True
            self._lanes[lane] = deque((work,))
            self._ready.append(lane)
            self._changed.notify()
            return True

    def close(self) -> bool:
        """Refuses what has not begun, waits for what has, ends the threads. False when one still runs after that."""
        with self._changed:
            self._closing = True
            refused = [work for queue in self._lanes.values() for work in queue]
            for queue in self._lanes.values():
                queue.clear()
            self._ready.clear()
            self._queued = 0
            self._changed.notify_all()
        for work in refused:
            work.refuse()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(JOIN_TIMEOUT_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._ready and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                lane = self._ready.popleft()
                work = self._lanes[lane].popleft()
                self._queued -= 1
            try:
                work.run()
            except Exception:
                logger.exception("transfer work failed outside its handler")
            with self._changed:
                if self._lanes[lane]:
                    self._ready.append(lane)
                    self._changed.notify()
                else:
                    del self._lanes[lane]
