"""The cache, as its callers see it.

    client ── register ─→ lookup ─→ retrieve … ─→ store … ─→ end_session          (data plane, hot)
    operator ── clear, quotas, checksums, status, metrics                         (control plane, rare)

Engine wires the parts together: sessions.py (token hashes), registrations.py (workers), l1/ (what is kept in memory),
movement/ (what moves between L1 and L2), transfers.py (copies), tenants.py (quotas and usage), housekeeping.py (loops),
status.py and stats.py (what is told). All verbs may be called from any thread. Bookkeeping verbs take microseconds;
those that copy (store, retrieve, commit_store with data, prepare_retrieve by message) take milliseconds.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import status
from engine.config import SHM_OFF, EngineConfig
from engine.device.tensors import KVTensors
from engine.errors import BadRequest, NoKVMemory, UnknownInstance, Unsupported
from engine.housekeeping import Housekeeping
from engine.kv_layout import EngineDrivenRegistration, engine_driven_layout
from engine.l1.cache import L1Cache
from engine.l1.eviction import make_policy
from engine.l1.holds import ClearResult
from engine.l1.index import Entry
from engine.l1.pool import SlotPool
from engine.l1.quota import QuotaTable
from engine.l1.segment import SharedSegment, default_pool_name, remove_stale_pools
from engine.movement.prefixes import Prefixes
from engine.movement.second_tier import SecondTier
from engine.movement.steering import Steering
from engine.object_key import MAX_WORLD_SIZE, check_model_name
from engine.periodic import PeriodicThreads
from engine.registrations import Registration, Registrations
from engine.sessions import Sessions
from engine.stats import Stats
from engine.switches import Switches
from engine.tenants import Tenants
from engine.token_hasher import TokenHasher
from engine.transfers import Transfers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """What an engine-driven client maps: a segment name without slash and its size; empty and 0 for messages."""

    shm_name: str
    pool_size: int


def _nothing_to_tell() -> None:
    """Nobody listens to changes."""


class Engine:
    """One cache. `start` makes it usable, `stop` gives everything back."""

    def __init__(self, config: EngineConfig) -> None:
        self.boot_id = secrets.token_hex(6)
        self.started_at = time.time()
        self.stats = Stats()
        self.threads = PeriodicThreads()
        #: Called, never under a lock, after a registration, unregistration, clear or quota change.
        self.on_change: Callable[[], None] = _nothing_to_tell
        #: Called, never under a lock, when a lookup that had to wait for L2 has its answer.
        self.on_lookup_finished: Callable[[], None] = _nothing_to_tell
        self._offers_shared_memory = config.shm_name != SHM_OFF
        own_name = config.shm_name if self._offers_shared_memory else ""
        pool = SlotPool(config.l1_size_bytes)
        self.segment = SharedSegment(own_name or default_pool_name(config.instance_id, self.boot_id), pool.capacity)
        self.quota_table = QuotaTable()
        self.l1 = L1Cache(
            pool,
            make_policy(config.eviction_policy, self.quota_table.limit_of, pool.capacity),
            write_ttl_s=config.l1_write_ttl_seconds,
            read_ttl_s=config.l1_read_ttl_seconds,
        )
        hasher = TokenHasher(config.hash_algorithm, config.chunk_size)
        self.sessions = Sessions(hasher, config.session_ttl_seconds)
        self.registrations = Registrations(config.worker_reap_timeout_seconds, config.worker_registration_grace_seconds)
        self.housekeeping = Housekeeping(
            config, self.l1, self.sessions, self.registrations, self.quota_table, self.stats, self.threads, self._reap
        )
        switches = Switches()
        self.transfers = transfers = Transfers(
            self.l1,
            self.segment,
            self.sessions,
            self.registrations,
            self.stats,
            chunk_size=config.chunk_size,
            offers_shared_memory=self._offers_shared_memory,
            on_written=self._written,
            switches=switches,
        )
        self.l2 = SecondTier(config, self.l1, self.segment, self.quota_table, self.stats, self.threads)
        self.prefixes = prefixes = Prefixes(
            hasher, self.sessions, self.registrations, self.l1, self.l2, self.stats, self._lookup_finished, switches
        )
        self.steering = Steering(config, switches, self.housekeeping, self.l1, self.l2)
        tenants = Tenants(config, self.quota_table, self.l1, self.l2, quotas_changed=self._quotas_changed)
        self.tenants = tenants
        # Quotas and usage; see tenants.py.
        self.load_quotas, self.review_quota_epoch = tenants.load, tenants.review_epoch
        self.advance_quota_epoch, self.keep_quota_epoch = tenants.advance_epoch, tenants.keep_epoch
        self.set_quota, self.delete_quota, self.quotas = tenants.set_quota, tenants.delete_quota, tenants.quotas
        self.usage_by_salt, self.changed_usage = tenants.usage_by_salt, tenants.changed_usage
        # The verbs about a request's prefix; see movement/prefixes.py.
        self.lookup, self.take_lookup_result = prefixes.lookup, prefixes.take_lookup_result
        self.free_lookup_locks, self.end_session = prefixes.free_lookup_locks, prefixes.end_session
        self.session_tokens, self.start_warm = prefixes.session_tokens, prefixes.start_warm
        # The transfer verbs; see transfers.py.
        self.store, self.retrieve = transfers.store, transfers.retrieve
        self.prepare_store, self.commit_store = transfers.prepare_store, transfers.commit_store
        self.prepare_retrieve, self.commit_retrieve = transfers.prepare_retrieve, transfers.commit_retrieve
        self.message_bytes = transfers.message_bytes
        self.answers_in_messages = transfers.answers_in_messages

    # ---- life

    def start(self) -> None:
        """Reserves the pool and starts the loops. Raises StartError."""
        remove_stale_pools()
        self.segment.open()
        try:
            self.l2.open()
        except BaseException:
            self.segment.close()
            raise
        self.stats.read_gauges_from(self._gauges)
        self.segment.prefault()
        self.transfers.start()
        self.housekeeping.start()
        self.l2.start()

    def stop(self) -> None:
        """Ends the loops, forgets every worker, and removes the pool."""
        self.l2.stop()
        self.housekeeping.stop()
        self.transfers.close()
        for registration in self.registrations.all():
            self._forget(registration)
        self.segment.close()

    # ---- registration

    @property
    def config(self) -> EngineConfig:
        """The settings as they are now: operators may change some."""
        return self.steering.config

    @property
    def chunk_size(self) -> int:
        """Tokens per chunk."""
        return self.config.chunk_size

    def register_engine_driven(self, registration: EngineDrivenRegistration) -> PoolInfo:
        """Registers a client that copies by itself. Known already: refreshed, same answer. Raises BadRequest.

        A known id with another model or layout is a worker that was started again: the former one goes.
        """
        self._check_scope("engine_driven", registration.model_name, registration.world_size)
        layout = engine_driven_layout(registration, self.chunk_size)
        scope = (registration.model_name, registration.world_size)
        worker = Registration(registration.instance_id, scope, layout, None, registration)
        self._replace_former(worker)
        self._add(worker)
        if not self._offers_shared_memory:
            return PoolInfo("", 0)
        return PoolInfo(self.segment.name, self.segment.size)

    def register_kv_cache(self, instance_id: int, tensors: KVTensors, model_name: str, world_size: int) -> None:
        """Registers KV memory that the server copies from and to; the engine closes `tensors`. Raises BadRequest.

        Known already with the same memory: refreshed, and the new tensors are closed. A known id with other memory is
        a worker that was started again under its old id: the former one goes.
        """
        registration = Registration(instance_id, (model_name, world_size), tensors.layout, tensors)
        try:
            self._check_scope("lmcache_driven", model_name, world_size)
            self._replace_former(registration)
            added = self._add(registration)
        except BadRequest:
            registration.remove()
            raise
        if not added:
            registration.remove()

    def _check_scope(self, mode: str, model_name: str, world_size: int) -> None:
        supported = self.config.supported_transfer_mode
        if supported not in ("auto", mode):
            raise Unsupported(f"transfer mode {mode} is switched off: supported_transfer_mode is {supported}")
        check_model_name(model_name)
        if not 1 <= world_size <= MAX_WORLD_SIZE:
            raise BadRequest(f"world_size {world_size} is not in 1..{MAX_WORLD_SIZE}")

    def _replace_former(self, registration: Registration) -> None:
        """Forgets a worker of the same id and kind whose model, layout or memory is another one."""
        former = self.registrations.find(registration.instance_id)
        if former is not None and former.is_same_kind(registration) and not former.agrees_with(registration):
            logger.warning("worker %d registers anew with other memory or layout", registration.instance_id)
            self._forget(former)

    def _add(self, registration: Registration) -> bool:
        added = self.registrations.add(registration)
        if added:
            logger.info(
                "worker %d registered for model %r, world size %d, %d bytes per object, %s copies",
                registration.instance_id,
                *registration.scope,
                registration.layout.object_bytes,
                "client" if registration.tensors is None else "server",
            )
            self.on_change()
        return added

    def unregister_engine_driven(self, instance_id: int) -> None:
        """Forgets a client and what it holds. An unknown one is no error."""
        self._unregister(instance_id, server_driven=False)

    def unregister_kv_cache(self, instance_id: int) -> None:
        """Forgets a client and its memory. An unknown one is no error."""
        self._unregister(instance_id, server_driven=True)

    def _unregister(self, instance_id: int, *, server_driven: bool) -> None:
        registration = self.registrations.find(instance_id)
        if (
            registration is not None
            and (registration.tensors is not None) == server_driven
            and self._forget(registration)
        ):
            logger.info("worker %d unregistered", instance_id)
            self.on_change()

    def _forget(self, registration: Registration, *, only_if_silent: bool = False) -> bool:
        """Removes a worker: its pins and reservations at once, its requests' leases with the last of its scope."""
        removed, last_of_scope = self.registrations.remove(registration, only_if_silent=only_if_silent)
        if removed:
            self.transfers.forget(registration)
            if last_of_scope:
                self.l1.release_scope(registration.scope)
        return removed

    def _reap(self, registration: Registration) -> bool:
        """Removes a worker that has been silent for too long."""
        silence = time.monotonic() - registration.last_seen
        if not self._forget(registration, only_if_silent=True):
            return False
        name, instance_id = registration.scope[0], registration.instance_id
        logger.warning("worker %d of model %r removed after %.0f s of silence", instance_id, name, silence)
        self.on_change()
        return True

    def ping(self, instance_id: int | None) -> bool:
        """A sign of life. False exactly for the first ping of an instance that this boot does not know.

        None is a scheduler, which is never registered.
        """
        return instance_id is None or self.registrations.ping(instance_id)

    def report_block_allocation(self, model_name: str, num_records: int, num_blocks: int) -> None:
        """Telemetry of an inference engine's scheduler; counted."""
        self.stats.block_allocations.inc(num_blocks)

    # ---- control

    def clear(self, *, force: bool) -> ClearResult:
        """Empties L1; without `force`, what is leased, pinned or being written stays."""
        result = self.l1.clear(force=force)
        logger.info(
            "L1 cleared (force=%s): %d objects removed, %d kept, %d held until let go",
            force, result.removed, result.kept, result.doomed,
        )  # fmt: skip
        self.on_change()
        return result

    def _lookup_finished(self) -> None:
        self.on_lookup_finished()

    def _written(self, entries: Sequence[Entry]) -> None:
        self.l2.committed(entries)
        self.housekeeping.evict_if_full()

    def _quotas_changed(self) -> None:
        self.housekeeping.evict_now()
        self.l2.eviction.wake()
        self.on_change()

    def checksum_blocks(
        self, instance_id: int, block_ids: Sequence[int], chunk_size: int, layerwise: bool
    ) -> dict[str, object]:
        """MD5 over blocks of a registered KV memory. Raises BadRequest and its kinds."""
        registration = self.registrations.find(instance_id)
        if registration is None:
            if self.config.supported_transfer_mode == "engine_driven":
                raise Unsupported("checksum not supported for this engine type")
            raise UnknownInstance(instance_id)
        if registration.tensors is None:
            raise Unsupported("checksum not supported for this engine type")
        with registration.in_use():
            return registration.tensors.checksums(block_ids, chunk_size, layerwise=layerwise)

    def checksum_slots(
        self, worker: int | None, slots: Sequence[int], chunk_size: int | None, layerwise: bool
    ) -> dict[str, object]:
        """MD5 over token slots of a worker's KV memory; None: of the worker that registered first.

        Raises NoKVMemory, BadRequest.
        """
        registration = self._with_memory(worker)
        assert registration.tensors is not None
        with registration.in_use():
            return registration.tensors.slot_checksums(slots, chunk_size, layerwise=layerwise)

    def kv_layers(self, worker: int | None) -> dict[str, dict[str, object]]:
        """Layer -> shape, dtype and device of a worker's KV tensors; None as above. Raises NoKVMemory."""
        tensors = self._with_memory(worker).tensors
        assert tensors is not None
        return tensors.layers()

    def _with_memory(self, worker: int | None) -> Registration:
        workers = [one for one in self.registrations.all() if one.tensors is not None]
        known = [one for one in workers if worker in (None, one.instance_id)]
        if not known:
            raise NoKVMemory("no KV caches are registered" if worker is None else f"worker {worker} has none")
        return min(known, key=lambda one: one.number)

    def status(self) -> dict[str, object]:
        """The body of GET /status."""
        l1 = status.l1_report(self.config, self.l1.report(), self.threads.describe())
        healthy = not self.threads.unhealthy() and self.l2.is_healthy()
        return {
            "is_healthy": healthy,
            "engine_type": status.ENGINE_TYPE,
            "chunk_size": self.chunk_size,
            "hash_algorithm": self.config.hash_algorithm,
            "boot_id": self.boot_id,
            "started_at": self.started_at,
            "active_sessions": len(self.sessions),
            "active_prefetch_jobs": len(self.l2.warm_jobs),
            "frozen": self.steering.switches.frozen,
            "hot_cache": self.steering.is_hot,
            **status.worker_report(self.config, self.registrations.all()),
            "quotas": self.tenants.report(),
            "unhealthy_threads": self.threads.unhealthy(),
            "storage_manager": {"is_healthy": healthy, **l1, **self.l2.describe()},
        }

    def configuration(self) -> dict[str, object]:
        """The body of GET /conf, as far as the engine knows it."""
        return status.configuration(self.config, self.segment.name)

    def metrics_text(self) -> str:
        """All series of this engine in Prometheus' text format."""
        self.housekeeping.count_evictions()
        return self.stats.text()

    def check(self) -> None:
        """Asserts the invariants of L1."""
        self.l1.check()

    def _gauges(self) -> dict[str, float]:
        values: dict[str, float] = {**self.l1.report(), **self.l2.gauges()}
        used, capacity = self.l1.usage()
        values["usage_ratio"] = used / capacity if capacity else 0.0
        values["sessions"] = len(self.sessions)
        values["workers"] = len(self.registrations.all())
        values["quotas"] = len(self.quota_table.all())
        values.update(frozen=self.steering.switches.frozen, hot_cache=self.steering.is_hot)
        values["quotas_suspended"] = self.tenants.suspended_because is not None
        return values
