"""Lookups that find part of their prefix in L2: they load it, and are answered when it is there or time is up.

    begin ─→ loads up to WINDOW objects at a time, in the order of the prefix
          ─→ an object that cannot be had ends the prefix: nothing behind it is waited for
          ─→ all there, or the deadline: leases what is in L1 by then, in one step with the answer

What was in L1 at the beginning is pinned meanwhile, so that loading the head of a prefix does not push out its tail.
Cancelled (the request was looked up again, freed or ended), a lookup leases nothing. What is still being loaded then,
or at the deadline, is kept in L1 when it comes.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from engine.kv_layout import ObjectLayout
from engine.l1.cache import L1Cache
from engine.l1.holds import Pin
from engine.l1.leases import Scope
from engine.movement.loads import Load, LoadEnd, Loader
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThreads, RunRecord

logger = logging.getLogger(__name__)

#: Objects one lookup has asked for and not got yet.
WINDOW = 32
#: Chunks that are looked for in both tiers at a time.
PLANNED_AT_ONCE = 16
#: Lookups under way at one time; more are answered with what is in L1.
MAX_LOOKUPS = 4096
#: The deadline thread turns at least this often.
TURN_S = 1.0
_MISSED: Mapping[LoadEnd | None, str] = {
    LoadEnd.MISSING: "absent",
    LoadEnd.FAILED: "failed",
    LoadEnd.NO_ROOM: "no_room",
}
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a lookup is about. `rows[i]`: the keys of chunk i, one per rank; `layouts`: those registered."""

    rows: Sequence[Sequence[ObjectKey]]
    layouts: Sequence[ObjectLayout]
    owner: str
    scope: Scope
    readers: int

    def windows(self) -> Mapping[bytes, Sequence[int]]:
        """Fingerprint -> windows, as L1 wants it."""
        return {layout.fingerprint: layout.windows for layout in self.layouts}


class DemandLookup:
    """One lookup under way. `chunks` is its answer, None until there is one."""

    def __init__(
        self, l1: L1Cache, loader: Loader, wanted: Wanted, deadline: float, finished: Callable[["DemandLookup"], None]
    ) -> None:
        """`finished` is called once, unless the lookup is cancelled; under no lock, in any thread."""
        self._l1, self._loader, self._wanted, self._finished = l1, loader, wanted, finished
        self.deadline = deadline
        self._began, self._ended = time.monotonic(), 0.0
        self.chunks: int | None = None
        #: Why the chunks behind the answer are not in it: one of stats.LOOKUP_RESULTS.
        self.missed_because = "absent"
        self._lock = threading.Lock()
        self._over = False
        self._pins: list[Pin] = []
        self._to_load: list[tuple[int, ObjectKey]] = []
        self._next = 0
        self._asked: dict[ObjectKey, int] = {}
        self._loads: dict[ObjectKey, Load] = {}
        self._loaded: list[Load] = []
        self._end_row = 0

    @property
    def over(self) -> bool:
        """Whether it was answered or cancelled."""
        return self._over

    def plan(self, hit: int) -> bool:
        """Finds what to load behind the first `hit` chunks, which are leased already. False: nothing can be had."""
        fingerprints = [layout.fingerprint for layout in self._wanted.layouts]
        self._end_row, rows, found = hit, self._wanted.rows, True
        while found and self._end_row < len(rows):
            batch = rows[self._end_row : self._end_row + PLANNED_AT_ONCE]
            keys = [key for row in batch for key in row]
            pins = self._l1.hold(keys, fingerprints)
            self._pins += [pin for pin in pins if pin is not None]
            in_l1 = dict(zip(keys, (pin is not None for pin in pins), strict=True))
            absent = [key for key in keys if not in_l1[key]]
            in_l2 = dict(zip(absent, self._loader.may_find(absent, self._wanted.layouts, demand=True), strict=True))
            for row in batch:
                found = all(in_l1[key] or in_l2[key] for key in row)
                if not found:
                    break
                self._to_load += [(self._end_row, key) for key in row if not in_l1[key]]
                self._end_row += 1
        if not self._to_load:
            self._let_go()
        return bool(self._to_load)

    def missed_chunks(self) -> int:
        """Chunks asked for and not in the answer."""
        return len(self._wanted.rows) - (self.chunks or 0)

    def took_s(self) -> float:
        """Seconds from the request to the answer."""
        return self._ended - self._began

    def start(self) -> None:
        """Asks for the first objects."""
        self._advance()

    def cancel(self) -> None:
        """Nobody wants the answer any more. Afterwards nothing is leased."""
        with self._lock:
            if self._over:
                return
            self._over = True
        self._let_go()

    def time_is_up(self) -> None:
        """Answers with what is there."""
        self.missed_because = "late"
        self._answer()

    def _advance(self) -> None:
        """Asks for more, or answers when all that counts is there."""
        while True:
            with self._lock:
                if self._over:
                    return
                more = self._next < len(self._to_load) and self._to_load[self._next][0] < self._end_row
                if not more or len(self._asked) >= WINDOW:
                    complete = not more and all(row >= self._end_row for row in self._asked.values())
                    break
                row, key = self._to_load[self._next]
                self._next += 1
                self._asked[key] = row
            load = self._loader.request(key, self._wanted.layouts, self._on_load, demand=True)
            if load is None:
                self._not_asked(row, key)
                continue
            with self._lock:
                late = self._over
                if not late and key in self._asked:
                    self._loads[key] = load
            if late:
                self._loader.abandon(load, self._on_load)
        if complete:
            self._answer()

    def _not_asked(self, row: int, key: ObjectKey) -> None:
        """No tier can be asked for it just now; another lookup may have brought it meanwhile."""
        pin = self._l1.hold([key], [layout.fingerprint for layout in self._wanted.layouts])[0]
        with self._lock:
            del self._asked[key]
            late = self._over
            if pin is None:
                self._end_row = min(self._end_row, row)
            elif not late:
                self._pins.append(pin)
        if late and pin is not None:
            self._l1.unpin(pin)

    def _on_load(self, load: Load) -> None:
        with self._lock:
            row = self._asked.pop(load.key)
            self._loads.pop(load.key, None)
            late = self._over
            if not late and load.pin is not None:
                self._loaded.append(load)
            elif not late and row < self._end_row:
                self._end_row = row
                self.missed_because = _MISSED.get(load.end, "contended")
        if late:
            self._loader.release(load)
        else:
            if load.pin is None:
                self._loader.release(load)
            self._advance()

    def _answer(self) -> None:
        wanted = self._wanted
        with self._lock:
            if self._over:
                return
            self._over = True
            self._ended = time.monotonic()
            self.chunks = self._l1.lease_prefix(
                wanted.rows, wanted.windows(), wanted.owner, wanted.scope, wanted.readers
            )
        self._let_go()
        self._finished(self)

    def _let_go(self) -> None:
        """Gives back pins and shares, and what was asked for and has not begun."""
        with self._lock:
            pins, self._pins = self._pins, []
            loaded, self._loaded = self._loaded, []
            waiting, self._loads = list(self._loads.values()), {}
        for pin in pins:
            self._l1.unpin(pin)
        for load in loaded:
            self._loader.release(load)
        for load in waiting:
            self._loader.abandon(load, self._on_load)


