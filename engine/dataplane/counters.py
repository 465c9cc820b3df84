"""What the data plane counts. Every series exists at 0 from the start; label values are fixed names."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

#: Label of operations this server does not know.
UNKNOWN = "unknown"
#: bad_request: the client's fault; busy: a bound was reached; error: a fault of ours or of client memory.
FAILURES = ("bad_request", "busy", "error")


class DataPlaneCounters:
    """Counters in the engine's registry. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, operations: Iterable[str]) -> None:
        names = [*sorted(operations), UNKNOWN]
        requests = Counter("larder_dataplane_requests", "Requests, by operation.", ["operation"], registry=registry)
        failures = Counter(
            "larder_dataplane_failures",
            "Requests that got their operation's failure answer, by reason.",
            ["operation", "reason"],
            registry=registry,
        )
        self._requests = {name: requests.labels(name) for name in names}
        self._failures = {(name, reason): failures.labels(name, reason) for name in names for reason in FAILURES}
        self._undeliverable = Counter(
            "larder_dataplane_undeliverable_replies",
            "Replies dropped because their client was gone or did not read.",
            registry=registry,
        )
        self._queued = Gauge("larder_dataplane_queued_transfers", "Copies that wait for a thread.", registry=registry)
        self._held = Gauge(
            "larder_dataplane_message_mode_bytes", "KV bytes held in messages, in and out.", registry=registry
        )

    def read_gauges_from(self, queued: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        """The two functions give the gauges' values whenever they are asked for."""
        self._queued.set_function(queued)
        self._held.set_function(held_bytes)

    def request(self, operation: str) -> None:
        self._requests[operation].inc()

    def failure(self, operation: str, reason: str) -> None:
        self._failures[operation, reason].inc()

    def undeliverable(self) -> None:
        self._undeliverable.inc()
