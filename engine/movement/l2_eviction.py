"""Evicts from L2: each salt over its quota, and the oldest where a storage fills up.

why       when                                        what goes                          down to
--------  ------------------------------------------  ---------------------------------  --------------------------
quota     IsolatedLRU, a salt above its limit         the salt's oldest                  its limit
capacity  used > capacity x trigger_watermark         the policy's order                 that x (1 - eviction_ratio)
full      writes found no room (`storage_full`)       the policy's order                 eviction_ratio of used less, or
                                                                                         room for all of them

Where writes find no room though some was made, and nothing was written since, deleting does not help (somebody else
fills the disk, or the storage counts late): it is tried again after a pause that doubles.

Each adapter has a loop of its own, so that a hanging one holds up nobody else. A loop works in passes of two seconds at
most; what is left is the next one's. An object that is being read or written is passed over. A storage that cannot be
reached ends the pass; the next one tries again. While a catalog's scan runs, only what it knows counts.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from engine.errors import EngineError
from engine.l1.eviction import IsolatedLRU, Noop
from engine.l1.quota import QuotaTable
from engine.l2.base import ConnectionFault
from engine.l2.tier import Tier
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThread, PeriodicThreads
from engine.quota_log import QuotaLog

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
#: Longest pass; also under the age at which a loop counts as stale.
PASS_S = 2.0
#: How long a stop waits for a delete that runs.
STOP_TIMEOUT_S = 3.0
#: Keys taken from the catalog at a time.
SLICE = 256
#: A storage that refuses this many deletes in a row is left alone until the next pass.
MAX_REFUSALS_IN_A_ROW = 64
#: A write that fails for want of room this soon after more was made than had been asked for may have begun before.
SETTLING_S = 0.25
#: Between two attempts to make room where that does not help.
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0

Rows = Sequence[tuple[ObjectKey, int]]
Clock = Callable[[], float]


class L2Eviction:
    """Owns one loop per adapter that evicts at all."""

    def __init__(self, tiers: Sequence[Tier], quotas: QuotaTable, threads: PeriodicThreads) -> None:
        self._threads = threads
        self._stopping = threading.Event()
        evicting = [tier for tier in tiers if tier.spec.eviction.eviction_policy != Noop.name]
        self._evictors = {tier.label: TierEvictor(tier, quotas, self._stopping.is_set) for tier in evicting}
        self._loops: dict[str, PeriodicThread] = {}

    def start(self) -> None:
        """Begins all loops."""
        for label, evictor in self._evictors.items():
            self._loops[label] = self._threads.run(
                f"l2-eviction-{label}", "medium", INTERVAL_S, partial(self._run, label, evictor)
            )

    def stop(self) -> None:
        """Ends all loops; each ends its pass with the call that runs. One whose storage hangs is left behind."""
        self._stopping.set()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for loop in self._loops.values():
            loop.stop(max(0.0, deadline - time.monotonic()))

    def wake(self) -> None:
        """Quotas changed: all loops look at once."""
        for loop in self._loops.values():
            loop.wake()

    def stored(self, tier: Tier) -> None:
        """An object was written: the next pass begins at once if that took the storage above its watermark."""
        evictor = self._evictors.get(tier.label)
        if evictor is not None and evictor.should_look() and tier.label in self._loops:
            self._loops[tier.label].wake()

    def storage_full(self, tier: Tier, nbytes: int) -> None:
        """A write of `nbytes` found no room: the next pass makes some, whatever the storage says of its capacity."""
        evictor = self._evictors.get(tier.label)
        if evictor is not None and evictor.ask_for_room(nbytes) and tier.label in self._loops:
            self._loops[tier.label].wake()

    def _run(self, label: str, evictor: "TierEvictor") -> str | None:
        done = evictor.run_pass()
        if evictor.has_more_to_do:
            self._loops[label].wake()
        return done


class TierEvictor:
    """Judges and evicts one adapter. `run_pass` is called by one thread, `ask_for_room` by any."""

    def __init__(
        self, tier: Tier, quotas: QuotaTable, is_stopping: Callable[[], bool], clock: Clock = time.monotonic
    ) -> None:
        self._tier, self._quotas, self._is_stopping, self._clock = tier, quotas, is_stopping, clock
        self._quota_log = QuotaLog(f"L2 adapter {tier.label}", quotas, clock)
        self._isolates = tier.spec.eviction.eviction_policy == IsolatedLRU.name
        self._lock = threading.Lock()
        self._room_wanted = 0
        #: Bytes in use to come down to after a write found no room; None when there is nothing to make up for.
        self._room_goal: int | None = None
        #: Bytes freed, or about to be, beyond what was asked for; counts until a moment after they were freed.
        self._room_to_spare = 0
        self._made_room_at = float("-inf")
        #: Bytes in use after room was made, and the pause that begins soon after that; 0 = writes went on since.
        self._used_after_room, self._pause_s = -1, 0.0
        self._pause_from = self._pause_until = float("-inf")
        #: Whether somebody was refused room during the pause.
        self._refused_room = False
        self._draining = False
        self._complaint = ""
        #: Whether the last pass ran out of time.
        self.has_more_to_do = False

    def should_look(self) -> bool:
        """Whether the storage is above its watermark, and the last pass met nothing that only time can help."""
        trigger = self._trigger_bytes()
        return trigger is not None and self._tier.catalog.bytes_used > trigger and not self._complaint

    def ask_for_room(self, nbytes: int) -> bool:
        """Has the next pass free `nbytes` more.

        False when as much is being freed already, or was just now, or when that has not helped before.
        """
        with self._lock:
            if self._is_in_vain():
                return False
            if self._room_goal is None and self._clock() - self._made_room_at >= SETTLING_S:
                self._room_to_spare = 0
            spared = min(nbytes, self._room_to_spare)
            self._room_to_spare -= spared
            self._room_wanted += nbytes - spared
            return spared < nbytes

    def run_pass(self) -> str | None:
        """One pass; returns what it did, None when there was nothing to do. Takes PASS_S and one call at most."""
        walk = _Walk(self._tier, self._is_stopping, self._clock)
        kind = complaint = ""
        try:
            if self._isolates and self._quotas.loaded:
                self._evict_over_quota(walk)
            if complaint := self._evict_to_goal(walk):
                kind = "room"
            elif complaint := self._in_vain():
                kind = "vain"
        except ConnectionFault as error:
            kind, complaint = "fault", f"the storage cannot be reached: {error}"
        self._quota_log.tell()
        if walk.refusals_in_a_row >= MAX_REFUSALS_IN_A_ROW:
            kind, complaint = "refused", f"{walk.refusals_in_a_row} deletes in a row were refused: {walk.refusal}"
        self.has_more_to_do = walk.out_of_time
        self._complain(kind, complaint)
        return walk.summary(complaint)

    def _is_in_vain(self) -> bool:
        """Whether what was freed last was of no use, and it is too early to try again. Call under the lock."""
        if self._room_goal is not None or not self._is_of_no_use():
            return False
        now = self._clock()
        if now >= self._pause_until:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._pause_from, self._pause_until = now, now + self._pause_s
            return False
        self._refused_room = self._refused_room or now >= self._pause_from
        return now >= self._pause_from

    def _is_of_no_use(self) -> bool:
        """Whether room was made and nothing was written since. Call under the lock."""
        if self._pause_s and self._tier.catalog.bytes_used > self._used_after_room:
            self._pause_s, self._refused_room = 0.0, False
        return self._pause_s > 0

    def _in_vain(self) -> str:
        """What to say of room that was made and is of no use; empty when nothing is."""
        with self._lock:
            if not self._is_of_no_use() or not self._refused_room:
                return ""
            return f"writes find no room though some was made, nothing is deleted for {self._pause_s:.0f} s"

    def _note_room(self) -> None:
        """Room was made. Call under the lock."""
        self._room_goal, self._made_room_at = None, self._clock()
        self._used_after_room = self._tier.catalog.bytes_used
        if not self._pause_s:
            self._pause_s = FIRST_PAUSE_S
            self._pause_from = self._made_room_at + SETTLING_S
            self._pause_until = self._made_room_at + self._pause_s

    # ---- quotas

    def _evict_over_quota(self, walk: "_Walk") -> None:
        """A slice of each salt in turn, so that one with much to lose does not keep the others above their limits."""
        catalog = self._tier.catalog
        passed = dict.fromkeys(filter(self._is_over_limit, catalog.bytes_by_salt()), 0)
        walk.give(PASS_S / 2)
        while passed and not walk.is_over():
            for salt in list(passed):
                is_over = partial(self._is_over_limit, salt)
                rows = catalog.oldest_of(salt, passed[salt], SLICE) if is_over() else []
                passed[salt] += self._evict_of(salt, rows, is_over, walk)
                if not rows:
                    del passed[salt]

    def _evict_of(self, cache_salt: str, rows: Rows, is_over: Callable[[], bool], walk: "_Walk") -> int:
        objects, nbytes = walk.evicted, walk.freed_bytes
        try:
            return walk.evict(rows, is_over)
        finally:
            limit = self._quotas.limit_of(cache_salt)
            self._quota_log.note(cache_salt, walk.evicted - objects, walk.freed_bytes - nbytes, limit)

    def _is_over_limit(self, cache_salt: str) -> bool:
        return self._tier.catalog.bytes_of(cache_salt) > self._quotas.limit_of(cache_salt)

    # ---- room

    def _evict_to_goal(self, walk: "_Walk") -> str:
        """Frees what the watermark or a failed write asks for; returns what is wrong if that cannot be had."""
        catalog = self._tier.catalog
        goal = self._goal()
        if goal is None:
            return ""
        walk.give(PASS_S)
        passed = 0
        while catalog.bytes_used > goal:
            if walk.is_over():
                return ""
            rows = catalog.oldest(passed, SLICE)
            if not rows:
                break
            passed += walk.evict(rows, lambda: catalog.bytes_used > goal)
        with self._lock:
            if self._room_goal is not None:
                self._note_room()
        if (used := catalog.bytes_used) <= goal:
            return ""
        known = "" if catalog.complete else ", the scan is not over yet"
        return f"{used} bytes are in use, {goal} were wanted, {walk.in_the_way} objects are in use or refused{known}"

    def _goal(self) -> int | None:
        """Bytes in use to come down to, None when there is room enough."""
        ratio, used = self._tier.spec.eviction.eviction_ratio, self._tier.catalog.bytes_used
        trigger, goals = self._trigger_bytes(), []
        if trigger is not None:
            target = int(trigger * (1 - ratio))
            self._draining = used > (target if self._draining else trigger)
            goals += [target] if self._draining else []
        with self._lock:
            wanted, self._room_wanted = self._room_wanted, 0
            if wanted and self._room_goal is None:
                freed = max(wanted, int(used * ratio))
                self._room_to_spare += freed - wanted
                self._room_goal = max(0, used - freed)
            elif self._room_goal is not None:
                self._room_goal = max(0, min(used, self._room_goal) - wanted)
            goals += [] if self._room_goal is None else [self._room_goal]
        return min(goals, default=None)

    def _trigger_bytes(self) -> int | None:
        """Bytes in use above which eviction begins; None when the capacity is not known."""
        capacity = self._tier.capacity_bytes
        return None if capacity is None else int(capacity * self._tier.spec.eviction.trigger_watermark)

    def _complain(self, kind: str, complaint: str) -> None:
        """Once when something begins to be wrong, and once when it is over."""
        if kind == self._complaint:
            return
        self._complaint = kind
        if kind:
            logger.warning("eviction from L2 adapter %s: %s; it is tried again", self._tier.label, complaint)
        else:
            logger.info("eviction from L2 adapter %s works again", self._tier.label)


class _Walk:
    """What one pass has done, and how long it may go on."""

    def __init__(self, tier: Tier, is_stopping: Callable[[], bool], clock: Clock) -> None:
        self._tier, self._is_stopping, self._clock = tier, is_stopping, clock
        self._started = self._until = clock()
        self.evicted = self.freed_bytes = self.in_the_way = 0
        self.refusals_in_a_row, self.refusal = 0, ""
        self.out_of_time = False

    def give(self, seconds: float) -> None:
        """The pass may go on until `seconds` after its start."""
        self._until = self._started + seconds

    def is_over(self) -> bool:
        """Whether the pass has to end, satisfied or not."""
        if self._is_stopping() or self.refusals_in_a_row >= MAX_REFUSALS_IN_A_ROW:
            return True
        late = self._clock() >= self._until
        self.out_of_time = self.out_of_time or late
        return late

    def evict(self, rows: Rows, wanted: Callable[[], bool]) -> int:
        """Deletes these objects while `wanted`; returns how many stay where they are. Raises ConnectionFault."""
        staying = 0
        for key, size in rows:
            if not wanted() or self.is_over():
                break
            staying += not self._evict_one(key, size)
        self.in_the_way += staying
        return staying

    def _evict_one(self, key: ObjectKey, size: int) -> bool:
        try:
            removed = self._tier.delete(key, evicted=True)
        except ConnectionFault:
            raise
        except (OSError, EngineError) as error:
            self.refusals_in_a_row += 1
            self.refusal = str(error)
            return False
        self.refusals_in_a_row = 0
        self.evicted += removed
        self.freed_bytes += size if removed else 0
        return removed or not self._tier.catalog.contains(key)

    def summary(self, complaint: str) -> str | None:
        """For the loop's record."""
        if not self.evicted and not self.in_the_way and not complaint:
            return None
        done = f"evicted {self.evicted} objects, {self.freed_bytes} bytes, {self.in_the_way} in the way"
        return f"{done}; {complaint}" if complaint else done
