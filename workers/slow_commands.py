"""A few threads for commands that take long, so that the command loop does not wait for them."""

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)

THREADS = 4
#: Beside the running ones; what comes then is refused.
MAX_WAITING = 16
STOP_TIMEOUT_S = 5.0


class SlowCommands:
    """Runs jobs in order of arrival, four at a time. Jobs handle their own errors."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._unfinished = 0
        self._lock = threading.Lock()
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
        with self._lock:
            if self._unfinished >= THREADS + MAX_WAITING:
                return False
            self._unfinished += 1
        self._jobs.put(job)
        return True

    def stop(self) -> None:
        """Waits a while for what runs; what waits is left, its commands are delivered again to the next boot."""
        self._stopping = True
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if still := [thread.name for thread in self._threads if thread.is_alive()]:
            logger.warning("%s still at work, not waiting longer", ", ".join(still))

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopping:
            try:
                job()
            finally:
                with self._lock:
                    self._unfinished -= 1
