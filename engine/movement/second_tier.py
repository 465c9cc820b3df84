"""L2 as the engine sees it: the configured adapters, what moves between them and L1, and what operators do to them.

    committed ─→ write_back.py ─→ tiers ─→ loads.py ─→ lookups.py (demand), warm.py (prefetch jobs)
    care.py reads the catalogs, l2_eviction.py makes room, scrub.py looks for damage

Without a configured adapter all of it is there and does nothing.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine.config import EngineConfig
from engine.errors import NoL2Adapter, StartError, UnknownL2Adapter
from engine.kv_layout import ObjectLayout
from engine.l1.cache import L1Cache
from engine.l1.eviction import IsolatedLRU, make_policy
from engine.l1.index import Entry
from engine.l1.quota import QuotaTable
from engine.l1.segment import SharedSegment
from engine.l2.catalog import Catalog
from engine.l2.deleting import delete_all
from engine.l2.listing import Listings
from engine.l2.metrics import TierGauges, TierMetrics
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from engine.movement.care import TierCare
from engine.movement.l2_eviction import L2Eviction
from engine.movement.loads import Loader
from engine.movement.lookups import DemandLookup, Lookups, Wanted
from engine.movement.scrub import Scrub
from engine.movement.warm import WarmJob, WarmJobs
from engine.movement.write_back import WriteBack
from engine.movement.write_queue import WriteQueue
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThread, PeriodicThreads
from engine.stats import Stats

logger = logging.getLogger(__name__)

#: How often calls are looked at that do not end.
WATCH_INTERVAL_S = 0.5
#: How long a stop waits for threads in a storage, after the time for writing back.
STOP_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class DeleteResult:
    """What a delete of many keys came to; `error` is empty unless the storage failed."""

    adapter: str
    deleted: int
    error: str = ""


class SecondTier:
    """Owns the adapters and all threads that work for them. `open`, `start`, `stop` are called once each."""

    def __init__(
        self,
        config: EngineConfig,
        l1: L1Cache,
        segment: SharedSegment,
        quotas: QuotaTable,
        stats: Stats,
        threads: PeriodicThreads,
    ) -> None:
        """Raises StartError for a configuration that cannot be."""
        if config.l2_adapter and config.hash_algorithm == "builtin":
            raise StartError(
                "hash_algorithm is builtin, which gives other keys in every process: nothing stored in L2 would be "
                "found again; use blake3 or sha256_cbor with an l2_adapter"
            )
        self._config, self._l1, self._quotas, self._threads = config, l1, quotas, threads
        metrics = TierMetrics(stats.registry)
        specs = [read_spec(given) for given in config.l2_adapter]
        policies = [make_policy(spec.eviction.eviction_policy, quotas.limit_of, 0) for spec in specs]
        self._policies = policies
        self.tiers = tuple(
            Tier(index, spec, Catalog(policies[index]), metrics.of(spec.type_name, index))
            for index, spec in enumerate(specs)
        )
        self.listings = Listings()
        self.eviction = L2Eviction(self.tiers, quotas, threads)
        self.loader = Loader(self.tiers, l1, segment, config.l2_lookup_deadline_seconds)
        self.lookups = Lookups(l1, self.loader, config.l2_lookup_deadline_seconds, threads)
        pool_bytes = l1.usage()[1]
        self.warm_jobs = WarmJobs(
            l1, self.loader, int(pool_bytes * config.eviction_trigger_watermark), self._would_exceed_l1_quota
        )
        dirty_bytes = config.write_back_max_bytes or pool_bytes // 4
        queues = [
            WriteQueue(
                tier,
                l1,
                segment,
                dirty_bytes // len(self.tiers),
                stored=partial(self._stored, tier),
                full=self.eviction.storage_full,
            )
            for tier in self.tiers
        ]
        self.write_back = WriteBack(queues, l1, threads, self._may_store)
        self._scrubs = [Scrub(tier, threads) for tier in self.tiers]
        self._care = [TierCare(tier, threads, self._refreshed) for tier in self.tiers]
        self._watch: PeriodicThread | None = None
        stats.registry.register(
            TierGauges(
                lambda: [
                    (queue.tier.type_name, queue.tier.index, {**queue.tier.gauges(), **queue.gauges()})
                    for queue in queues
                ]
            )
        )

    # ---- life

    def open(self) -> None:
        """Connects to all storages. Raises StartError."""
        opened: list[Tier] = []
        try:
            for tier in self.tiers:
                tier.open()
                opened.append(tier)
        except BaseException:
            for tier in opened:
                tier.close()
            raise
        for tier in self.tiers:
            logger.info("L2 adapter %s opened", tier.label)

    def start(self) -> None:
        """Begins to read the catalogs, to write back and to load."""
        if not self.tiers:
            return
        for care in self._care:
            care.start()
        self._watch = self._threads.run("l2-watch", "high", WATCH_INTERVAL_S, self._judge_stalled)
        self.loader.start()
        self.lookups.start()
        self.write_back.start()
        self.eviction.start()

    def stop(self) -> None:
        """Answers lookups, writes back for as long as is allowed, and lets go of the storages."""
        if not self.tiers:
            return
        self.lookups.stop()
        self.warm_jobs.stop()
        self.write_back.stop(time.monotonic() + self._config.write_back_drain_seconds)
        for care in self._care:
            care.stop(0.0)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        self.eviction.stop()
        for scrub in self._scrubs:
            scrub.stop(max(0.0, deadline - time.monotonic()))
        self.loader.stop(deadline)
        for care in self._care:
            care.stop(max(0.0, deadline - time.monotonic()))
        if self._watch is not None:
            self._watch.stop()
        for tier in self.tiers:
            tier.close()

    def _judge_stalled(self) -> str | None:
        self.listings.drop_old()
        stalled = 0
        for tier in self.tiers:
            number = tier.calls.judge_stalled()
            tier.counters.stalled.inc(number)
            stalled += number
            if number:
                logger.warning("L2 adapter %s: %d calls take too long, they count as faults", tier.label, number)
        self.loader.rescue()
        for queue in self.write_back.queues:
            queue.drop_if_away()
        return f"{stalled} stalled calls" if stalled else None

    def _refreshed(self, tier: Tier) -> None:
        policy = self._policies[tier.index]
        if isinstance(policy, IsolatedLRU):
            policy.capacity = tier.capacity_bytes or 0

    # ---- the data plane's side

    def committed(self, entries: Sequence[Entry]) -> None:
        """These objects became readable in L1."""
        if self.tiers:
            self.write_back.committed(entries)

    def prepare_lookup(self, wanted: Wanted, hit: int, finished: Callable[[DemandLookup], None]) -> DemandLookup | None:
        """See Lookups.prepare."""
        return self.lookups.prepare(wanted, hit, finished) if self.tiers else None

    def begin_lookup(self, lookup: DemandLookup) -> None:
        """See Lookups.begin."""
        self.lookups.begin(lookup)

    def start_warm(self, rows: Sequence[Sequence[ObjectKey]], layouts: Sequence[ObjectLayout]) -> WarmJob:
        """Starts a prefetch job, which without adapters finds nothing. Raises TooBusy."""
        return self.warm_jobs.start(rows, layouts)

    def used(self, keys: Sequence[ObjectKey]) -> None:
        """What is used in L1 is recent in L2 too."""
        for tier in self.tiers:
            for key in reversed(keys):
                tier.catalog.used(key)

    def _stored(self, tier: Tier, entry: Entry) -> None:
        self.eviction.stored(tier)
        if self._config.l2_store_policy == "skip_l1":
            self._l1.drop_written([entry])

    def _may_store(self, tier: Tier, cache_salt: str) -> bool:
        isolates = tier.spec.eviction.eviction_policy == IsolatedLRU.name
        return not isolates or not self._quotas.loaded or self._quotas.limit_of(cache_salt) > 0

    def _would_exceed_l1_quota(self, cache_salt: str, nbytes: int) -> bool:
        if self._config.eviction_policy != IsolatedLRU.name or not self._quotas.loaded:
            return False
        return self._l1.bytes_of(cache_salt) + nbytes > self._quotas.limit_of(cache_salt)

    # ---- the operators' side

    def adapters(self) -> list[dict[str, object]]:
        """The body of GET /l2/adapters, in the order of the configuration."""
        return [{"index": tier.index, "type_name": tier.type_name, "primary": tier.index == 0} for tier in self.tiers]

    def follow(self, config: EngineConfig) -> None:
        """Goes by these settings from now on, as far as they may change."""
        self._config = config
        self.lookups.deadline_s = self.loader.patience_s = config.l2_lookup_deadline_seconds
        self.warm_jobs.room_bytes = int(self._l1.usage()[1] * config.eviction_trigger_watermark)

    def find(self, type_name: str | None) -> Tier:
        """The first adapter of a type, the primary for None. Raises NoL2Adapter, UnknownL2Adapter."""
        if not self.tiers:
            raise NoL2Adapter("no L2 adapter configured")
        for tier in self.tiers:
            if type_name is None or tier.type_name == type_name:
                return tier
        known = ", ".join(tier.type_name for tier in self.tiers)
        raise UnknownL2Adapter(f"no L2 adapter {type_name!r}; configured are {known}")

    def delete_keys(self, type_name: str | None, keys: Sequence[ObjectKey]) -> DeleteResult:
        """Deletes objects from one adapter. Absent ones, and those in use just now, are passed over.

        A queued write of a key is called off. Raises NoL2Adapter, UnknownL2Adapter.
        """
        tier = self.find(type_name)
        wanted = dict.fromkeys(keys)
        for key in wanted:
            self.write_back.cancel(tier, key)
        deleted, error = delete_all(tier.delete, (key for key in wanted if not tier.surely_lacks(key)))
        self.listings.forget(tier)
        return DeleteResult(tier.type_name, deleted, error[:500])

    def start_scrub(self, type_name: str | None) -> dict[str, object]:
        """Begins to check everything an adapter holds; see Scrub.start. Raises NoL2Adapter, UnknownL2Adapter."""
        return self._scrubs[self.find(type_name).index].start()

    def stop_scrub(self, type_name: str | None) -> dict[str, object]:
        """See Scrub.stop. Raises NoL2Adapter, UnknownL2Adapter."""
        return self._scrubs[self.find(type_name).index].stop()

    def scrub_state(self, type_name: str | None) -> dict[str, object]:
        """See Scrub.state. Raises NoL2Adapter, UnknownL2Adapter."""
        return self._scrubs[self.find(type_name).index].state()

    def bytes_by_salt(self) -> dict[str, int]:
        """Stored bytes of each salt over all adapters."""
        total: dict[str, int] = {}
        for tier in self.tiers:
            for salt, nbytes in tier.catalog.bytes_by_salt().items():
                total[salt] = total.get(salt, 0) + nbytes
        return total

    def take_changed_salts(self) -> dict[str, int]:
        """Stored bytes over all adapters of the salts that changed since the last call."""
        changed = set().union(*(tier.catalog.take_changed_salts() for tier in self.tiers))
        return {salt: sum(tier.catalog.bytes_of(salt) for tier in self.tiers) for salt in changed}

    def is_healthy(self) -> bool:
        """Whether every storage can be reached and is known."""
        return all(tier.is_healthy() for tier in self.tiers)

    def gauges(self) -> dict[str, float]:
        """Values of the metrics that are no counters and belong to no single adapter."""
        loads = self.loader.describe()
        return {
            "prefetch_jobs": len(self.warm_jobs),
            "l2_adapters": len(self.tiers),
            "l2_lookups": len(self.lookups),
            "l2_loads_waiting": loads["waiting"],
            "l2_loads_running": loads["running"],
            "l2_loads_bytes": loads["running_bytes"],
        }

    def describe(self) -> dict[str, Any]:
        """L2's part of GET /status `storage_manager`."""
        threads = {entry["name"]: entry["is_active"] for entry in self._threads.describe()}
        active = sum(tier.breaker.state != "open" for tier in self.tiers)
        loads = self.loader.describe()
        shared = {"num_l2_adapters": len(self.tiers), "num_active_adapters": active, "num_draining_adapters": 0}
        writing = threads.get("l2-write-back", not self.tiers)
        loading = threads.get("l2-lookup-deadlines", not self.tiers)
        return {
            "store_controller": {
                "is_healthy": writing,
                "thread_alive": writing,
                "policy": self._config.l2_store_policy,
                "overrun_objects": self.write_back.overrun,
                "queues": {queue.tier.label: queue.describe() for queue in self.write_back.queues},
                **shared,
            },
            "prefetch_controller": {
                "is_healthy": loading,
                "thread_alive": loading,
                "lookup_phase_count": len(self.lookups),
                "active_jobs": len(self.warm_jobs),
                "pending_queue_size": loads["waiting"],
                "in_flight_request_count": loads["running"],
                "in_flight_bytes": loads["running_bytes"],
                "lookup_deadline_seconds": self._config.l2_lookup_deadline_seconds,
                **shared,
            },
            "l2_adapters": [tier.describe() for tier in self.tiers],
            "num_l2_adapters": len(self.tiers),
        }
