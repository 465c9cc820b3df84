"""GET /periodic-threads, /periodic-threads/{name}, /periodic-threads-health: the supervised loops of the server.

The engine's come from what it publishes, also while it is not ready but alive; the web tier's are those of the worker
that answers, the same in each.
"""

import time
from typing import Any

from flask import Blueprint, current_app
from marshmallow import fields

from app.backend import Backend, current_backend
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


class PeriodicThreadsQuery(LarderSchema):
    level: fields.Field = Text(load_default="")
    running_only: fields.Field = Boolean(load_default=False)
    active_only: fields.Field = Boolean(load_default=False)


@router.get("/periodic-threads")
@policy(Level.READ, ERROR)
@takes_query(PeriodicThreadsQuery)
def periodic_threads(level: str, running_only: bool, active_only: bool) -> Entry:
    """The loops, and how many there are. The filters narrow the list alone."""
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
def periodic_thread(thread_name: str) -> Entry:
    """One loop."""
    for loop in _all_loops(current_backend()):
        if loop["name"] == thread_name:
            return loop
    raise RouteError(404, f"Thread not found: {thread_name}")


@router.get("/periodic-threads-health")
@policy(Level.READ, ERROR)
def periodic_threads_health() -> Entry:
    """Always 200: critical and high loops that do not do their work, and `engine` while it does not serve."""
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
