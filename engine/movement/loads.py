"""Brings single objects from L2 into L1: one load per key, whoever asks for it.

    waiting ─a thread of the first tier that may have it─→ running ─miss, fault─→ waiting for the next tier ─…─→ over
       └─nobody wants it any more─→ over

Each tier has its own threads, so a storage that hangs holds up nobody but itself. Demand (a lookup waits) goes before
warm (a prefetch job). A running load owns its slot until the storage answers, however long that takes and whoever has
stopped waiting. A loaded object is made readable and pinned in one step; each of those who asked has a share in the
pin and gives it back with `release`, so it cannot be evicted before they have leased it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from engine.kv_layout import ObjectLayout
from engine.l1.cache import L1Cache
from engine.l1.holds import ENGINE, Pin
from engine.l1.segment import SharedSegment
from engine.l2.tier import Outcome, Tier
from engine.movement.threads import join_all
from engine.object_key import ObjectKey

logger = logging.getLogger(__name__)

#: Threads per tier, and so objects on their way from it at one time.
THREADS = 4
#: A load that takes longer gives way to a client that has the object itself: its prompt must not have to wait for a
#: storage that hangs.
PATIENCE_S = 0.5
#: Loads waiting for one tier.
MAX_WAITING = 8192
#: A load that has run for so long is over for those who asked for it; its slot stays its own until the storage answers.
OVER_AFTER_S = 10.0


class LoadEnd(Enum):
    """How a load ended. Only LOADED and RESIDENT leave a pinned object."""

    LOADED = "loaded"
    #: Somebody else had brought it into L1 meanwhile.
    RESIDENT = "resident"
    MISSING = "missing"
    #: The storage failed, or what it gave was damaged.
    FAILED = "failed"
    NO_ROOM = "no_room"
    #: A client is writing the object just now, or did so meanwhile, or the cache was cleared.
    CONTENDED = "contended"
    ABANDONED = "abandoned"


Done = Callable[["Load"], None]


class Load:
    """One key on its way. Guarded by the loader's lock until `end` is set; read-only afterwards."""

    __slots__ = ("demand", "end", "failed", "key", "layouts", "pin", "running", "shares", "started", "tiers", "waiters")

    def __init__(self, key: ObjectKey, layouts: Sequence[ObjectLayout], tiers: list[Tier]) -> None:
        self.key, self.layouts, self.tiers = key, layouts, tiers
        self.waiters: list[Done] = []
        self.end: LoadEnd | None = None
        self.pin: Pin | None = None
        self.shares = 0
        self.demand = self.running = False
        self.started = 0.0
        #: Whether a tier failed before another one had nothing.
        self.failed = False


