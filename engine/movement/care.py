"""What a tier needs done to it now and then, in a thread of its own: a storage that hangs holds up nobody else.

The catalog is read from the storage at start, and again after a failure until it is complete; then the storage is
asked about itself, for people and for eviction. Where others can remove what is stored (a TTL, a life cycle rule, a
restart without its data, rm), the catalog is compared with the storage now and then, after an outage, and when an
object that was known turned out to be gone. A breaker whose pause is over waits for the next call to probe the
storage; where none comes, the probe is made here, so that a server without traffic gets healthy again.
"""

import logging
import time
from collections.abc import Callable

from engine.l2.tier import Tier
from engine.periodic import PeriodicThread, PeriodicThreads

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LONGEST_PAUSE_S = 60.0
#: Between two comparisons of the catalog: the longest, and the shortest unless there was an outage.
COMPARE_EVERY_S = 3600.0
COMPARE_GAP_S = 30.0


class TierCare:
    """One tier's thread. `refreshed` is called after each look at the storage."""

    def __init__(self, tier: Tier, threads: PeriodicThreads, refreshed: Callable[[Tier], None]) -> None:
        self._tier, self._threads, self._refreshed = tier, threads, refreshed
        self._pause_s, self._scan_at = INTERVAL_S, 0.0
        self._thread: PeriodicThread | None = None
        self._waits_for_probe = False
        ttl_s = tier.spec.fields.get("ttl_seconds") or 0
        self._compare_every_s = max(COMPARE_GAP_S, min(COMPARE_EVERY_S, ttl_s / 2)) if ttl_s else COMPARE_EVERY_S
        self._compared_at = time.monotonic()
        self._outages_seen = self._ghosts_seen = 0

    def start(self) -> None:
        """Begins with the scan, at once."""
        self._thread = self._threads.run(f"l2-care-{self._tier.label}", "medium", INTERVAL_S, self._work)
        self._thread.wake()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread; one that hangs in its storage is left behind. May be called again."""
        if self._thread is not None:
            self._thread.stop(timeout_s)

    def _work(self) -> str | None:
        tier, now = self._tier, time.monotonic()
        said = None
        try:
            self._probe_if_nobody_does()
            tier.refresh()
            self._refreshed(tier)
            if settled := tier.settle_doubts():
                said = f"{settled} writes without an answer were undone"
            if not tier.catalog.complete and now >= self._scan_at:
                said = self._scan()
            elif tier.catalog.complete and not tier.adapter.is_ours_alone and self._should_compare(now):
                said = self._compare()
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return said

    def _probe_if_nobody_does(self) -> None:
        """Only what was half-open a turn ago too: traffic is the better probe. Raises OSError."""
        waited, self._waits_for_probe = self._waits_for_probe, self._tier.breaker.state == "half_open"
        if waited and self._waits_for_probe:
            self._tier.probe()

    def _should_compare(self, now: float) -> bool:
        tier, since = self._tier, now - self._compared_at
        if tier.breaker.state != "closed":
            return False
        had_outage, met_ghosts = tier.breaker.times_opened > self._outages_seen, tier.ghosts_met > self._ghosts_seen
        return had_outage or since > self._compare_every_s or (met_ghosts and since > COMPARE_GAP_S)

    def _compare(self) -> str:
        """Raises OSError; then it is tried again at the next turn."""
        tier = self._tier
        outages, ghosts = tier.breaker.times_opened, tier.ghosts_met
        lost, new = tier.compare_catalog()
        self._outages_seen, self._ghosts_seen, self._compared_at = outages, ghosts, time.monotonic()
        said = f"{lost} objects are gone from the storage, {new} were put there by others"
        if lost or new:
            logger.info("L2 adapter %s: %s", tier.label, said)
        return said

    def _scan(self) -> str:
        tier, started = self._tier, time.monotonic()
        if tier.breaker.state != "closed":
            return "the catalog is incomplete, and the storage is away"
        try:
            tier.take_scan()
        except OSError as error:
            said = f"the catalog is incomplete, trying again in {self._pause_s:.0f} s: {error}"
            if not tier.scan_error:
                logger.warning("L2 adapter %s: %s", tier.label, said)
            tier.scan_error = str(error)[:300]
            self._scan_at = time.monotonic() + self._pause_s
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            return said
        tier.scan_error, self._pause_s = "", INTERVAL_S
        catalog = tier.catalog
        said = f"{len(catalog)} objects, {catalog.bytes_used} bytes found in {time.monotonic() - started:.1f} s"
        logger.info("L2 adapter %s: %s", tier.label, said)
        return said
