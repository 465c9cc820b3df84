"""GET /periodic-threads, /periodic-threads/{name}, /periodic-threads-health: the supervised loops of the server.

The engine's come from what it publishes, also while it is not ready but alive; the web tier's are those of the worker
that answers, the same in each.
"""

import time
from typing import Any, Literal, TypedDict

from flask import Blueprint, current_app
from marshmallow import fields

from app.backend import Backend, current_backend
from app.declarations import answers, in_path, refuses
from app.errors import RouteError
from app.loops import EXTENSION, STALE_INTERVALS, WebLoop
from app.policy import ERROR, Level, policy
from app.request_schema import Boolean, LarderSchema, Text, takes_query
from contract.engine_record import BEAT_INTERVAL_S
from contract.errors import RedisAway
from contract.snapshots import PERIODIC_THREADS

router = Blueprint("periodic_threads", __name__)

LEVELS = ("critical", "high", "medium", "low")
#: Older than this, a published age is no longer what it was: the publisher or Redis is stuck.
FRESH_S = 3.0

Entry = dict[str, Any]
LevelName = Literal["critical", "high", "medium", "low"]


class Counts(TypedDict):
    """How many loops there are, run, and do their work."""

    total: int
    running: int
    active: int


class ByLevel(TypedDict):
    """The counts of each level."""

    critical: Counts
    high: Counts
    medium: Counts
    low: Counts


class PeriodicSummary(TypedDict):
    """The counts of all loops."""

    total_count: int
    running_count: int
    active_count: int
    by_level: ByLevel


class PeriodicThread(TypedDict):
    """A supervised loop. Times in seconds; `last_run_time` is 0 and `last_run_ago` null before the first run."""

    name: str
    level: LevelName
    interval: float
    is_running: bool
    is_active: bool
    stopped_on_purpose: bool
    last_run_time: float
    last_run_ago: float | None
    init_wait: float
    total_runs: int
    failed_runs: int
    success_rate: float | None
    last_summary: dict[str, Any] | None


class SickThread(TypedDict):
    """A loop that does not do its work, or `engine`."""

    name: str
    level: LevelName
    last_run_ago: float | None
    interval: float


EXAMPLE = {
    "name": "l1-eviction",
    "level": "critical",
    "interval": 1.0,
    "is_running": True,
    "is_active": True,
    "stopped_on_purpose": False,
    "last_run_time": 1795384853.9,
    "last_run_ago": 0.61,
    "init_wait": 0.0,
    "total_runs": 712,
    "failed_runs": 0,
    "success_rate": 100.0,
    "last_summary": {"timestamp": 1795384853.9, "duration_ms": 0.1, "success": True, "message": "", "extra_info": {}},
}
ONE = {"total": 1, "running": 1, "active": 1}
NONE = {"total": 0, "running": 0, "active": 0}
EXAMPLE_SUMMARY = {
    "total_count": 1,
    "running_count": 1,
    "active_count": 1,
    "by_level": {"critical": ONE, "high": NONE, "medium": NONE, "low": NONE},
}
SICK = {"name": "engine", "level": "critical", "last_run_ago": None, "interval": 1.0}


class PeriodicThreadsQuery(LarderSchema):
    level: fields.Field = Text(load_default="", metadata={"description": "Only this level, in any case."})
    running_only: fields.Field = Boolean(load_default=False, metadata={"description": "Only loops that run."})
    active_only: fields.Field = Boolean(load_default=False, metadata={"description": "Only loops that are active."})


@router.get("/periodic-threads")
@policy(Level.READ, ERROR)
@takes_query(PeriodicThreadsQuery)
@answers(
    200,
    {"summary": PeriodicSummary, "threads": list[PeriodicThread]},
    example={"summary": EXAMPLE_SUMMARY, "threads": [EXAMPLE]},
)
@refuses(400, "Invalid level: urgent")
def periodic_threads(level: str, running_only: bool, active_only: bool) -> Entry:
    """The supervised loops, and how many there are. The filters narrow the list alone."""
    wanted = level.lower()
    if level and wanted not in LEVELS:
        raise RouteError(400, f"Invalid level: {level}")
    loops = _all_loops(current_backend())
    shown = [
        loop
        for loop in loops
        if wanted in ("", loop["level"])
        and (loop["is_running"] or not running_only)
        and (loop["is_active"] or not active_only)
    ]
    return {"summary": _summary(loops), "threads": shown}