class _Queue:
    """What waits for one tier. Guarded by its own condition."""

    def __init__(self) -> None:
        self.demand: deque[Load] = deque()
        self.warm: deque[Load] = deque()
        self.changed = threading.Condition()
        self.closed = False

    def put(self, load: Load, *, demand: bool) -> bool:
        with self.changed:
            if self.closed or len(self.demand) + len(self.warm) >= MAX_WAITING:
                return False
            (self.demand if demand else self.warm).append(load)
            self.changed.notify()
            return True

    def take(self) -> Load | None:
        """The next one, demand first; None when closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.demand or self.warm)
            if self.closed:
                return None
            return (self.demand or self.warm).popleft()

    def empty(self, *, warm: bool = True, close: bool = False) -> list[Load]:
        """Takes out what waits, the warm ones too or not; with `close` nothing is taken in any more."""
        with self.changed:
            self.closed |= close
            left = [*self.demand, *(self.warm if warm else ())]
            self.demand.clear()
            if warm:
                self.warm.clear()
            self.changed.notify_all()
            return left


class Loader:
    """Thread-safe. `start` and `stop` are called once each."""

    def __init__(self, tiers: Sequence[Tier], l1: L1Cache, segment: SharedSegment, patience_s: float) -> None:
        """A tier all of whose threads have been busy with one object each for `patience_s` is not asked for more that
        somebody waits for; what is only to be warm has the patience of OVER_AFTER_S."""
        self._tiers, self._l1, self._segment, self.patience_s = tuple(tiers), l1, segment, patience_s
        self._loads: dict[ObjectKey, Load] = {}
        self._lock = threading.Lock()
        self._queues = {tier.index: _Queue() for tier in self._tiers}
        self._threads = [
            threading.Thread(target=self._loop, args=(tier,), name=f"l2-load-{tier.label}-{number}", daemon=True)
            for tier in self._tiers
            for number in range(THREADS)
        ]
        self._running: dict[int, set[Load]] = {tier.index: set() for tier in self._tiers}
        self._running_bytes = 0

    def start(self) -> None:
        """Begins to load."""
        for thread in self._threads:
            thread.start()

    def stop(self, deadline: float) -> None:
        """Ends the threads; what waits is abandoned. A call that hangs in its storage is left behind at `deadline`."""
        for queue in self._queues.values():
            for load in queue.empty(close=True):
                self._finish(load, LoadEnd.ABANDONED, None)
        join_all(self._threads, deadline)

    # ---- for those who want objects

    def may_find(self, keys: Sequence[ObjectKey], layouts: Sequence[ObjectLayout], *, demand: bool) -> list[bool]:
        """For each key, whether some tier may have it in one of `layouts` and can be asked now."""
        fingerprints = [layout.fingerprint for layout in layouts]
        tiers = [tier for tier in self._tiers if self._can_ask(tier, demand=demand)]
        return [any(tier.may_have(key, fingerprints) for tier in tiers) for key in keys]

    def may_exist(self, key: ObjectKey, layouts: Sequence[ObjectLayout]) -> bool:
        """Whether some tier may have `key`, whether it can be asked now or not."""
        fingerprints = [layout.fingerprint for layout in layouts]
        return any(tier.may_have(key, fingerprints) for tier in self._tiers)

    def _can_ask(self, tier: Tier, *, demand: bool) -> bool:
        """Not while it is bypassed or its breaker open, nor while all its threads hang, whatever the breaker thinks."""
        if tier.closed_because:
            return False
        running = list(self._running[tier.index])
        before = time.monotonic() - (self.patience_s if demand else max(self.patience_s, OVER_AFTER_S))
        return len(running) < THREADS or any(load.started > before for load in running)

    def rescue(self) -> None:
        """Lets nobody wait for a storage that hangs. To be called now and then.

        What waits for it goes to the next tier, or fails. A load that has run for longer than people are patient is
        made anew from the next tier, and after OVER_AFTER_S it is over for those who asked for it.
        """
        now = time.monotonic()
        for tier in self._tiers:
            if not self._can_ask(tier, demand=True):
                for load in self._queues[tier.index].empty(warm=not self._can_ask(tier, demand=False)):
                    self._pass_on(tier, load)
            for load in list(self._running[tier.index]):
                if load.started < now - OVER_AFTER_S:
                    self._finish(load, LoadEnd.FAILED, None)
                elif load.started < now - self.patience_s:
                    self._fork(load)

    def _fork(self, load: Load) -> None:
        """The same key from the tiers that are left, for those who wait; the storage that hangs keeps its slot."""
        with self._lock:
            if load.end is not None or not load.running or not load.tiers:
                return
            anew = Load(load.key, load.layouts, load.tiers)
            anew.waiters, load.waiters = load.waiters, []
            anew.demand, anew.failed, load.end = load.demand, True, LoadEnd.FAILED
            self._loads[load.key] = anew
            if self._queues[anew.tiers[0].index].put(anew, demand=anew.demand):
                return
        self._finish(anew, LoadEnd.FAILED, None)

    def _pass_on(self, tier: Tier, load: Load) -> None:
        with self._lock:
            if load.end is not None or load.running or not load.tiers or load.tiers[0] is not tier:
                return
            load.tiers.pop(0)
            load.failed = True
            if load.tiers and self._queues[load.tiers[0].index].put(load, demand=load.demand):
                return
        self._finish(load, LoadEnd.FAILED, None)

    def request(self, key: ObjectKey, layouts: Sequence[ObjectLayout], done: Done, *, demand: bool) -> Load | None:
        """Loads `key` in one of `layouts`, or joins the load under way; `done` is called once, in another thread.

        When it ends with a pin, the caller has a share of it to `release`. None, and no call, when no tier may have
        the object or too many loads wait.
        """
        with self._lock:
            load = self._loads.get(key)
            if load is not None:
                load.waiters.append(done)
                hurry = demand and not load.demand and not load.running and bool(load.tiers)
                load.demand |= demand
                if not hurry:
                    return load
                # It stands in both queues then; whoever takes it second finds it begun.
                self._queues[load.tiers[0].index].put(load, demand=True)
                return load
            fingerprints = [layout.fingerprint for layout in layouts]
            tiers = [
                tier for tier in self._tiers if tier.may_have(key, fingerprints) and self._can_ask(tier, demand=demand)
            ]
            load = Load(key, layouts, tiers)
            if not load.tiers:
                return None
            load.demand = demand
            if not self._queues[load.tiers[0].index].put(load, demand=demand):
                return None
            load.waiters.append(done)
            self._loads[key] = load
            return load

    def release(self, load: Load) -> None:
        """Gives back a share of the pin of a load that is over."""
        with self._lock:
            load.shares -= 1
            last = load.shares == 0
        if last and load.pin is not None:
            self._l1.unpin(load.pin)

    def abandon(self, load: Load, done: Done) -> None:
        """`done` will not be called, unless it is being called just now. A load nobody wants does not begin."""
        with self._lock:
            if load.end is None and done in load.waiters:
                load.waiters.remove(done)

    def describe(self) -> dict[str, int]:
        """Counts for GET /status and metrics."""
        waiting = sum(len(queue.demand) + len(queue.warm) for queue in self._queues.values())
        running = sum(map(len, self._running.values()))
        return {"waiting": waiting, "running": running, "running_bytes": self._running_bytes}

    # ---- a tier's threads

    def _loop(self, tier: Tier) -> None:
        queue = self._queues[tier.index]
        while (load := queue.take()) is not None:
            if not self._begin(load, tier):
                continue
            end, pin = LoadEnd.FAILED, None
            try:
                end, pin = self._load_from(tier, load)
            except Exception:  # a thread's top: the next load must go on after a bug
                logger.exception("a load from L2 adapter %s failed", tier.label)
            self._end_step(tier, load, end, pin)
            if end is LoadEnd.LOADED:
                tier.note_use(load.key)

    def _begin(self, load: Load, tier: Tier) -> bool:
        """Whether this thread is to load it: not when it is over, runs already, or nobody wants it any more."""
        with self._lock:
            if load.end is not None or load.running or not load.tiers or load.tiers[0] is not tier:
                return False
            if load.waiters:
                load.tiers.pop(0)
                load.running, load.started = True, time.monotonic()
                self._running[tier.index].add(load)
                return True
            # Over at once, so that nobody joins it any more.
            load.end = LoadEnd.ABANDONED
            if self._loads.get(load.key) is load:
                del self._loads[load.key]
            return False

    def _end_step(self, tier: Tier, load: Load, end: LoadEnd, pin: Pin | None) -> None:
        """On to the next tier that may have it, or over."""
        with self._lock:
            self._running[tier.index].discard(load)
            load.running = False
            load.failed |= end is LoadEnd.FAILED
            if load.end is None and end in (LoadEnd.MISSING, LoadEnd.FAILED):
                if load.tiers and self._queues[load.tiers[0].index].put(load, demand=load.demand):
                    return
                end = LoadEnd.FAILED if load.failed else LoadEnd.MISSING
        self._finish(load, end, pin)

    def _load_from(self, tier: Tier, load: Load) -> tuple[LoadEnd, Pin | None]:
        """Tries the layouts that the object may have, one after the other."""
        for layout in load.layouts:
            if not tier.may_have(load.key, (layout.fingerprint,)):
                continue
            end, pin = self._load_as(tier, load.key, layout)
            if end is not LoadEnd.MISSING:
                return end, pin
        return LoadEnd.MISSING, None

    def _load_as(self, tier: Tier, key: ObjectKey, layout: ObjectLayout) -> tuple[LoadEnd, Pin | None]:
        reservation = self._l1.reserve([key], layout.object_bytes, layout.fingerprint, ENGINE)
        entry = reservation.entries[0]
        if entry is None:
            if reservation.refused:
                return LoadEnd.NO_ROOM, None
            pin = self._l1.hold([key], (layout.fingerprint,))[0]
            return (LoadEnd.CONTENDED, None) if pin is None else (LoadEnd.RESIDENT, pin)
        entry.yields_at = time.monotonic() + PATIENCE_S
        with self._lock:
            self._running_bytes += entry.nbytes
        committed = False
        try:
            loaded = tier.load(key, layout.fingerprint, self._segment.view(entry.offset, entry.nbytes))
            if loaded.outcome is not Outcome.LOADED:
                return (LoadEnd.MISSING if loaded.outcome is Outcome.MISS else LoadEnd.FAILED), None
            # Nobody sees the entry before the commit.
            entry.missing = loaded.missing
            committed = True
            pin = self._l1.commit_pinned(reservation)
            return (LoadEnd.CONTENDED, None) if pin is None else (LoadEnd.LOADED, pin)
        finally:
            with self._lock:
                self._running_bytes -= entry.nbytes
            if not committed:
                self._l1.abort(reservation)

    def _finish(self, load: Load, end: LoadEnd, pin: Pin | None) -> None:
        with self._lock:
            over = load.end is not None
            waiters, load.waiters = ([], load.waiters) if over else (load.waiters, [])
            if not over:
                load.end, load.pin, load.shares = end, pin, len(waiters)
            if self._loads.get(load.key) is load:
                del self._loads[load.key]
        if pin is not None and not waiters:
            self._l1.unpin(pin)
        for done in waiters:
            try:
                done(load)
            except Exception:  # one asker's bug must not keep the others waiting
                logger.exception("telling the end of a load failed")
