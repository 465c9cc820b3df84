"""Copies of several chunks, shared between the calling thread and one helper thread."""

import threading
from collections import deque
from collections.abc import Callable, Sequence

Job = Callable[[], None]


class Copier:
    """Runs batches of jobs on two threads. Any number of threads may call `run` at the same time.

    Whoever is free takes the batch's next job, so a batch is done at the latest when its caller has done all of it: a
    helper that is busy with another batch delays nobody. At most one batch per calling thread waits for the helper.
    """

    def __init__(self, name: str = "copy-helper") -> None:
        self._wake = threading.Condition()
        self._batches: deque[_Batch] = deque()
        self._closing = False
        self._helper = threading.Thread(target=self._help, name=name, daemon=True)
        self._helper.start()

    def run(self, jobs: Sequence[Job]) -> None:
        """Return when all jobs are done. Raises the first exception of a job; jobs not yet begun are then left out."""
        batch = _Batch(jobs)
        shared = len(jobs) > 1
        if shared:
            with self._wake:
                self._batches.append(batch)
                self._wake.notify()
        batch.work()
        if shared:
            with self._wake:
                if batch in self._batches:
                    self._batches.remove(batch)
        batch.finish()

    def close(self) -> None:
        """End the helper. Running batches go on with their calling thread alone; `run` still works."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._helper.join()

    def _help(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or bool(self._batches))
                if self._closing:
                    return
                batch = self._batches.popleft()
            batch.work()


class _Batch:
    """Jobs of one call; each is taken by one thread."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = deque(jobs)
        self._changed = threading.Condition()
        self._running = 0
        self._error: BaseException | None = None

    def work(self) -> None:
        """Take and run jobs until none is left. Never raises."""
        while True:
            with self._changed:
                if self._error is not None:
                    self._jobs.clear()
                if not self._jobs:
                    return
                job = self._jobs.popleft()
                self._running += 1
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised again by finish() in the thread that asked
                self._record(error)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _record(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error

    def finish(self) -> None:
        """Wait for the job the other thread is in, one chunk's copy at most. Raises what a job raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame, and its frames to the buffers of the copy
