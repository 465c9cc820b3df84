"""The engine's counters, in a registry of its own: their text travels to the web tier, which serves it.

Names are those of LMCache where the meaning is the same (`lmcache_mp_*`), `larder_*` otherwise. Counters are moved
where the thing happens; gauges are read from the cache when the text is made. Every series exists at 0 from the start.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Without it every counter and histogram brings a second series with the time of its creation.
disable_created_metrics()

GIGABYTE = 1e9
_THROUGHPUT_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)

#: Where a lookup found its tokens, or why not: no tier has them; no worker is registered for the model; the storage
#: failed or what it gave was damaged; its answer came after the deadline; L1 had no room for it; a client was writing
#: the same object. Tokens of a lookup that was called off have none of them.
LOOKUP_RESULTS = ("l1", "l2", "absent", "unregistered", "failed", "late", "no_room", "contended")
#: Gauges: field of the reading -> (name, help).
_GAUGES = {
    "memory_used_bytes": ("lmcache_mp_l1_memory_usage_bytes", "Bytes of the L1 pool in use."),
    "usage_ratio": ("lmcache_mp_l1_usage_ratio", "Share of the L1 pool in use, 0 to 1."),
    "memory_total_bytes": ("larder_l1_capacity_bytes", "Bytes of the L1 pool."),
    "largest_hole_bytes": ("larder_l1_largest_hole_bytes", "Largest object that fits without eviction."),
    "num_holes": ("larder_l1_holes", "Separate holes in the pool."),
    "total_object_count": ("larder_l1_objects", "Objects in L1, those being written included."),
    "leased_objects": ("larder_l1_leased_objects", "Objects promised to a reader."),
    "leases": ("larder_l1_leases", "Leases on objects, one per object and expected reader."),
    "pins": ("larder_l1_pins", "Copies under way that hold objects in place."),
    "reservations": ("larder_l1_reservations", "Batches of objects being written."),
    "doomed_objects": ("larder_l1_doomed_objects", "Objects out of sight whose slots somebody still holds."),
    "doomed_bytes": ("larder_l1_doomed_bytes", "Bytes of their slots."),
    "frozen": ("larder_frozen", "1: an operator froze the cache, nothing is stored."),
    "hot_cache": ("larder_hot_cache", "1: objects stay in L1 once they are in L2; 0: they leave it."),
    "sessions": ("larder_sessions", "Requests that are remembered."),
    "workers": ("larder_registered_workers", "Workers of inference engines that are registered."),
    "quotas": ("larder_quotas", "Cache salts with a quota."),
    "quotas_suspended": (
        "larder_quotas_suspended",
        "1: Redis may have lost quotas, so salts without one keep what they hold until the next quota is set.",
    ),
    "prefetch_jobs": ("lmcache_mp_active_prefetch_jobs", "Prefetch jobs under way."),
    "l2_adapters": ("lmcache_mp_l2_adapters", "L2 adapters that are configured."),
    "l2_lookups": ("larder_l2_lookups_waiting", "Lookups that wait for objects from L2."),
    "l2_loads_waiting": ("larder_l2_loads_waiting", "Objects that wait to be loaded from L2."),
    "l2_loads_running": ("larder_l2_loads_running", "Objects being loaded from L2."),
    "l2_loads_bytes": ("lmcache_mp_inflight_load_memory_usage_bytes", "Bytes of L1 that wait for L2's answer."),
}


class _Gauges(Collector):
    def __init__(self, read: Callable[[], dict[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        values = self._read()
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=values[field])

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily(name, text) for name, text in _GAUGES.values()]


class Stats:
    """Counters of one engine. Thread-safe. Parts may add counters of their own to `registry`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._count_lookups(registry)
        self.read_chunks = Counter("lmcache_mp_l1_read_chunks", "Objects read from L1.", registry=registry)
        self.written_chunks = Counter("lmcache_mp_l1_write_chunks", "Objects written to L1.", registry=registry)
        self.read_bytes = Counter("larder_l1_read_bytes", "Bytes of the objects read from L1.", registry=registry)
        self.written_bytes = Counter("larder_l1_written_bytes", "Bytes of those written to L1.", registry=registry)
        self.evicted_chunks = Counter("lmcache_mp_l1_evicted_chunks", "Objects evicted from L1.", registry=registry)
        self.evicted_by_reason = self._labelled(
            "larder_l1_evicted_objects", "Objects evicted from L1, by reason.", "reason",
            ("capacity", "quota", "room", "replaced", "written"),
        )  # fmt: skip
        self.allocation_failures = Counter(
            "lmcache_mp_l1_allocation_failure_chunks", "Objects not stored for want of room.", registry=registry
        )
        self.eviction_ticks = Counter(
            "lmcache_mp_l1_eviction_loop_ticks", "Passes of the eviction loop.", registry=registry
        )
        self.eviction_triggered = Counter(
            "lmcache_mp_l1_eviction_loop_triggered", "Passes that found usage above the watermark.", registry=registry
        )
        self.expired = self._labelled(
            "larder_l1_expired", "Leases (by owner) and reservations that ran out of time.", "kind",
            ("lease", "reservation"),
        )  # fmt: skip
        self.reaped_workers = Counter("larder_reaped_workers", "Workers removed after silence.", registry=registry)
        outcomes = ("stored", "refused", "hit", "miss", "failed")
        self.transfers = self._labelled(
            "larder_transfers", "Stores (stored, refused) and retrieves (hit, miss); failed: the copy went wrong.",
            "outcome", outcomes,
        )  # fmt: skip
        self.store_throughput = Histogram(
            "lmcache_mp_l0_l1_store_throughput_GB_per_second",
            "Copies into L1 made by the server.",
            buckets=_THROUGHPUT_BUCKETS,
            registry=registry,
        )
        self.load_throughput = Histogram(
            "lmcache_mp_l0_l1_load_throughput_GB_per_second",
            "Copies out of L1 made by the server.",
            buckets=_THROUGHPUT_BUCKETS,
            registry=registry,
        )
        self.block_allocations = Counter(
            "larder_block_allocations", "Blocks that inference engines reported as allocated.", registry=registry
        )

    def _count_lookups(self, registry: CollectorRegistry) -> None:
        self.lookups = Counter("lmcache_mp_lookups", "Lookups.", registry=registry)
        self.lookup_requested_tokens = Counter(
            "lmcache_mp_lookup_requested_tokens", "Tokens in whole chunks that lookups asked for.", registry=registry
        )
        self.lookup_hit_tokens = Counter(
            "lmcache_mp_lookup_hit_tokens", "Tokens that lookups found.", registry=registry
        )
        self.lookup_hit_l1_tokens = Counter(
            "lmcache_mp_lookup_hit_l1", "Tokens that lookups found in L1 at once.", registry=registry
        )
        self.lookup_hit_l2_tokens = Counter(
            "lmcache_mp_lookup_hit_l2", "Tokens that lookups found after loading from L2.", registry=registry
        )
        self.lookup_wait = Histogram(
            "larder_l2_lookup_wait_seconds", "Time from a lookup that needs L2 to its answer.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0), registry=registry,
        )  # fmt: skip
        self.lookup_tokens = self._labelled(
            "larder_lookup_tokens", "Tokens in whole chunks that lookups asked for, by what came of them.", "result",
            LOOKUP_RESULTS,
        )  # fmt: skip
        self.lookups_unregistered = Counter(
            "larder_lookups_unregistered", "Lookups for a model that no worker registered.", registry=registry
        )

    def count_lookup(self, requested_tokens: int, hit_tokens: int) -> None:
        """A lookup asked for so many tokens and found so many in L1."""
        self.lookups.inc()
        self.lookup_requested_tokens.inc(requested_tokens)
        self.lookup_hit_tokens.inc(hit_tokens)
        self.lookup_hit_l1_tokens.inc(hit_tokens)
        self.lookup_tokens["l1"].inc(hit_tokens)

    def count_loaded_lookup(self, more_tokens: int, took_s: float) -> None:
        """A lookup that was counted has found so many tokens more by loading from L2."""
        self.lookup_hit_tokens.inc(max(0, more_tokens))
        self.lookup_hit_l2_tokens.inc(max(0, more_tokens))
        self.lookup_tokens["l2"].inc(max(0, more_tokens))
        self.lookup_wait.observe(took_s)

    def _labelled(self, name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Counter]:
        family = Counter(name, text, [label], registry=self.registry)
        return {value: family.labels(value) for value in values}

    def read_gauges_from(self, read: Callable[[], dict[str, float]]) -> None:
        """`read` gives the value of every gauge, each time the text is made."""
        self.registry.register(_Gauges(read))

    def text(self) -> str:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry).decode()
