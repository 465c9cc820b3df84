"""A few threads for commands that take long, so that the command loop does not wait for them."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

THREADS = 4
#: Beside the running ones; what comes then is refused.
MAX_WAITING = 16
STOP_TIMEOUT_S = 5.0


class SlowCommands:
    """Runs jobs in order of arrival, four at a time. Jobs handle their own errors."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._running = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"larder-slow-command-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def offer(self, job: Callable[[], None]) -> bool:
        """Whether there was room for it."""
        with self._changed:
            if self._running + len(self._jobs) >= THREADS + MAX_WAITING:
                return False
            self._jobs.append(job)
            self._changed.notify()
            return True

    def stop(self) -> None:
        """Waits a while for what runs; what waits is left, its commands are delivered again to the next boot."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if still := [thread.name for thread in self._threads if thread.is_alive()]:
            logger.warning("%s still at work, not waiting longer", ", ".join(still))

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            finally:
                with self._changed:
                    self._running -= 1

    def _next(self) -> Callable[[], None] | None:
        """The oldest waiting job; None when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or bool(self._jobs))
            if self._stopping:
                return None
            self._running += 1
            return self._jobs.popleft()
