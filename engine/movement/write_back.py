"""Writes what was stored in L1 to L2: in the background, bounded, retried, and given up on in the open.

    committed ─dispatcher─→ queued (pinned) ─→ running (pinned) ─→ stored
                  │                              └─failed→ waiting for a retry (not pinned) ─→ queued … ─→ dead
                  └─→ not queued: stored already, queue full, breaker open, tenant at limit 0

outcome         meaning
--------------  -------------------------------------------------------------------------------------------------
stored          written
present         L2 had it already
queue_full      the adapter's share of write_back_max_bytes is dirty: not written, and clean
breaker_open    the adapter could not be reached lately: not written, and clean; bypassed: operators left it out
no_quota        its tenant's limit is 0 where the adapter evicts by quota
retried         an attempt failed, another one will be made
evicted_before  L1 needed the room before the next attempt
cancelled       deleted from L2 before it was written
dead            given up on: the newest of these are shown by GET /status
left_at_stop    the server stopped before it was written

Each adapter has its own queue, threads and share of the bytes, so a slow one holds up neither the others nor the data
plane, which does no more than append to a list.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from engine.l1.cache import L1Cache
from engine.l1.index import Entry
from engine.l2.catalog import Form
from engine.l2.tier import Tier
from engine.movement.write_queue import WriteQueue
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThreads, RunRecord

logger = logging.getLogger(__name__)

#: Committed objects that the dispatcher has not seen yet.
MAX_COMMITTED = 1 << 16
TURN_S = 0.5


class WriteBack:
    """Takes what L1 commits and deals it out to the adapters' queues."""

    def __init__(
        self,
        queues: Sequence[WriteQueue],
        l1: L1Cache,
        threads: PeriodicThreads,
        may_store: Callable[[Tier, str], bool],
    ) -> None:
        """`may_store` says whether a tenant may have anything in an adapter at all."""
        self.queues, self._l1, self._threads, self._may_store = tuple(queues), l1, threads, may_store
        self._committed: deque[Entry] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._record = RunRecord("l2-write-back", "high", TURN_S)
        self._thread = threading.Thread(target=self._loop, name="l2-write-back", daemon=True)
        #: Objects that came while the dispatcher was far behind.
        self.overrun = 0

    def start(self) -> None:
        """Begins to write back."""
        for queue in self.queues:
            queue.start()
        self._threads.add(self._record)
        self._record.is_running = True
        self._thread.start()

    def committed(self, entries: Iterable[Entry]) -> None:
        """These objects became readable. Quick; any thread may call."""
        for entry in entries:
            if len(self._committed) >= MAX_COMMITTED:
                self.overrun += 1
            else:
                self._committed.append(entry)
        self._wake.set()

    def cancel(self, tier: Tier, key: ObjectKey) -> bool:
        """Whether a write of `key` to this adapter was called off before it began."""
        return self.queues[tier.index].cancel(key)

    def waiting_for(self, key: ObjectKey) -> list[str]:
        """The labels of the adapters to which it is being written, or is about to be."""
        return [queue.tier.label for queue in self.queues if queue.has(key)]

    def stop(self, deadline: float) -> None:
        """Writes what is queued until `deadline` (monotonic), and says what it left."""
        self._record.stopped_on_purpose = True
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(max(0.1, deadline - time.monotonic()))
        for queue in self.queues:
            left_bytes = queue.dirty_bytes
            left = queue.drain(deadline)
            if left:
                logger.warning(
                    "L2 adapter %s: stopped with %d objects not written (%d bytes were dirty when the stop began)",
                    queue.tier.label, left, left_bytes,
                )  # fmt: skip
        for queue in self.queues:
            queue.join(max(deadline, time.monotonic() + 1.0))

    def _loop(self) -> None:
        try:
            while True:
                self._wake.wait(TURN_S)
                self._wake.clear()
                stopping = self._stopping
                started = time.time()
                try:
                    dealt = self._deal_out()
                    self._record.ran(started, success=True, count=bool(dealt))
                except Exception as error:  # a loop top: write-back must go on after a bug
                    logger.exception("dealing out committed objects failed")
                    self._record.ran(started, success=False, message=repr(error))
                if stopping:
                    return
        finally:
            self._record.is_running = False

    def _deal_out(self) -> int:
        number = 0
        while self._committed:
            entry = self._committed.popleft()
            number += 1
            form = Form(entry.fingerprint, entry.missing)
            for queue in self.queues:
                if not self._may_store(queue.tier, entry.key.cache_salt):
                    queue.tier.counters.write_back["no_quota"].inc()
                elif queue.wants(entry, form):
                    self._queue(queue, entry)
        return number

    def _queue(self, queue: WriteQueue, entry: Entry) -> None:
        """What is READY under the key by now may be another object than was committed: its own form counts."""
        pin = self._l1.hold([entry.key], (entry.fingerprint,))[0]
        if pin is None:
            queue.tier.counters.write_back["evicted_before"].inc()
            return
        held = pin.entries[0]
        queue.put(held, Form(held.fingerprint, held.missing), pin)
