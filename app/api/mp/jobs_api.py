"""GET /jobs/prefetch: the records of prefetch jobs, newest first, consumed ones included until they expire."""

import dataclasses
from typing import Any

from flask import Blueprint
from marshmallow import validate
from marshmallow.fields import Field

from app.backend import current_backend
from app.policy import DETAIL, Level, policy
from app.request_schema import LarderSchema, Problem, QueryInteger, takes_query

router = Blueprint("jobs", __name__)

MAX_LIMIT = 1000


class ListQuery(LarderSchema):
    limit: Field = QueryInteger(
        load_default=100, validate=validate.Range(1, MAX_LIMIT, error=Problem("range", f"not from 1 to {MAX_LIMIT}"))
    )


@router.get("/jobs/prefetch")
@policy(Level.ADMIN, DETAIL)
@takes_query(ListQuery)
def list_prefetch_jobs(limit: int) -> dict[str, Any]:
    """Times are epoch seconds by Redis's clock, null for what has not happened. Needs no engine."""
    with current_backend().prefetch_jobs() as jobs:
        return {"jobs": [dataclasses.asdict(job) for job in jobs.newest(limit)]}
