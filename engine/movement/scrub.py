"""Reads everything that one adapter holds, and takes out of service what is damaged, before somebody needs it.

never ─start→ running ─all keys done→ completed
               │  ↑ ├─stop→ stopped
               ↓  │ └─outage too long, or a storage that refuses everything→ failed
              waiting (the storage cannot be reached)                      any of the three ─start→ running

An object counts as one of

counter  what it means
-------  ----------------------------------------------------------------------------------------
good     header, key and digest agree, whatever its layout and codecs; it was not decoded
corrupt  they do not, at a second look either; quarantined as a load would do it
gone     nothing is stored any more; the catalog has learnt that
failed   not judged: the storage answered with an error, or too often not at all

One object at a time and a limit of bytes per second, so that loads hardly notice. What is stored while a scrub runs is
not its business. One thread per run, which ends with the object at hand when it is told to stop.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from engine.l2.base import ConnectionFault, Stored
from engine.l2.record import Verdict
from engine.l2.tier import Tier
from engine.movement.threads import join_all
from engine.object_key import ObjectKey
from engine.periodic import JOIN_TIMEOUT_S, PeriodicThreads, RunRecord

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Objects of a scan taken at a time, as one call to the storage.
SCAN_SLICE = 256
#: Larger than any object; what claims to be, is not read.
MAX_OBJECT_BYTES = 1 << 30
#: Failed attempts after which one object is left alone.
ATTEMPTS = 3
#: Errors in a row, each an answer of the storage, before the run is given up.
MAX_FAILURES_IN_A_ROW = 100
#: A run whose last object began more than three of these ago does not count as active.
INTERVAL_S = 60.0


@dataclass(frozen=True)
class Pace:
    """`bytes_per_s` on average; `pause_s` after each fault; `max_outage_s` without an answer end a run as failed."""

    bytes_per_s: int = 200_000_000
    pause_s: float = 1.0
    max_outage_s: float = 600.0


class _Stopped(Exception):
    """Somebody asked the run to end."""


class _GivenUp(Exception):
    """The run cannot go on; the text says why."""


@dataclass
class Progress:
    """Written by the run's thread, read by anybody. Times are epoch seconds."""

    state: str = "never"
    error: str = ""
    started_at: float = 0.0
    finished_at: float | None = None
    total: int | None = None
    good: int = 0
    corrupt: int = 0
    gone: int = 0
    failed: int = 0
    nbytes: int = 0

    @property
    def done(self) -> int:
        return self.good + self.corrupt + self.gone + self.failed


class Scrub:
    """At most one run at a time over one tier. Thread-safe."""

    def __init__(self, tier: Tier, threads: PeriodicThreads, pace: Pace | None = None) -> None:
        self._tier, self._pace = tier, pace or Pace()
        self._record = RunRecord(f"l2-scrub-{tier.label}", "low", INTERVAL_S)
        self._record.stopped_on_purpose = True
        threads.add(self._record)
        self._lock = threading.Lock()
        self._run: _Run | None = None

    def start(self) -> dict[str, object]:
        """Begins a run, unless one is under way (`started` tells); the state as `state` gives it."""
        with self._lock:
            started = self._run is None or not self._run.thread.is_alive()
            if started:
                self._run = _Run(self._tier, self._record, self._pace)
                self._run.thread.start()
        return {**self.state(), "started": started}

    def stop(self, timeout_s: float = JOIN_TIMEOUT_S) -> dict[str, object]:
        """Ends the run, if there is one, and waits for the object at hand; `stopped`: whether there was one."""
        with self._lock:
            run = self._run
        was_running = run is not None and run.thread.is_alive()
        if run is not None:
            run.stopping.set()
            join_all([run.thread], time.monotonic() + timeout_s)
        return {**self.state(), "stopped": was_running}

    def state(self) -> dict[str, object]:
        """The run under way or the last one; `never` when there was none since the engine began."""
        run = self._run
        progress = Progress() if run is None else run.progress
        until = time.time() if progress.finished_at is None else progress.finished_at
        elapsed_s = max(0.0, until - progress.started_at) if progress.started_at else 0.0
        return {
            "adapter": self._tier.type_name,
            "adapter_index": self._tier.index,
            "state": progress.state,
            "error": progress.error,
            "started_at": progress.started_at or None,
            "finished_at": progress.finished_at,
            "elapsed_seconds": round(elapsed_s, 3),
            "eta_seconds": _eta_s(progress, elapsed_s),
            "total_objects": progress.total,
            "checked_objects": progress.good + progress.corrupt,
            "good_objects": progress.good,
            "corrupt_objects": progress.corrupt,
            "gone_objects": progress.gone,
            "failed_objects": progress.failed,
            "checked_bytes": progress.nbytes,
            "bytes_per_second": round(progress.nbytes / elapsed_s) if elapsed_s else 0,
            "limit_bytes_per_second": self._pace.bytes_per_s,
        }


def _eta_s(progress: Progress, elapsed_s: float) -> float | None:
    if progress.total is None or progress.finished_at is not None or not progress.done:
        return None
    return round(elapsed_s * max(0, progress.total - progress.done) / progress.done, 1)


