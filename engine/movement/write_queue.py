"""What is to be written to one adapter: queued, running, waiting for a retry, given up. See write_back.py."""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from engine.errors import BadRequest
from engine.l1.cache import L1Cache
from engine.l1.holds import Pin
from engine.l1.index import Entry
from engine.l1.segment import SharedSegment
from engine.l2.base import ConnectionFault, StorageFull
from engine.l2.calls import STALL_S
from engine.l2.catalog import Form
from engine.l2.complaints import Complaints
from engine.l2.tier import Tier
from engine.movement.threads import join_all
from engine.object_key import ObjectKey, key_to_json

logger = logging.getLogger(__name__)

#: Writing threads per adapter.
THREADS = 2
MAX_ATTEMPTS = 4
#: Before the second, third and fourth attempt.
RETRY_PAUSES_S = (0.5, 2.0, 8.0)
MAX_WAITING_FOR_RETRY = 1024
MAX_REMEMBERED_DEAD = 64


@dataclass(slots=True, eq=False)
class Write:
    """One object on its way to one adapter. `pin` is None while it waits for a retry."""

    key: ObjectKey
    form: Form
    nbytes: int
    pin: Pin | None
    attempts: int = 0
    started: float = 0.0


class WriteQueue:
    """What is to be written to one adapter, and its threads. Thread-safe."""

    def __init__(
        self,
        tier: Tier,
        l1: L1Cache,
        segment: SharedSegment,
        max_bytes: int,
        *,
        stored: Callable[[Entry], None],
        full: Callable[[Tier, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stored` is told of each written object, `full` of the bytes there was no room for; both under no lock."""
        self.tier, self._l1, self._segment, self._max_bytes = tier, l1, segment, max_bytes
        self._stored, self._full, self._clock = stored, full, clock
        self._counters, self._complaints = tier.counters.write_back, Complaints(f"L2 adapter {tier.label}")
        self._changed = threading.Condition()
        self._queued: dict[ObjectKey, Write] = {}
        self._retries: list[tuple[float, int, Write]] = []
        self._numbers = count()
        self._running: dict[ObjectKey, Write] = {}
        self._dead: deque[dict[str, object]] = deque(maxlen=MAX_REMEMBERED_DEAD)
        self._closed = False
        self.dirty_bytes = 0
        self._threads = [
            threading.Thread(target=self._loop, name=f"l2-write-{tier.label}-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        """Begins to write."""
        for thread in self._threads:
            thread.start()

    def wants(self, entry: Entry, form: Form) -> bool:
        """Whether the object should be queued; counts why not."""
        if self.tier.knows(entry.key, form):
            self.tier.catalog.used(entry.key)
            self._counters["present"].inc()
        elif self._is_away():
            self._count_away(1)
        elif self._closed or self._is_full_for(entry.nbytes):
            self._counters["queue_full"].inc()
        else:
            return True
        return False

    def _is_away(self) -> bool:
        """Whether the storage is not written to: bypassed, its breaker open, or all threads hanging in a write."""
        if self.tier.closed_because:
            return True
        before = self._clock() - STALL_S
        running = list(self._running.values())
        return len(running) >= THREADS and all(write.started < before for write in running)

    def drop_if_away(self) -> None:
        """Makes clean what is queued for a storage that is away: it must not fill L1. To be called now and then."""
        if not self._is_away():
            return
        with self._changed:
            dropped, self._queued = self._queued, {}
            for write in dropped.values():
                self._drop(write)
        self._count_away(len(dropped))

    def _count_away(self, number: int) -> None:
        """Threads that hang count as what they are about to do to the breaker."""
        self._counters[self.tier.closed_because or "breaker_open"].inc(number)

    def _is_full_for(self, nbytes: int) -> bool:
        return bool(self.dirty_bytes) and self.dirty_bytes + nbytes > self._max_bytes

    def put(self, entry: Entry, form: Form, pin: Pin) -> None:
        """Queues a pinned object; the pin is this queue's from now on."""
        with self._changed:
            former = self._queued.pop(entry.key, None)
            if former is not None:
                self._drop(former)
            self._queued[entry.key] = Write(entry.key, form, entry.nbytes, pin)
            self.dirty_bytes += entry.nbytes
            self._changed.notify()

    def cancel(self, key: ObjectKey) -> bool:
        """Whether a queued write, or one that waited for a retry, was called off."""
        with self._changed:
            write = self._queued.pop(key, None)
            waiting = [entry for entry in self._retries if entry[2].key == key]
            for entry in waiting:
                self._retries.remove(entry)
            if waiting:
                heapq.heapify(self._retries)
            if write is not None:
                self._drop(write)
        cancelled = len(waiting) + (write is not None)
        self._counters["cancelled"].inc(cancelled)
        return bool(cancelled)

    def has(self, key: ObjectKey) -> bool:
        """Whether a write of it is queued or runs."""
        with self._changed:
            return key in self._queued or key in self._running

    def _drop(self, write: Write) -> None:
        """Lets go of the object's bytes. Call under the lock."""
        if write.pin is not None:
            self.dirty_bytes -= write.nbytes
            self._l1.unpin(write.pin)
            write.pin = None

    # ---- threads

    def _loop(self) -> None:
        while (write := self._take()) is not None:
            try:
                self._write(write)
            except Exception:  # a thread's top: the next write must go on after a bug
                logger.exception("writing to L2 adapter %s failed", self.tier.label)
                self._give_up(write, "internal error, see the log")
            finally:
                with self._changed:
                    self._running.pop(write.key, None)
                    self._drop(write)
                    self._changed.notify_all()

    def _take(self) -> Write | None:
        """The next write, whose key runs nowhere else; None when closed."""
        with self._changed:
            while not self._closed:
                self._revive()
                for key, write in self._queued.items():
                    if key not in self._running:
                        del self._queued[key]
                        write.started = self._clock()
                        self._running[key] = write
                        return write
                self._changed.wait(max(0.01, self._retries[0][0] - self._clock()) if self._retries else None)
            return None

    def _revive(self) -> None:
        """Queues again what has waited long enough and is still in L1, as far as there is room for dirty bytes."""
        while self._retries and self._retries[0][0] <= self._clock():
            write = heapq.heappop(self._retries)[2]
            if write.key in self._queued:
                continue
            if self._is_full_for(write.nbytes):
                self._counters["queue_full"].inc()
                continue
            pin = self._l1.hold([write.key], (write.form.fingerprint,))[0]
            if pin is None or pin.entries[0].missing != write.form.missing:
                if pin is not None:
                    self._l1.unpin(pin)
                self._counters["evicted_before"].inc()
                continue
            write.pin = pin
            self._queued[write.key] = write
            self.dirty_bytes += write.nbytes

    def _write(self, write: Write) -> None:
        assert write.pin is not None
        entry = write.pin.entries[0]
        write.attempts += 1
        try:
            self.tier.store(write.key, write.form, self._segment.view(entry.offset, entry.nbytes))
        except StorageFull as error:
            self._full(self.tier, write.nbytes)
            self._retry(write, error)
        except ConnectionFault as error:
            if self.tier.breaker.state == "open":
                self._counters["breaker_open"].inc()
            else:
                self._retry(write, error)
        except OSError as error:
            self._retry(write, error)
        except BadRequest as error:
            self._give_up(write, str(error))
        else:
            self._counters["stored"].inc()
            with self._changed:
                self._drop(write)
            self._stored(entry)

    def _retry(self, write: Write, error: OSError) -> None:
        """Another attempt later; until then L1 may evict the object."""
        with self._changed:
            room = len(self._retries) < MAX_WAITING_FOR_RETRY
            if write.attempts < MAX_ATTEMPTS and room and not self._closed:
                self._drop(write)
                due = self._clock() + RETRY_PAUSES_S[write.attempts - 1]
                heapq.heappush(self._retries, (due, next(self._numbers), replace(write)))
                self._counters["retried"].inc()
                return
        self._give_up(write, f"{error} (attempt {write.attempts})" if room else f"{error} (too many wait for a retry)")

    def _give_up(self, write: Write, reason: str) -> None:
        self._counters["dead"].inc()
        self._dead.append({"key": key_to_json(write.key), "reason": reason[:300], "at": round(time.time(), 3)})
        self._complaints.add("write", write.key, reason)

    def drain(self, deadline: float) -> int:
        """Waits until all is written, at most until `deadline` (monotonic); returns what is left then.

        What waited for a retry has it at once.
        """
        with self._changed:
            self._retries = [(self._clock(), number, write) for _, number, write in self._retries]
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not (self._queued or self._running or self._retries), max(0.0, deadline - time.monotonic())
            )
            left = [*self._queued.values(), *(entry[2] for entry in self._retries)]
            running = len(self._running)
            self._closed = True
            self._queued.clear()
            self._retries.clear()
            for write in left:
                self._drop(write)
            self._changed.notify_all()
        self._counters["left_at_stop"].inc(len(left) + running)
        return len(left) + running

    def join(self, deadline: float) -> None:
        """Waits for the threads after `drain`."""
        join_all(self._threads, deadline)

    def gauges(self) -> dict[str, float]:
        """Its values of the gauges in engine/l2/metrics.py."""
        with self._changed:
            queued, retries = len(self._queued), len(self._retries)
        return {"queued_writes": queued, "waiting_for_retry": retries, "dirty_bytes": self.dirty_bytes}

    def describe(self) -> dict[str, object]:
        """For GET /status."""
        with self._changed:
            return {
                "queued_objects": len(self._queued),
                "running_objects": len(self._running),
                "waiting_for_retry": len(self._retries),
                "dirty_bytes": self.dirty_bytes,
                "max_dirty_bytes": self._max_bytes,
                "dead_letters": list(self._dead),
            }
