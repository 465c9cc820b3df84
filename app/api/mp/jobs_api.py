"""GET /jobs/prefetch: the records of prefetch jobs, newest first, consumed ones included until they expire."""

import dataclasses
from typing import Any, Literal, TypedDict

from flask import Blueprint
from marshmallow import validate
from marshmallow.fields import Field

from app.backend import current_backend
from app.declarations import answers, refuses
from app.policy import DETAIL, Level, policy
from app.request_schema import LarderSchema, Problem, QueryInteger, takes_query

router = Blueprint("jobs", __name__)

MAX_LIMIT = 1000


class ListQuery(LarderSchema):
    limit: Field = QueryInteger(
        load_default=100,
        validate=validate.Range(1, MAX_LIMIT, error=Problem("range", f"not from 1 to {MAX_LIMIT}")),
        metadata={"description": "At most so many jobs, the newest."},
    )


class PrefetchRecord(TypedDict):
    """A prefetch job. Times are epoch seconds by Redis's clock, null for what has not happened."""

    request_id: str
    model_name: str
    world_size: int
    cache_salt: str
    chunks: int
    total_keys: int
    found_keys: int
    resident_keys: int
    missing_keys: int
    failed_keys: int
    over_quota_keys: int
    status: Literal["submitted", "running", "completed", "failed", "cancelled"]
    error: str
    submitted_at: float | None
    started_at: float | None
    finished_at: float | None
    consumed_at: float | None
    boot_id: str


EXAMPLE = {
    "request_id": "b6a5634be4a316e316bf05f8507f88bf",
    "model_name": "llama-8b",
    "world_size": 1,
    "cache_salt": "",
    "chunks": 2,
    "total_keys": 2,
    "found_keys": 2,
    "resident_keys": 0,
    "missing_keys": 0,
    "failed_keys": 0,
    "over_quota_keys": 0,
    "status": "completed",
    "error": "",
    "submitted_at": 1795383854.398,
    "started_at": 1795383854.408,
    "finished_at": 1795383854.408,
    "consumed_at": None,
    "boot_id": "d62b080acd4e",
}


@router.get("/jobs/prefetch")
@policy(Level.ADMIN, DETAIL)
@takes_query(ListQuery)
@answers(200, {"jobs": list[PrefetchRecord]}, example={"jobs": [EXAMPLE]})
@refuses(503, "Redis does not answer: timed out")
def list_prefetch_jobs(limit: int) -> dict[str, Any]:
    """The prefetch jobs, newest first. Times are epoch seconds by Redis's clock, null for what has not
    happened. Needs no engine."""
    with current_backend().prefetch_jobs() as jobs:
        return {"jobs": [dataclasses.asdict(job) for job in jobs.newest(limit)]}
