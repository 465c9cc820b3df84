"""Rows of a comparison: what was measured, the yardstick of the same run, and their ratio."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison. `limit` bounds measured / yardstick from above, or from below with `at_least`; None: no limit."""

    what: str
    measured: float
    yardstick: float
    unit: str
    yardstick_name: str
    limit: float | None
    at_least: bool = False

    @property
    def ratio(self) -> float:
        return self.measured / self.yardstick

    @property
    def is_met(self) -> bool:
        if self.limit is None:
            return True
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def __str__(self) -> str:
        verdict = "(no limit)"
        if self.limit is not None:
            verdict = f"({'>=' if self.at_least else '<='} {self.limit:g}) {'met' if self.is_met else 'MISSED'}"
        return (
            f"{self.what:<44} {self.measured:>9.4g} {self.unit:<5} | {self.yardstick_name:<34} "
            f"{self.yardstick:>9.4g} {self.unit:<5} | x {self.ratio:5.2f} {verdict}"
        )


def print_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        print(row, flush=True)


def conditions() -> str:
    """One line on the machine and how busy it is: ratios of one run can be compared, figures of two runs hardly."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores ({_processor()}), "
        f"Linux {platform.release()}, Python {platform.python_version()}, load average {load}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the samples lie; the largest for 100."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def interleave(subjects: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of `rounds` results of each subject, taken in turn so that all see the same weather.

    Every other round goes backwards, so that none always finds the caches as the same other left them.
    """
    results: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name in reversed(subjects) if number % 2 else subjects:
            results[name].append(subjects[name]())
    return {name: statistics.median(values) for name, values in results.items()}


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    before = time.perf_counter()
    action()
    return time.perf_counter() - before
