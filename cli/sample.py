"""What `larder top` shows: the server at one moment, and what happened between two of them."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cli.errors import CliError
from cli.options import Call

_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)", re.ASCII)

LOOKED_UP = "lmcache_mp_lookup_requested_tokens_total"
HIT = "lmcache_mp_lookup_hit_tokens_total"
HIT_IN_L1 = "lmcache_mp_lookup_hit_l1_total"
HIT_IN_L2 = "lmcache_mp_lookup_hit_l2_total"
HTTP_REQUESTS = "larder_http_request_total"
HTTP_ERRORS = "larder_http_request_errors"
DATA_PLANE_REQUESTS = "larder_dataplane_requests_total"
EVICTED = "lmcache_mp_l1_evicted_chunks_total"
COMMANDS = "larder_commands_total"
#: A series whose labels tell stages of the same thing: one of them is counted.
COUNTED = {COMMANDS: 'outcome="taken"'}
COMMAND_QUEUE = "larder_command_queue_length"
LOOKUP_RESULTS = "larder_lookup_tokens_total"
FOUND = ("l1", "l2")
QUEUED_TRANSFERS = "larder_dataplane_queued_transfers"
WAITING_LOOKUPS = "larder_l2_lookups_waiting"
WAITING_LOADS = "larder_l2_loads_waiting"
RUNNING_LOADS = "larder_l2_loads_running"


_RESULT = re.compile(rf'{LOOKUP_RESULTS}\{{result="(\w+)"\}}', re.ASCII)


@dataclass(frozen=True)
class Sample:
    """Taken from /status, /quota and /metrics within one round; `problems` says what of it was refused."""

    taken_at: float
    status: Mapping[str, Any]
    tenants: Mapping[str, Any]
    metrics: Mapping[str, float]
    problems: tuple[str, ...] = ()

    def value(self, name: str) -> float:
        """A series' value, summed over its labels; 0 for one that is not there."""
        return self.metrics.get(name, 0.0)


@dataclass(frozen=True)
class Rates:
    """What happened per second between two samples; with one sample alone, shares since the start and no rates."""

    lookups_per_s: float | None
    hit_share: float | None
    l1_share: float | None
    l2_share: float | None
    http_per_s: float | None
    data_plane_per_s: float | None
    evicted_per_s: float | None
    commands_per_s: float | None
    #: Why tokens were not found, as shares of those looked up; largest first, without those at 0.
    missed: Mapping[str, float]


def take_sample(call: Call) -> Sample:
    """Raises CliError when not even /status can be read."""
    status = call.server.get("/status")
    tenants: Mapping[str, Any] = {}
    metrics: Mapping[str, float] = {}
    problems = []
    try:
        tenants = call.server.get("/quota")["users"]
    except CliError as error:
        problems.append(str(error))
    try:
        metrics = read_metrics(call.server.text("/metrics").text)
    except CliError as error:
        problems.append(str(error))
    return Sample(time.monotonic(), status, tenants, metrics, tuple(problems))


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus text: series by name, summed over their labels; histograms without their buckets.

    The results of lookups are kept apart, under name and label.
    """
    sums: dict[str, float] = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None or found[1].endswith("_bucket") or COUNTED.get(found[1], "") not in (found[2] or ""):
            continue
        name = f"{found[1]}{{{found[2]}}}" if found[1] == LOOKUP_RESULTS else found[1]
        try:
            sums[name] = sums.get(name, 0.0) + float(found[3])
        except ValueError:
            continue
    return sums


def rates_between(before: Sample | None, now: Sample) -> Rates:
    """Counters that went down were reset, or their process is another one: they count from 0 then."""

    def grown(name: str) -> float:
        past = before.value(name) if before is not None else 0.0
        return now.value(name) - past if now.value(name) >= past else now.value(name)

    def per_s(name: str) -> float | None:
        return grown(name) / (now.taken_at - before.taken_at) if before and now.taken_at > before.taken_at else None

    asked = grown(LOOKED_UP)

    def share(name: str) -> float | None:
        return grown(name) / asked if asked else None

    missed: dict[str, float] = {}
    for name in now.metrics:
        result = _RESULT.fullmatch(name)
        if result is not None and result[1] not in FOUND and (part := share(name)):
            missed[result[1]] = part
    return Rates(
        lookups_per_s=per_s("lmcache_mp_lookups_total"),
        hit_share=share(HIT),
        l1_share=share(HIT_IN_L1),
        l2_share=share(HIT_IN_L2),
        http_per_s=per_s(HTTP_REQUESTS),
        data_plane_per_s=per_s(DATA_PLANE_REQUESTS),
        evicted_per_s=per_s(EVICTED),
        commands_per_s=per_s(COMMANDS),
        missed=dict(sorted(missed.items(), key=lambda item: -item[1])),
    )
