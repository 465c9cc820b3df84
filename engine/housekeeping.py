"""The engine's loops: eviction, expiry of leases and sessions, removal of dead workers."""

import logging
import time
from collections.abc import Callable

from engine.config import EngineConfig
from engine.l1.cache import L1Cache
from engine.l1.quota import QuotaTable
from engine.periodic import PeriodicThread, PeriodicThreads
from engine.quota_log import QuotaLog
from engine.registrations import Registration, Registrations
from engine.sessions import Sessions
from engine.stats import Stats

logger = logging.getLogger(__name__)

EVICTION_INTERVAL_S = 1.0
EXPIRY_INTERVAL_S = 1.0
#: Slowest pace at which dead workers and idle sessions are looked for.
CLEANING_INTERVAL_S = 5.0
#: How often it is told that holds keep eviction from its target.
SAY_AGAIN_S = 30.0
#: A loop that comes this many intervals late was stopped together with the whole process.
PAUSE_FACTOR = 3


class Housekeeping:
    """Owns the loops; each run works through tables in slices, so the data plane never waits long."""

    def __init__(
        self,
        config: EngineConfig,
        l1: L1Cache,
        sessions: Sessions,
        registrations: Registrations,
        quotas: QuotaTable,
        stats: Stats,
        threads: PeriodicThreads,
        reap: Callable[[Registration], bool],
    ) -> None:
        """`reap` removes a silent worker and says whether it was still there."""
        self._config, self._l1, self._sessions, self._registrations = config, l1, sessions, registrations
        self._quotas, self._stats, self._threads, self._reap_worker = quotas, stats, threads, reap
        self._quota_log = QuotaLog("L1", quotas)
        self._loops: list[PeriodicThread] = []
        self._eviction: PeriodicThread | None = None
        self._said_at = float("-inf")
        self.follow(config)

    def follow(self, config: EngineConfig) -> None:
        """Evicts by these settings from now on."""
        self._trigger_bytes = int(self._l1.usage()[1] * config.eviction_trigger_watermark)
        self._target_bytes = int(self._trigger_bytes * (1 - config.eviction_ratio))
        self.evict_if_full()

    def start(self) -> None:
        """Begins all loops."""
        config = self._config
        self._eviction = self._run("l1-eviction", "critical", EVICTION_INTERVAL_S, self._evict)
        self._run("l1-expiry", "high", EXPIRY_INTERVAL_S, self._expire)
        cleaning = min(CLEANING_INTERVAL_S, config.session_ttl_seconds / 4)
        self._run("session-expiry", "medium", cleaning, self._expire_sessions)
        if config.worker_reap_timeout_seconds:
            shortest = min(config.worker_reap_timeout_seconds, config.worker_registration_grace_seconds)
            self._reap_interval_s = min(CLEANING_INTERVAL_S, shortest / 4)
            self._reaped_at = time.monotonic()
            self._run("worker-reaper", "medium", self._reap_interval_s, self._reap)

    def stop(self) -> None:
        """Ends all loops and waits for their runs."""
        for loop in self._loops:
            loop.stop()

    def evict_if_full(self) -> None:
        """Has the eviction run at once when usage is above the watermark."""
        if self._l1.usage()[0] > self._trigger_bytes:
            self.evict_now()

    def evict_now(self) -> None:
        """Has the eviction run at once."""
        if self._eviction is not None:
            self._eviction.wake()

    def count_evictions(self) -> None:
        """Moves what the cache counted since the last time into the metrics."""
        for reason, number in self._l1.take_evictions().items():
            self._stats.evicted_by_reason[reason].inc(number)
            self._stats.evicted_chunks.inc(number)

    def _run(self, name: str, level: str, interval_s: float, work: Callable[[], str | None]) -> PeriodicThread:
        loop = self._threads.run(name, level, interval_s, work)
        self._loops.append(loop)
        return loop

    def _evict(self) -> str | None:
        self._stats.eviction_ticks.inc()
        evicted = held = 0
        if self._quotas.loaded:
            evicted, held = self._l1.evict_over_quota(self._quota_log.note)
            self._quota_log.tell()
        used, capacity = self._l1.usage()
        if used > self._trigger_bytes:
            self._stats.eviction_triggered.inc()
            more, held = self._l1.evict_to(self._target_bytes)
            evicted += more
            self._say_what_is_left(self._l1.usage()[0], capacity, held)
        self.count_evictions()
        return f"evicted {evicted}, held {held}" if evicted or held else None

    def _say_what_is_left(self, left: int, capacity: int, held: int) -> None:
        """Now and then, while clients hold so much that eviction cannot come down to its target."""
        now = time.monotonic()
        if left <= self._trigger_bytes or not held or now - self._said_at < SAY_AGAIN_S:
            return
        self._said_at = now
        logger.warning(
            "eviction left %d of %d bytes in use, %d were wanted: %d objects are leased or pinned",
            left, capacity, self._target_bytes, held,
        )  # fmt: skip

    def _expire(self) -> str | None:
        owners, reservations = self._l1.expire()
        self._stats.expired["lease"].inc(owners)
        self._stats.expired["reservation"].inc(reservations)
        if not owners and not reservations:
            return None
        logger.warning("%d requests' leases and %d reservations ran out of time", owners, reservations)
        return f"leases of {owners} requests, {reservations} reservations"

    def _expire_sessions(self) -> str | None:
        dropped = self._sessions.expire()
        return f"dropped {dropped}" if dropped else None

    def _reap(self) -> str | None:
        """Not right after a pause of the whole process: what clients sent meanwhile may not have been read yet."""
        now, before = time.monotonic(), self._reaped_at
        self._reaped_at = now
        if now - before > PAUSE_FACTOR * self._reap_interval_s:
            return f"nobody judged after a pause of {now - before:.0f} s"
        reaped = sum(self._reap_worker(registration) for registration in self._registrations.silent())
        self._stats.reaped_workers.inc(reaped)
        return f"removed {reaped} workers" if reaped else None
