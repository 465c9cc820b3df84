"""The cache, as its callers see it.

    client ── register ─→ lookup ─→ retrieve … ─→ store … ─→ end_session          (data plane, hot)
    operator ── clear, quotas, checksums, status, metrics                         (control plane, rare)

Engine wires the parts together: sessions.py (token hashes), registrations.py (workers), l1/ (what is kept),
transfers.py (copies), tenants.py (quotas and usage), housekeeping.py (loops), status.py and stats.py (what is told).
All verbs may be called from any thread. Bookkeeping verbs take microseconds; those that copy (store, retrieve,
commit_store with data, prepare_retrieve by message) take milliseconds.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import status
from engine.cache_request import CacheRequest
from engine.config import SHM_OFF, EngineConfig
from engine.device.tensors import KVTensors
from engine.errors import BadRequest, UnknownInstance, Unsupported
from engine.housekeeping import Housekeeping
from engine.kv_layout import EngineDrivenRegistration, engine_driven_layout
from engine.l1.cache import L1Cache
from engine.l1.eviction import make_policy
from engine.l1.evictor import SLICE
from engine.l1.holds import ClearResult
from engine.l1.pool import SlotPool
from engine.l1.quota import QuotaTable
from engine.l1.segment import SharedSegment, default_pool_name, remove_stale_pools
from engine.object_key import MAX_WORLD_SIZE, ObjectKey, check_model_name, pack_kv_rank
from engine.periodic import PeriodicThreads
from engine.registrations import Registration, Registrations
from engine.sessions import Sessions
from engine.stats import Stats
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
        self.config = config
        self.boot_id = secrets.token_hex(6)
        self.started_at = time.time()
        self.stats = Stats()
        self.threads = PeriodicThreads()
        #: Called, never under a lock, after a registration, unregistration, clear or quota change.
        self.on_change: Callable[[], None] = _nothing_to_tell
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
        self.sessions = Sessions(TokenHasher(config.hash_algorithm, config.chunk_size), config.session_ttl_seconds)
        self.registrations = Registrations(config.worker_reap_timeout_seconds, config.worker_registration_grace_seconds)
        self.housekeeping = Housekeeping(
            config, self.l1, self.sessions, self.registrations, self.quota_table, self.stats, self.threads, self._reap
        )
        self.transfers = transfers = Transfers(
            self.l1,
            self.segment,
            self.sessions,
            self.registrations,
            self.stats,
            chunk_size=config.chunk_size,
            offers_shared_memory=self._offers_shared_memory,
            on_written=self.housekeeping.evict_if_full,
        )
        self.tenants = tenants = Tenants(config, self.quota_table, self.l1, None, quotas_changed=self._quotas_changed)
        # Quotas and usage; see tenants.py.
        self.load_quotas, self.review_quota_epoch = tenants.load, tenants.review_epoch
        self.keep_quota_epoch = tenants.keep_epoch
        self.set_quota, self.delete_quota, self.quotas = tenants.set_quota, tenants.delete_quota, tenants.quotas
        self.usage_by_salt, self.changed_usage = tenants.usage_by_salt, tenants.changed_usage
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
        self.stats.read_gauges_from(self._gauges)
        self.segment.prefault()
        self.transfers.start()
        self.housekeeping.start()

    def stop(self) -> None:
        """Ends the loops, forgets every worker, and removes the pool."""
        self.housekeeping.stop()
        self.transfers.close()
        for registration in self.registrations.all():
            self._forget(registration)
        self.segment.close()

    # ---- registration

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

    # ---- lookup and session

    def lookup(self, request: CacheRequest) -> None:
        """Finds and leases the longest prefix that all ranks have; `take_lookup_result` tells how long it is.

        Leases belong to the request id; those of its earlier lookup are replaced.
        """
        scope = (request.model_name, request.world_size)
        chunks = request.end // self.chunk_size
        layouts = self.registrations.layouts(scope)
        rows: list[list[ObjectKey]] = []
        if layouts:
            ranks, name, salt = request.kv_ranks(), request.model_name, request.cache_salt
            digests = self.sessions.hashes(request, chunks)
            rows = [[ObjectKey(digest, name, rank, 0, salt) for rank in ranks] for digest in digests]
        else:
            self.stats.lookups_unregistered.inc()
        hit = self.l1.lease_prefix(rows, layouts, request.request_id, scope, request.num_kv_readers)
        self.sessions.set_lookup_result(request.request_id, hit)
        self.stats.lookups.inc()
        self.stats.lookup_requested_tokens.inc(chunks * self.chunk_size)
        self.stats.lookup_hit_tokens.inc(hit * self.chunk_size)

    def take_lookup_result(self, request_id: str) -> int | None:
        """Chunks found by the request's last lookup, once; 0 when unknown or taken; None while it is under way."""
        return self.sessions.take_lookup_result(request_id)

    def free_lookup_locks(self, request: CacheRequest) -> None:
        """Gives back the request's leases on the whole chunks inside `[start, end)`, all its ranks and readers."""
        self.sessions.take_lookup_result(request.request_id)
        size = self.chunk_size
        first, stop = -(-request.start // size), request.end // size
        if first >= stop:
            return
        digests = self.sessions.hashes(request, stop)[first:]
        self.l1.release(request.request_id, _object_keys(digests, request.kv_ranks(), request), request.num_kv_readers)

    def session_tokens(self, request_id: str) -> int:
        """How long the request is that `end_session` would end, in tokens."""
        return self.sessions.tokens_of(request_id)

    def end_session(self, request_id: str) -> None:
        """Forgets a request and makes its whole prefix recent. Leases stay: workers may still be loading."""
        session = self.sessions.end(request_id)
        if session is None or session.last_request is None:
            return
        request, hashes = session.last_request, session.hashes
        ranks = [pack_kv_rank(request.world_size, worker_id) for worker_id in range(request.world_size)]
        chunks_at_once = max(1, SLICE // len(ranks))
        for stop in range(len(hashes), 0, -chunks_at_once):
            digests = hashes[max(0, stop - chunks_at_once) : stop]
            self.l1.touch(_object_keys(digests, ranks, request))

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

    def _quotas_changed(self) -> None:
        self.housekeeping.evict_now()
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

    def status(self) -> dict[str, object]:
        """The body of GET /status."""
        l1 = status.l1_report(self.config, self.l1.report(), self.threads.describe())
        healthy = not self.threads.unhealthy()
        return {
            "is_healthy": healthy,
            "engine_type": status.ENGINE_TYPE,
            "chunk_size": self.chunk_size,
            "hash_algorithm": self.config.hash_algorithm,
            "boot_id": self.boot_id,
            "started_at": self.started_at,
            "active_sessions": len(self.sessions),
            "active_prefetch_jobs": 0,
            **status.worker_report(self.config, self.registrations.all()),
            "quotas": self.tenants.report(),
            "unhealthy_threads": self.threads.unhealthy(),
            "storage_manager": {"is_healthy": healthy, **l1, "l2_adapters": [], "num_l2_adapters": 0},
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
        values: dict[str, float] = dict(self.l1.report())
        used, capacity = self.l1.usage()
        values["usage_ratio"] = used / capacity if capacity else 0.0
        values["sessions"] = len(self.sessions)
        values["workers"] = len(self.registrations.all())
        values["quotas"] = len(self.quota_table.all())
        return values


def _object_keys(digests: Sequence[bytes], ranks: Sequence[int], request: CacheRequest) -> list[ObjectKey]:
    """The keys of these chunks, chunk by chunk, all ranks."""
    name, salt = request.model_name, request.cache_salt
    return [ObjectKey(digest, name, rank, 0, salt) for digest in digests for rank in ranks]