class _Run:
    """One walk over the tier, in a thread of its own."""

    def __init__(self, tier: Tier, record: RunRecord, pace: Pace) -> None:
        self._tier, self._record, self._pace = tier, record, pace
        self.progress = Progress(state="running", started_at=time.time())
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._main, name=record.name, daemon=True)
        #: Since when the storage has not answered; None while it does.
        self._silent_since: float | None = None
        self._next_at = 0.0
        self._failures_in_a_row = 0

    def _main(self) -> None:
        record, progress = self._record, self.progress
        record.started_at, record.is_running, record.stopped_on_purpose = time.time(), True, False
        logger.info("scrub of L2 adapter %s begins, at most %d bytes/s", self._tier.label, self._pace.bytes_per_s)
        state, error = "failed", ""
        try:
            keys = self._keys()
            progress.total = len(keys)
            for key, size in keys:
                self._one(key, size)
            state = "completed"
        except _Stopped:
            state = "stopped"
        except _GivenUp as reason:
            error = str(reason)
        except Exception as failure:
            logger.exception("scrub of L2 adapter %s broke off", self._tier.label)
            error = f"{type(failure).__name__}: {failure}"
        record.is_running, record.stopped_on_purpose = False, True
        progress.error, progress.finished_at = error[:300], time.time()
        progress.state = state
        logger.info(
            "scrub of L2 adapter %s %s: %d good, %d corrupt, %d gone, %d failed, %d bytes in %.1f s %s",
            self._tier.label, state, progress.good, progress.corrupt, progress.gone, progress.failed,
            progress.nbytes, progress.finished_at - progress.started_at, error[:300],
        )  # fmt: skip

    # ---- which objects

    def _keys(self) -> list[tuple[ObjectKey, int]]:
        """All that are there: from the catalog, or from the storage itself where the catalog does not know them all."""
        catalog = self._tier.catalog
        if catalog.complete and not self._tier.spec.shared:
            keys = catalog.keys()
            return [(key, catalog.size_of(key) or 0) for key in keys]
        return self._answer("listing its objects", lambda: list(self._scanned()))

    def _scanned(self) -> Iterator[tuple[ObjectKey, int]]:
        """In pieces, so that a long scan is not taken for a call that hangs."""
        found: Iterator[Stored] = iter(())
        with self._tier.calls.guarded():
            found = iter(self._tier.adapter.scan())
        while True:
            self._raise_if_stopping()
            with self._tier.calls.guarded():
                piece = list(islice(found, SCAN_SLICE))
            self._silent_since = None
            yield from ((stored.key, stored.size) for stored in piece)
            if len(piece) < SCAN_SLICE:
                return

    # ---- one object

    def _one(self, key: ObjectKey, size: int) -> None:
        started, progress = time.time(), self.progress
        self._wait(self._next_at - time.monotonic())
        before = progress.failed
        try:
            self._judge(key, size)
            self._failures_in_a_row = 0
        except OSError as error:
            progress.failed += 1
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise _GivenUp(f"{self._failures_in_a_row} objects in a row could not be read: {error}") from error
        self._record.ran(started, success=progress.failed == before)

    def _judge(self, key: ObjectKey, size: int) -> None:
        """Counts one object, of `size` bytes when the run began. Raises OSError when it cannot be judged."""
        if size > MAX_OBJECT_BYTES:
            raise OSError(f"{size} bytes are more than any object has")
        verdict, nbytes = self._read(key)
        if verdict is Verdict.CORRUPT:
            # It may have been replaced while it was read.
            verdict, nbytes = self._read(key)
        if verdict is None:
            self._forget(key)
            self.progress.gone += 1
        elif verdict is Verdict.CORRUPT:
            self._tier.quarantine(key, f"found by a scrub: {nbytes} bytes are not the record they should be")
            self.progress.corrupt += 1
        else:
            self.progress.good += 1

    def _read(self, key: ObjectKey) -> tuple[Verdict | None, int]:
        verdict, nbytes = self._answer("reading an object", lambda: self._tier.judge(key))
        self.progress.nbytes += nbytes
        self._next_at = max(self._next_at, time.monotonic()) + nbytes / self._pace.bytes_per_s
        return verdict, nbytes

    def _forget(self, key: ObjectKey) -> None:
        """Has the catalog learn that nothing is stored: asked again while nobody can write the object."""
        with self._tier.calls.changing_if_idle(key) as idle:
            if idle and self._tier.judge(key)[0] is None:
                self._tier.catalog.remove(key)

    # ---- waiting

    def _answer(self, what: str, call: Callable[[], Answer]) -> Answer:
        """What the storage says in the end. Raises ConnectionFault after ATTEMPTS, another OSError at once."""
        attempts = 0
        while True:
            self._wait_for_storage(what)
            try:
                answer = call()
            except ConnectionFault:
                # A call refused because another one is probing the storage is no attempt.
                attempts += self._tier.breaker.state != "half_open"
                self._silent_since = self._silent_since or time.monotonic()
                if attempts >= ATTEMPTS:
                    raise
                self._wait(self._pace.pause_s)
            except OSError:
                self._silent_since = None
                raise
            else:
                self._silent_since = None
                return answer

    def _wait_for_storage(self, what: str) -> None:
        """Returns when a call is worth trying. Raises _GivenUp when there was no answer for too long."""
        try:
            while True:
                silent_s = time.monotonic() - (self._silent_since or time.monotonic())
                if silent_s > self._pace.max_outage_s:
                    raise _GivenUp(f"{what}: the storage has not answered for {silent_s:.0f} s")
                if self._tier.breaker.state != "open":
                    return
                self._silent_since = self._silent_since or time.monotonic()
                self.progress.state = "waiting"
                self._wait(self._pace.pause_s)
        finally:
            self.progress.state = "running"

    def _wait(self, seconds: float) -> None:
        self._raise_if_stopping()
        if seconds > 0:
            self.stopping.wait(seconds)
            self._raise_if_stopping()

    def _raise_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise _Stopped
