"""What a reset of the metrics subtracts: counters and histograms go back to zero, and nobody's count is touched.

A reset keeps the values that all counters and histograms have; from then on they are shown less that. The values are
those of one process group (gunicorn's workers, the engine) in one run of it: once it was started again its counts begin
at zero by themselves, and the baseline of another run is ignored.

group    counted in                              baseline kept in
-------  --------------------------------------  ---------------------------------------------
web      files that gunicorn's workers share     Redis, so that every worker subtracts the same
engine   the engine, read as a snapshot          Redis
(other)  one process without gunicorn            its memory
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.utils import floatToGoString

from contract.errors import RedisAway

EXTENSION = "larder_baselines"
WEB = "web"
ENGINE = "engine"
RESETTABLE = frozenset({"counter", "histogram", "summary"})
#: Families that are the operating system's and Python's.
NOT_OURS = ("process_", "python_")

Samples = Mapping[str, float]


def samples_of(text: str) -> dict[str, float]:
    """The values of all counters and histograms in a Prometheus text that are not zero, by name and labels."""
    found = {}
    for line, can_be_reset in _lines(text):
        if can_be_reset:
            series, _, value = line.rpartition(" ")
            if float(value):
                found[series] = float(value)
    return found


def subtract(text: str, baseline: Samples) -> str:
    """The text with the baseline taken from its counters and histograms. None goes below zero."""
    if not baseline:
        return text
    return "".join(
        f"{_reduced(line, baseline) if can_be_reset else line}\n" for line, can_be_reset in _lines(text) if line
    )


def _reduced(line: str, baseline: Samples) -> str:
    series, _, value = line.rpartition(" ")
    if series not in baseline:
        return line
    return f"{series} {floatToGoString(max(0.0, float(value) - baseline[series]))}"


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is a sample that a reset brings back to zero."""
    can_be_reset = False
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            can_be_reset = kind in RESETTABLE and not name.startswith(NOT_OURS)
        yield line, can_be_reset and not line.startswith("#")


class Baselines:
    """The baselines as this process last knew them: without Redis no count jumps back to what it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, Samples]] = {}

    def follow(self, read: Callable[[], Mapping[str, str]]) -> dict[str, str]:
        """Takes what is kept in Redis, if it can be read. Returns the fields that Redis has lost."""
        with self._lock:
            # Read inside, so that an older answer never replaces a newer one.
            try:
                kept = read()
            except RedisAway:
                return {}
            known = self._known
            parsed = {group: found for group, text in kept.items() if (found := _parse(text)) is not None}
            self._known = {**known, **parsed}
        return {group: as_text(*known[group]) for group in (WEB, ENGINE) if group in known and group not in kept}

    def keep(self, group: str, run: str, samples: Samples) -> None:
        """Keeps a baseline in this process."""
        with self._lock:
            self._known = {**self._known, group: (run, samples)}

    def of(self, group: str, run: str) -> Samples:
        """The baseline of a group in this run of it; empty when there is none."""
        known_run, samples = self._known.get(group, ("", {}))
        return samples if known_run == run else {}


def as_text(run: str, samples: Samples) -> str:
    """The field of the hash."""
    return json.dumps({"boot_id": run, "samples": samples}, separators=(",", ":"))


def counts_more(text: str | None, other: str) -> bool:
    """Whether this field is a later baseline than the other, of the same run: what is counted never gets less."""
    found, compared = _parse(text or ""), _parse(other)
    if found is None or compared is None or found[0] != compared[0]:
        return False
    return sum(found[1].values()) > sum(compared[1].values())


def _parse(text: str) -> tuple[str, Samples] | None:
    """A field of the hash; None for what somebody else wrote there."""
    try:
        value = json.loads(text)
        samples = {str(series): float(number) for series, number in value["samples"].items()}
        return str(value["boot_id"]), samples
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
