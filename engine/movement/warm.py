"""Prefetch jobs: bring a prompt's objects from L2 into L1 ahead of traffic.

    start ─→ up to WINDOW objects asked for at a time, in the order of the prefix ─→ completed, failed, cancelled

Every key is counted once: resident (in L1 already), found (loaded for this job), missing, failed (the storage, damaged,
no room), or over quota (its tenant's L1 quota would be exceeded, where quotas act). Nothing is leased: what was loaded
stays as recent objects do. Demand goes first, see loads.py. A job never loads more than L1 holds below its watermark,
so that the tail of a long prompt does not push out its head.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.errors import TooBusy
from engine.kv_layout import ObjectLayout
from engine.l1.cache import L1Cache
from engine.movement.loads import Load, LoadEnd, Loader
from engine.object_key import ObjectKey

WINDOW = 32
MAX_JOBS = 64

COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"


class WarmCounts(NamedTuple):
    """Keys by what became of them."""

    found: int = 0
    resident: int = 0
    missing: int = 0
    failed: int = 0
    over_quota: int = 0


class WarmJob:
    """One job. Everything may be called from any thread."""

    def __init__(
        self,
        jobs: "WarmJobs",
        rows: Sequence[Sequence[ObjectKey]],
        layouts: Sequence[ObjectLayout],
        room_bytes: int,
    ) -> None:
        self._jobs, self._rows, self._layouts, self._room_bytes = jobs, rows, layouts, room_bytes
        self.chunks, self.total_keys = len(rows), sum(map(len, rows))
        self.error = ""
        self._keys = (key for keys in rows for key in keys)
        self._lock = threading.Lock()
        self._found = self._resident = self._missing = self._failed = self._over_quota = 0
        self._no_room = 0
        self._asked: dict[ObjectKey, Load | None] = {}
        self._exhausted = False
        self._outcome = ""

    def counts(self) -> WarmCounts:
        """So far, or in the end."""
        with self._lock:
            return WarmCounts(self._found, self._resident, self._missing, self._failed, self._over_quota)

    def done(self) -> bool:
        """Whether the counts will not change any more."""
        return bool(self._outcome)

    def outcome(self) -> str:
        """completed, failed (nothing could be loaded and storage failed) or cancelled; empty while it runs."""
        return self._outcome

    def wait(self, timeout_s: float) -> bool:
        """Whether it is done, after at most this time."""
        return self._jobs.wait_for(self, timeout_s)

    def cancel(self) -> None:
        """Asks for nothing more. What is under way is kept in L1 when it comes, and not counted."""
        with self._lock:
            if self._outcome:
                return
            self._outcome, self.error = CANCELLED, "cancelled"
            waiting = [load for load in self._asked.values() if load is not None]
        for load in waiting:
            self._jobs.loader.abandon(load, self._on_load)
        self._jobs.finished(self)

    def begin(self) -> None:
        """Asks for the first objects."""
        self._advance()

    def _advance(self) -> None:
        while True:
            with self._lock:
                if self._outcome or len(self._asked) >= WINDOW:
                    return
                key = next(self._keys, None)
                if key is None:
                    self._exhausted = True
                    break
                if not self._is_wanted(key):
                    continue
                self._asked[key] = None
            load = self._jobs.loader.request(key, self._layouts, self._on_load, demand=False)
            with self._lock:
                if load is None:
                    del self._asked[key]
                    self._count_not_asked(key)
                elif key in self._asked:
                    self._asked[key] = load
        self._end_if_complete()

    def _is_wanted(self, key: ObjectKey) -> bool:
        """Whether the key must be loaded; counts it if not. Call under the lock."""
        jobs = self._jobs
        if jobs.is_resident(key, self._layouts):
            self._resident += 1
        elif not jobs.loader.may_find([key], self._layouts, demand=False)[0]:
            self._count_not_asked(key)
        elif jobs.is_over_quota(key.cache_salt, (len(self._asked) + 1) * self._layouts[0].object_bytes):
            self._over_quota += 1
        elif (self._found + len(self._asked)) * self._layouts[0].object_bytes >= self._room_bytes:
            self._failed += 1
            self._no_room += 1
        else:
            return True
        return False

    def _count_not_asked(self, key: ObjectKey) -> None:
        """No storage has it, or the one that may have it is away."""
        if self._jobs.loader.may_exist(key, self._layouts):
            self._failed += 1
        else:
            self._missing += 1

    def _on_load(self, load: Load) -> None:
        with self._lock:
            self._asked.pop(load.key, None)
            if not self._outcome:
                self._count(load)
        self._jobs.loader.release(load)
        self._advance()

    def _count(self, load: Load) -> None:
        if load.end is LoadEnd.LOADED:
            self._found += 1
        elif load.end in (LoadEnd.RESIDENT, LoadEnd.CONTENDED):
            self._resident += 1
        elif load.end is LoadEnd.MISSING:
            self._missing += 1
        else:
            self._failed += 1
            self._no_room += load.end is LoadEnd.NO_ROOM

    def _end_if_complete(self) -> None:
        with self._lock:
            if self._outcome or self._asked or not self._exhausted:
                return
            if self._no_room:
                self.error = f"{self._no_room} keys left out: L1 has no room for them"
            elif self._failed:
                self.error = f"{self._failed} keys could not be loaded, see the adapters in /status"
            nothing = not self._found and not self._resident and self._failed
            self._outcome = FAILED if nothing else COMPLETED
        self._jobs.finished(self)

    def keep_prefix_recent(self, l1: L1Cache) -> None:
        """The head of the prefix is used first and must go last."""
        l1.touch([key for keys in self._rows for key in keys])


class WarmJobs:
    """The jobs under way."""

    def __init__(self, l1: L1Cache, loader: Loader, room_bytes: int, is_over_quota: Callable[[str, int], bool]) -> None:
        """`room_bytes`: the most one job may load. `is_over_quota(salt, bytes)`: whether L1 would let that go again."""
        self._l1, self.loader, self.room_bytes, self.is_over_quota = l1, loader, room_bytes, is_over_quota
        self._jobs: set[WarmJob] = set()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, rows: Sequence[Sequence[ObjectKey]], layouts: Sequence[ObjectLayout]) -> WarmJob:
        """Starts a job for all keys of `rows`, chunk by chunk. Raises TooBusy."""
        job = WarmJob(self, rows, layouts, self.room_bytes)
        with self._changed:
            if len(self._jobs) >= MAX_JOBS:
                raise TooBusy(f"{MAX_JOBS} prefetch jobs run already")
            self._jobs.add(job)
        job.begin()
        return job

    def stop(self) -> None:
        """Cancels all."""
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()

    def is_resident(self, key: ObjectKey, layouts: Sequence[ObjectLayout]) -> bool:
        """Whether the key is readable in L1."""
        pin = self._l1.hold([key], [layout.fingerprint for layout in layouts])[0]
        if pin is not None:
            self._l1.unpin(pin)
        return pin is not None

    def finished(self, job: WarmJob) -> None:
        """A job is over."""
        job.keep_prefix_recent(self._l1)
        with self._changed:
            self._jobs.discard(job)
            self._changed.notify_all()

    def wait_for(self, job: WarmJob, timeout_s: float) -> bool:
        """Whether the job is over, after at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            return self._changed.wait_for(job.done, max(0.0, deadline - time.monotonic()))