class Lookups:
    """The lookups under way and the thread that keeps their deadlines."""

    def __init__(self, l1: L1Cache, loader: Loader, deadline_s: float, threads: PeriodicThreads) -> None:
        self._l1, self._loader, self.deadline_s, self._threads = l1, loader, deadline_s, threads
        self._waiting: list[tuple[float, int, DemandLookup]] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._stopping = False
        self._record = RunRecord("l2-lookup-deadlines", "high", TURN_S)
        self._thread = threading.Thread(target=self._loop, name="l2-lookup-deadlines", daemon=True)

    def __len__(self) -> int:
        return sum(not lookup.over for _, _, lookup in self._waiting)

    def start(self) -> None:
        """Begins to keep deadlines."""
        self._threads.add(self._record)
        self._record.is_running = True
        self._thread.start()

    def stop(self) -> None:
        """Answers whoever waits, and ends the thread."""
        self._record.stopped_on_purpose = True
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def prepare(self, wanted: Wanted, hit: int, finished: Callable[[DemandLookup], None]) -> DemandLookup | None:
        """A lookup that waits for its `begin`; None when L2 has nothing that would make more of the `hit` chunks."""
        lookup = DemandLookup(self._l1, self._loader, wanted, time.monotonic() + self.deadline_s, finished)
        if self._stopping or len(self._waiting) >= MAX_LOOKUPS or not lookup.plan(hit):
            return None
        return lookup

    def begin(self, lookup: DemandLookup) -> None:
        """Starts to load; the lookup is answered at its deadline at the latest."""
        with self._changed:
            heapq.heappush(self._waiting, (lookup.deadline, next(self._numbers), lookup))
            self._changed.notify()
        lookup.start()

    def _loop(self) -> None:
        try:
            while True:
                with self._changed:
                    if not self._stopping:
                        self._changed.wait(self._pause_s())
                    due = self._take_due(everybody=self._stopping)
                    stopping = self._stopping
                started = time.time()
                for lookup in due:
                    try:
                        lookup.time_is_up()
                    except Exception:  # a loop top: the others have deadlines too
                        logger.exception("a lookup could not be answered at its deadline")
                self._record.ran(started, success=True, count=bool(due))
                if stopping:
                    return
        finally:
            self._record.is_running = False

    def _pause_s(self) -> float:
        return min(TURN_S, max(0.0, self._waiting[0][0] - time.monotonic())) if self._waiting else TURN_S

    def _take_due(self, *, everybody: bool) -> list[DemandLookup]:
        now, due = time.monotonic(), []
        while self._waiting and (everybody or self._waiting[0][0] <= now or self._waiting[0][2].over):
            lookup = heapq.heappop(self._waiting)[2]
            if not lookup.over:
                due.append(lookup)
        return due
