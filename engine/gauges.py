"""Gauges that are read when the metrics are made: how old the loops' last runs are, and what tenants may and do hold.

Labels are bounded: of the tenants with a quota the SHOWN largest have a series, all others share `other`. A salt that
no operator has named by a quota is not shown: clients choose it, and may mean it to be secret. Looking through very
many tenants takes time, so it is done only so often that it stays a small part of it.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.periodic import PeriodicThreads

SHOWN = 20
OTHER = "other"
#: How the empty salt is called wherever people see it.
NO_SALT = "_default"
MAX_LABEL_CHARACTERS = 64
SHORTEST_INTERVAL_S = 1.0
#: One look may take this part of the time.
SHARE_OF_TIME = 0.01


class ThreadGauges(Collector):
    """One series per supervised loop."""

    def __init__(self, threads: PeriodicThreads) -> None:
        self._threads = threads

    def collect(self) -> Iterable[Metric]:
        """Age of the last run, and whether the loop is active."""
        labels = ("thread", "level")
        ages = GaugeMetricFamily(
            "larder_thread_last_run_age_seconds", "Time since a supervised loop last ran; 0 before.", labels=labels
        )
        active = GaugeMetricFamily("larder_thread_active", "1: the loop runs, and ran lately.", labels=labels)
        for loop in self._threads.describe():
            values = (str(loop["name"]), str(loop["level"]))
            ages.add_metric(values, loop["last_run_ago"] or 0.0)
            active.add_metric(values, float(loop["is_active"]))
        return [ages, active]


class Usage(Protocol):
    """Bytes of one tenant."""

    @property
    def l1_bytes(self) -> int: ...
    @property
    def l2_bytes(self) -> int: ...


class QuotaGauges(Collector):
    """Limit and use of the tenants whose limit or use is largest."""

    def __init__(self, limits: Callable[[], Mapping[str, int]], usage: Callable[[], Mapping[str, Usage]]) -> None:
        self._limits, self._usage = limits, usage
        self._families: list[Metric] = []
        self._look_again_at = 0.0

    def collect(self) -> Iterable[Metric]:
        """The families as they were at the last look."""
        now = time.monotonic()
        if now >= self._look_again_at:
            self._families = self._look()
            took_s = time.monotonic() - now
            self._look_again_at = now + max(SHORTEST_INTERVAL_S, took_s / SHARE_OF_TIME)
        return self._families

    def _look(self) -> list[Metric]:
        limits, usage = self._limits(), self._usage()
        sizes = dict(limits)
        for salt in limits.keys() & usage.keys():
            sizes[salt] = max(sizes[salt], usage[salt].l1_bytes, usage[salt].l2_bytes)
        labels = {salt: _label(salt) for salt in heapq.nlargest(SHOWN, sizes, key=sizes.__getitem__)}
        limit_of, l1_of, l2_of = {OTHER: 0}, {OTHER: 0}, {OTHER: 0}
        for salt in limits.keys() | usage.keys():
            label = labels.get(salt, OTHER)
            used_l1, used_l2 = (usage[salt].l1_bytes, usage[salt].l2_bytes) if salt in usage else (0, 0)
            limit_of[label] = limit_of.get(label, 0) + limits.get(salt, 0)
            l1_of[label] = l1_of.get(label, 0) + used_l1
            l2_of[label] = l2_of.get(label, 0) + used_l2
        limit = GaugeMetricFamily("larder_quota_limit_bytes", "Limit of a tenant in each tier.", labels=("cache_salt",))
        held = GaugeMetricFamily(
            "larder_quota_used_bytes", "Bytes that a tenant holds in a tier.", labels=("cache_salt", "tier")
        )
        for label in limit_of:
            limit.add_metric((label,), limit_of[label])
            held.add_metric((label, "l1"), l1_of[label])
            held.add_metric((label, "l2"), l2_of[label])
        return [limit, held]


def _label(salt: str) -> str:
    """A salt as a label: callers choose salts, so a long one is cut, with a digest that tells it from its like."""
    if len(salt) <= MAX_LABEL_CHARACTERS:
        return salt or NO_SALT
    digest = blake2b(salt.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{salt[: MAX_LABEL_CHARACTERS - len(digest) - 1]}~{digest}"
