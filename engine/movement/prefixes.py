"""What a request's prefix needs: look it up, free it, end its session, warm it.

lookup ─→ L1 has it all, or L2 has nothing more ─→ answered at once
       └─→ L2 may have more ─→ loaded, answered later (lookups.py)
"""

from array import array
from collections.abc import Callable, Sequence
from functools import partial

from engine.cache_request import CacheRequest
from engine.chunk_statistics import ChunkStatistics
from engine.errors import NoLayout, TooBusy
from engine.l1.cache import L1Cache
from engine.l1.evictor import SLICE
from engine.movement.lookups import DemandLookup, Wanted
from engine.movement.second_tier import SecondTier
from engine.movement.warm import WarmJob
from engine.object_key import ObjectKey, check_cache_salt, pack_kv_rank
from engine.registrations import Registrations
from engine.sessions import Sessions
from engine.stats import Stats
from engine.switches import Switches
from engine.token_hasher import TokenHasher


class Prefixes:
    """Verbs of the engine; any thread may call.

    `finished` is called, under no lock, when a lookup that took its time has its answer, or was called off.
    """

    def __init__(
        self,
        hasher: TokenHasher,
        sessions: Sessions,
        registrations: Registrations,
        l1: L1Cache,
        l2: SecondTier,
        stats: Stats,
        finished: Callable[[], None],
        switches: Switches,
    ) -> None:
        self._hasher, self._sessions, self._registrations = hasher, sessions, registrations
        self._l1, self._l2, self._stats, self._finished = l1, l2, stats, finished
        self._switches = switches
        self._chunk_size = hasher.chunk_size
        self.chunk_statistics = ChunkStatistics()

    def lookup(self, request: CacheRequest) -> None:
        """Finds and leases the longest prefix that all ranks have; `take_lookup_result` tells how long it is.

        Leases belong to the request id; those of its earlier lookup are replaced. Who waits for that one gets the
        answer to this one.
        """
        scope = (request.model_name, request.world_size)
        chunks = request.end // self._chunk_size
        layouts = self._registrations.layouts(scope)
        rows: list[list[ObjectKey]] = []
        if layouts:
            ranks, name, salt = request.kv_ranks(), request.model_name, request.cache_salt
            digests = self._sessions.hashes(request, chunks)
            rows = [[ObjectKey(digest, name, rank, 0, salt) for rank in ranks] for digest in digests]
            if self.chunk_statistics.enabled:
                self.chunk_statistics.note(digests)
        else:
            self._stats.lookups_unregistered.inc()
        called_off = self._sessions.drop_lookup(request.request_id)
        hit = self._l1.lease_prefix(rows, layouts, request.request_id, scope, request.num_kv_readers)
        self._stats.count_lookup(chunks * self._chunk_size, hit * self._chunk_size)
        if hit < len(rows) and self._l2.tiers and not self._switches.frozen:
            objects = self._registrations.object_layouts(scope)
            wanted = Wanted(rows, objects, request.request_id, scope, request.num_kv_readers)
            pending = self._l2.prepare_lookup(wanted, hit, partial(self._lookup_over, hit))
            if pending is not None:
                self._sessions.set_lookup_result(request.request_id, pending)
                self._l2.begin_lookup(pending)
                return
        self._stats.lookup_tokens["absent" if layouts else "unregistered"].inc((chunks - hit) * self._chunk_size)
        self._sessions.set_lookup_result(request.request_id, hit)
        if called_off:
            self._finished()

    def _lookup_over(self, hit_in_l1: int, lookup: DemandLookup) -> None:
        more = (lookup.chunks or 0) - hit_in_l1
        self._stats.count_loaded_lookup(more * self._chunk_size, lookup.took_s())
        self._stats.lookup_tokens[lookup.missed_because].inc(lookup.missed_chunks() * self._chunk_size)
        self._finished()

    def start_warm(self, model_name: str, world_size: int, tokens: "array[int]", cache_salt: str) -> WarmJob | None:
        """Starts a prefetch job for the whole chunks of `tokens`, all ranks; None below one chunk.

        Raises NoLayout when nobody registered the model and world size, then BadRequest for a salt that breaks a
        rule, TooBusy when as many jobs run as may, or the cache is frozen.
        """
        layouts = self._registrations.object_layouts((model_name, world_size))
        if not layouts:
            raise NoLayout(f"no worker is registered for model {model_name[:80]!r} with world size {world_size}")
        check_cache_salt(cache_salt)
        if self._switches.frozen:
            raise TooBusy("the cache is frozen: nothing is loaded into L1")
        digests: list[bytes] = []
        self._hasher.extend(digests, tokens, len(tokens) // self._chunk_size)
        ranks = [pack_kv_rank(world_size, worker_id) for worker_id in range(world_size)]
        rows = [[ObjectKey(digest, model_name, rank, 0, cache_salt) for rank in ranks] for digest in digests]
        return self._l2.start_warm(rows, layouts) if rows else None

    def take_lookup_result(self, request_id: str) -> int | None:
        """Chunks found by the request's last lookup, once; 0 when unknown or taken; None while it is under way."""
        return self._sessions.take_lookup_result(request_id)

    def free_lookup_locks(self, request: CacheRequest) -> None:
        """Gives back the request's leases on the whole chunks inside `[start, end)`, all its ranks and readers."""
        if self._sessions.drop_lookup(request.request_id):
            self._finished()
        size = self._chunk_size
        first, stop = -(-request.start // size), request.end // size
        if first >= stop:
            return
        digests = self._sessions.hashes(request, stop)[first:]
        self._l1.release(request.request_id, _object_keys(digests, request.kv_ranks(), request), request.num_kv_readers)

    def session_tokens(self, request_id: str) -> int:
        """How long the request is that `end_session` would end, in tokens."""
        return self._sessions.tokens_of(request_id)

    def end_session(self, request_id: str) -> None:
        """Forgets a request and makes its whole prefix recent. Leases stay: workers may still be loading."""
        session = self._sessions.end(request_id)
        if session is not None and isinstance(session.lookup_result, DemandLookup):
            self._finished()
        if session is None or session.last_request is None:
            return
        request, hashes = session.last_request, session.hashes
        ranks = [pack_kv_rank(request.world_size, worker_id) for worker_id in range(request.world_size)]
        chunks_at_once = max(1, SLICE // len(ranks))
        for stop in range(len(hashes), 0, -chunks_at_once):
            keys = _object_keys(hashes[max(0, stop - chunks_at_once) : stop], ranks, request)
            self._l1.touch(keys)
            self._l2.used(keys)


def _object_keys(digests: Sequence[bytes], ranks: Sequence[int], request: CacheRequest) -> list[ObjectKey]:
    """The keys of these chunks, chunk by chunk, all ranks."""
    name, salt = request.model_name, request.cache_salt
    return [ObjectKey(digest, name, rank, 0, salt) for digest in digests for rank in ranks]
