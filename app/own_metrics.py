"""Metrics in the memory of this process, whatever mode prometheus_client is in.

A process in multiprocess mode would write every metric into the files that its own /metrics shows.
"""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from prometheus_client.values import MutexValue


class OwnCounter(Counter):
    """A counter in memory."""

    def _metric_init(self) -> None:
        name = f"{self._name}_total"
        self._value = MutexValue(self._type, self._name, name, self._labelnames, self._labelvalues, self._documentation)
        self._created = time.time()


class OwnHistogram(Histogram):
    """A histogram in memory."""

    def _metric_init(self) -> None:
        def value(suffix: str, *bound: str) -> MutexValue:
            labels, given = (*self._labelnames, *("le" for _ in bound)), (*self._labelvalues, *bound)
            return MutexValue(self._type, self._name, self._name + suffix, labels, given, self._documentation)

        self._sum = value("_sum")
        self._buckets = [value("_bucket", floatToGoString(bound)) for bound in self._upper_bounds]
        self._created = time.time()


class OwnRegistry(CollectorRegistry):
    """Keeps what is registered here in memory. Without labels, give it an OwnCounter: others have begun elsewhere."""

    def register(self, collector: Collector) -> None:
        # Its series, made later, are of the same class.
        if type(collector) is Counter:
            collector.__class__ = OwnCounter
        elif type(collector) is Histogram:
            collector.__class__ = OwnHistogram
        super().register(collector)