@router.get("/periodic-threads/<thread_name>")
@policy(Level.READ, ERROR)
@in_path(thread_name=("l1-eviction", "The name of a loop."))
@answers(200, PeriodicThread, example=EXAMPLE)
@refuses(404, "Thread not found: nobody")
def periodic_thread(thread_name: str) -> Entry:
    """One supervised loop."""
    for loop in _all_loops(current_backend()):
        if loop["name"] == thread_name:
            return loop
    raise RouteError(404, f"Thread not found: {thread_name}")


@router.get("/periodic-threads-health")
@policy(Level.READ, ERROR)
@answers(
    200,
    {"healthy": bool, "unhealthy_count": int, "unhealthy_threads": list[SickThread]},
    example={"healthy": False, "unhealthy_count": 1, "unhealthy_threads": [SICK]},
)
def periodic_threads_health() -> Entry:
    """The loops that are not as they should be. Always 200: critical and high loops that do not do their work, and
    `engine` while it does not serve."""
    backend = current_backend()
    sick = [
        {name: loop[name] for name in ("name", "level", "last_run_ago", "interval")}
        for loop in _all_loops(backend)
        if loop["level"] in LEVELS[:2] and not loop["is_active"] and not loop["stopped_on_purpose"]
    ]
    sick += _engine_complaint(backend)
    return {"healthy": not sick, "unhealthy_count": len(sick), "unhealthy_threads": sick}


def _all_loops(backend: Backend) -> list[Entry]:
    own: list[WebLoop] = current_app.extensions[EXTENSION]
    loops = [*_engine_loops(backend), *(loop.describe() for loop in own)]
    return sorted(loops, key=lambda loop: str(loop["name"]))


def _engine_loops(backend: Backend) -> list[Entry]:
    """What a living engine published, with the ages as of now; nothing of a dead one."""
    try:
        record = backend.engine_record(reuse=False)
        if record is None or not record.is_alive(time.time()):
            return []
        snapshot = backend.last_snapshot(PERIODIC_THREADS)
    except RedisAway:
        return []
    if snapshot is None or snapshot.boot_id != record.boot_id:
        return []
    return [_aged(loop, snapshot.age_s) for loop in snapshot.body]


def _aged(loop: Entry, age_s: float) -> Entry:
    if loop["last_run_ago"] is None:
        return loop
    ago = round(loop["last_run_ago"] + age_s, 3)
    is_stale = age_s > FRESH_S and ago > STALE_INTERVALS * loop["interval"]
    return {**loop, "last_run_ago": ago, "is_active": loop["is_active"] and not is_stale}


def _engine_complaint(backend: Backend) -> list[Entry]:
    """The entry for an engine that is not ready, or of which nothing can be known."""
    last_beat_ago = None
    try:
        record = backend.engine_record(reuse=False)
        if record is not None:
            last_beat_ago = round(max(0.0, time.time() - record.beat_at), 3)
            backend.last_snapshot(PERIODIC_THREADS)
            if record.is_alive(time.time()) and record.state == "ready":
                return []
    except RedisAway:
        pass
    return [{"name": "engine", "level": "critical", "last_run_ago": last_beat_ago, "interval": BEAT_INTERVAL_S}]


def _summary(loops: list[Entry]) -> Entry:
    return {
        "total_count": len(loops),
        "running_count": sum(loop["is_running"] for loop in loops),
        "active_count": sum(loop["is_active"] for loop in loops),
        "by_level": {level: _counts([loop for loop in loops if loop["level"] == level]) for level in LEVELS},
    }


def _counts(loops: list[Entry]) -> dict[str, int]:
    return {
        "total": len(loops),
        "running": sum(loop["is_running"] for loop in loops),
        "active": sum(loop["is_active"] for loop in loops),
    }
