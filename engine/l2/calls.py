"""Calls to one adapter: which run, which take too long, and what the breaker learns of them.

A call that fails with a connection fault, or runs for longer than STALL_S, counts against the adapter. A call that was
found stalled is judged then; how it ends later changes nothing, so a storage that answers everything after half a
minute does not look healthy.

One key has at most one writing or deleting call at a time: the next one waits for it. A delete asks first whether
anything runs on its key, and leaves it alone if so.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.l2.base import ConnectionFault
from engine.l2.breaker import Breaker
from engine.object_key import ObjectKey

#: A call running for longer counts as a connection fault.
STALL_S = 10.0
#: How long a write waits for the delete of the same key.
TURN_TIMEOUT_S = 30.0


class _Call:
    __slots__ = ("judged", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.judged = False


class Reading:
    """One read of a key. `stale`: the key was changed since it began, so what it shows may be history."""

    __slots__ = ("stale",)

    def __init__(self) -> None:
        self.stale = False


class Calls:
    """Thread-safe."""

    def __init__(self, breaker: Breaker, clock: Callable[[], float] = time.monotonic) -> None:
        self._breaker, self._clock = breaker, clock
        self._running: set[_Call] = set()
        self._keys: dict[ObjectKey, int] = {}
        self._readings: dict[ObjectKey, list[Reading]] = {}
        self._changing: set[ObjectKey] = set()
        self._state = threading.Condition()

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def guarded(self, *, may_take_long: bool = False) -> Iterator[None]:
        """Around one call to the adapter. Raises ConnectionFault at once while the breaker is open.

        A call that may take long is never the probe that an open breaker waits for, and is not judged by its time.
        """
        if not (self._breaker.state == "closed" if may_take_long else self._breaker.allow()):
            why = self._breaker.last_fault or "it could not be reached"
            raise ConnectionFault(f"not asked, its breaker is open: {why}")
        call = _Call(float("inf") if may_take_long else self._clock())
        with self._state:
            self._running.add(call)
        fault: ConnectionFault | None = None
        try:
            yield
        except ConnectionFault as error:
            fault = error
            raise
        finally:
            with self._state:
                self._running.discard(call)
                judged = call.judged
            if judged:
                pass
            elif fault is not None:
                self._breaker.failed(str(fault))
            else:
                self._breaker.succeeded()

    def judge_stalled(self) -> int:
        """Counts calls that have run for too long against the adapter, each once; returns how many. Ask often."""
        before = self._clock() - STALL_S
        with self._state:
            stalled = [call for call in self._running if not call.judged and call.started < before]
            for call in stalled:
                call.judged = True
        for _ in stalled:
            self._breaker.failed(f"a call has not ended for {STALL_S:.0f} s")
        return len(stalled)

    @contextmanager
    def reading(self, key: ObjectKey) -> Iterator[Reading]:
        """Marks `key` as in use."""
        reading = Reading()
        with self._state:
            self._keys[key] = self._keys.get(key, 0) + 1
            reading.stale = key in self._changing
            self._readings.setdefault(key, []).append(reading)
        try:
            yield reading
        finally:
            with self._state:
                readings = self._readings[key]
                readings.remove(reading)
                if not readings:
                    del self._readings[key]
            self._leave(key)

    def _begin_change(self, key: ObjectKey) -> None:
        """Call under the lock."""
        self._changing.add(key)
        self._keys[key] = self._keys.get(key, 0) + 1
        for reading in self._readings.get(key, ()):
            reading.stale = True

    @contextmanager
    def changing(self, key: ObjectKey) -> Iterator[None]:
        """The only change of `key` at this time. Raises ConnectionFault when another one does not end."""
        with self._state:
            if not self._state.wait_for(lambda: key not in self._changing, TURN_TIMEOUT_S):
                raise ConnectionFault(f"another change of the object has not ended for {TURN_TIMEOUT_S:.0f} s")
            self._begin_change(key)
        try:
            yield
        finally:
            with self._state:
                self._changing.discard(key)
                self._state.notify_all()
            self._leave(key)

    @contextmanager
    def changing_if_idle(self, key: ObjectKey, own: Reading | None = None) -> Iterator[bool]:
        """Like `changing`, but gives False, and marks nothing, when anything runs on `key`.

        A caller who is reading the key hands in its `own` reading, which does not count unless it is stale.
        """
        with self._state:
            idle = self._keys.get(key, 0) == (own is not None) and not (own is not None and own.stale)
            if idle:
                self._begin_change(key)
        try:
            yield idle
        finally:
            if idle:
                with self._state:
                    self._changing.discard(key)
                    self._state.notify_all()
                self._leave(key)

    def _leave(self, key: ObjectKey) -> None:
        with self._state:
            left = self._keys[key] - 1
            if left:
                self._keys[key] = left
            else:
                del self._keys[key]
