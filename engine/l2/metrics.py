"""Counters of the L2 adapters, for Prometheus: one series per adapter, at 0 from the start.

Labels: `l2_name` is the adapter's type, `adapter_index` its place in the configuration.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABELS = ("l2_name", "adapter_index")
#: What a call to the storage came to. `full`: no room; `fault`: not reachable; `error`: the storage said no;
#: `refused`: not asked, its breaker is open.
OUTCOMES = ("ok", "miss", "other_layout", "corrupt", "full", "fault", "error", "refused")
OPERATIONS = ("exists", "read", "write", "delete", "scan")
#: What became of an object that was to be written back; see engine/movement/write_back.py.
WRITE_BACK = (
    "stored", "present", "retried", "queue_full", "breaker_open", "bypassed", "no_quota", "evicted_before", "cancelled",
    "dead", "left_at_stop",
)  # fmt: skip
#: Gauges: field of a tier's reading -> (name, help).
GAUGES = {
    "bytes": ("lmcache_mp_l2_usage_bytes", "Bytes stored, as far as the catalog knows."),
    "objects": ("larder_l2_objects", "Objects stored, as far as the catalog knows."),
    "capacity_bytes": ("larder_l2_capacity_bytes", "Bytes the storage offers; 0 when it does not say."),
    "breaker_state": ("larder_l2_breaker_state", "0 closed, 1 half-open, 2 open."),
    "breaker_opened": ("larder_l2_breaker_opened", "How often the breaker opened since the start."),
    "bypassed": ("larder_l2_bypassed", "1: an operator bypasses the adapter, it is neither asked nor written."),
    "catalog_complete": ("larder_l2_catalog_complete", "1 once the scan of the storage is over."),
    "catalog_scanned": ("larder_l2_catalog_scanned_objects", "Objects that the scan has found so far."),
    "running_calls": ("larder_l2_running_calls", "Calls to the storage under way."),
    "queued_writes": ("larder_l2_write_back_queued_objects", "Objects that wait to be written."),
    "waiting_for_retry": ("larder_l2_write_back_waiting_for_retry", "Objects that wait for another attempt."),
    "dirty_bytes": ("larder_l2_write_back_dirty_bytes", "Bytes of L1 kept for being written."),
}
_GB_PER_SECOND = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class TierCounters:
    """The counters of one adapter."""

    def __init__(self, families: "TierMetrics", labels: tuple[str, str]) -> None:
        self.calls = {
            (operation, outcome): families.calls.labels(*labels, operation, outcome)
            for operation in OPERATIONS
            for outcome in OUTCOMES
        }
        self.seconds = {operation: families.seconds.labels(*labels, operation) for operation in OPERATIONS}
        self.read_bytes, self.written_bytes = (
            families.read_bytes.labels(*labels),
            families.written_bytes.labels(*labels),
        )
        self.load_throughput = families.load_throughput.labels(*labels)
        self.store_throughput = families.store_throughput.labels(*labels)
        self.quarantined = families.quarantined.labels(*labels)
        self.evicted = families.evicted.labels(*labels)
        self.stalled = families.stalled.labels(*labels)
        self.write_back = {outcome: families.write_back.labels(*labels, outcome) for outcome in WRITE_BACK}


class TierGauges(Collector):
    """`read` gives one (type, index, values by the names in GAUGES) per adapter, each time the text is made."""

    def __init__(self, read: Callable[[], Iterable[tuple[str, int, Mapping[str, float]]]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        families = {field: GaugeMetricFamily(name, text, labels=LABELS) for field, (name, text) in GAUGES.items()}
        for type_name, index, values in self._read():
            for field, family in families.items():
                family.add_metric((type_name, str(index)), values[field])
        return families.values()

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily(name, text, labels=LABELS) for name, text in GAUGES.values()]


class TierMetrics:
    """The families; made once per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, more: Iterable[str] = ()) -> Counter:
            return Counter(name, text, (*LABELS, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], more: Iterable[str] = ()) -> Histogram:
            return Histogram(name, text, (*LABELS, *more), buckets=buckets, registry=registry)

        self.calls = counter("larder_l2_calls", "Calls to the storage, by what they came to.", ("operation", "outcome"))
        self.seconds = histogram("larder_l2_call_seconds", "Duration of calls.", _SECONDS, ("operation",))
        self.read_bytes = counter("larder_l2_read_bytes", "Bytes of good objects read.")
        self.written_bytes = counter("larder_l2_written_bytes", "Bytes written.")
        self.load_throughput = histogram(
            "lmcache_mp_l2_load_throughput_GB_per_second", "Loads into L1, verified.", _GB_PER_SECOND
        )
        self.store_throughput = histogram("lmcache_mp_l2_store_throughput_GB_per_second", "Writes.", _GB_PER_SECOND)
        self.quarantined = counter("larder_l2_quarantined_objects", "Damaged objects taken out of service.")
        self.evicted = counter("lmcache_mp_l2_evicted_objects", "Objects evicted from the storage.")
        self.stalled = counter("larder_l2_stalled_calls", "Calls that took too long and count as faults.")
        self.write_back = counter(
            "larder_l2_write_back_objects", "Objects to be written back, by what became of them.", ("outcome",)
        )

    def of(self, type_name: str, index: int) -> TierCounters:
        """The counters of one adapter, all series present."""
        return TierCounters(self, (type_name, str(index)))
