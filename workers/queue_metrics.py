"""What the command queue did and how long it took, as metrics of the engine."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from contract.commands import COMMANDS

_SECONDS = (0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 10.0, 60.0)


class CommandCounts(Collector):
    """Reads the taker's counts whenever the engine's metrics are made."""

    def __init__(self, read: Callable[[], dict[str, int]], in_hand: Callable[[], int]) -> None:
        self._read, self._in_hand = read, in_hand

    def collect(self) -> Iterable[Metric]:
        """One series per outcome, all there from the start."""
        family = CounterMetricFamily(
            "larder_commands", "Commands from the queue, by what became of them.", labels=["outcome"]
        )
        for outcome, count in self._read().items():
            family.add_metric([outcome], count)
        yield family
        yield GaugeMetricFamily("larder_commands_in_hand", "Commands taken and not answered.", value=self._in_hand())


class CommandTimes:
    """Duration of commands by name, all series there from the start. Any thread may observe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._wait = Histogram(
            "larder_command_wait_seconds", "From a command's submission to its begin.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        run = Histogram(
            "larder_command_seconds", "How long commands ran, by name.", ["op"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._runs = {op: run.labels(op) for op in COMMANDS}

    def waited(self, seconds: float) -> None:
        """A command begins."""
        self._wait.observe(max(0.0, seconds))

    def ran(self, op: str, seconds: float) -> None:
        """A command is over, one way or the other."""
        self._runs[op].observe(seconds)
