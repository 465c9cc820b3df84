"""What the command queue did, as metrics of the engine."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class CommandCounts(Collector):
    """Reads the taker's counts whenever the engine's metrics are made."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """One series per outcome, all there from the start."""
        family = CounterMetricFamily(
            "larder_commands", "Commands from the queue, by what became of them.", labels=["outcome"]
        )
        for outcome, count in self._read().items():
            family.add_metric([outcome], count)
        yield family
