"""POST /cache/prefetches, GET /cache/prefetches/{id}: prefetch jobs under their newer names.

The jobs are those of /l2/prefetch. Found is here what is in L1 when the job is over, whoever loaded it.
"""

from typing import Any, Literal

from flask import Blueprint

from app.api.mp import prefetch_api
from app.declarations import answers, refuses
from app.errors import RouteError
from app.newer_schema import PrefetchesBody
from app.policy import NEWER, Level, policy
from app.prefetch_body import MAX_BODY_BYTES, TokenIds, parse_prefetch_body
from app.request_schema import takes_body, takes_query
from contract.errors import CommandFailed
from contract.prefetch_jobs import PrefetchJob, new_request_id
from contract.token_ids import MAX_TOKEN_IDS

router = Blueprint("newer_prefetch", __name__)

NO_TOKENS = "[]"
EXAMPLE_ID = prefetch_api.EXAMPLE_ID
RESULT = {"request_id": str, "status": Literal["completed"], "found_keys": int, "total_keys": int}
EXAMPLE_RESULT = {"request_id": EXAMPLE_ID, **prefetch_api.EXAMPLE_RESULT}


@router.post("/cache/prefetches")
@policy(Level.ADMIN, NEWER)
@takes_body(
    PrefetchesBody,
    example={**prefetch_api.EXAMPLE_BODY, "source_tier": "l2", "target_tier": "l1"},
    parse=parse_prefetch_body,
    max_bytes=MAX_BODY_BYTES,
)
@prefetch_api.answers_submitted
@prefetch_api.answers_noop
@refuses(400, prefetch_api.TOO_MANY, "source_tier must be l2 and target_tier l1")
@refuses(503, "server not initialized", "no layout is registered for model llama-8b and world size 1")
def submit(
    model_name: str, world_size: int, token_ids: TokenIds, cache_salt: str, source_tier: str, target_tier: str
) -> tuple[dict[str, Any], int]:
    """Starts loading a prompt from L2 into L1, and returns at once. Less than a chunk is no job."""
    if (source_tier, target_tier) != ("l2", "l1"):
        raise RouteError(400, "source_tier must be l2 and target_tier l1")
    is_too_long = token_ids.count > MAX_TOKEN_IDS
    job = PrefetchJob(new_request_id(), model_name, world_size, cache_salt)
    try:
        # A list that is too long is refused only once the engine has no other objection.
        answer = prefetch_api.start_job(job, NO_TOKENS if is_too_long else token_ids.text)
    except CommandFailed as error:
        if error.code == "conflict":
            raise RouteError(503, error.message) from error
        raise
    if is_too_long:
        raise RouteError(400, prefetch_api.TOO_MANY)
    return answer, 202


@router.get("/cache/prefetches/<request_id>")
@policy(Level.ADMIN, NEWER)
@prefetch_api.names_job
@takes_query(prefetch_api.PollQuery)
@answers(
    200,
    {"request_id": str, "status": Literal["pending"]},
    example={"request_id": EXAMPLE_ID, "status": "pending"},
    headers=prefetch_api.NOT_TO_BE_KEPT,
)
@answers(200, RESULT, example=EXAMPLE_RESULT, headers=prefetch_api.NOT_TO_BE_KEPT)
@answers(
    200,
    {**RESULT, "outcome": Literal["failed", "cancelled"], "error": str},
    example={**EXAMPLE_RESULT, "found_keys": 1, "outcome": "cancelled", "error": ""},
    headers=prefetch_api.NOT_TO_BE_KEPT,
    says="`outcome` is there for a job that failed or was cancelled.",
)
@refuses(404, prefetch_api.NOT_FOUND)
@refuses(503)
def poll(request_id: str, wait: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The result of a job that is over, once. `found_keys` counts what was in L1 before, too."""
    job = prefetch_api.take_result(request_id, wait, ["GET"])
    if not job.has_ended:
        return {"request_id": request_id, "status": "pending"}, prefetch_api.NOT_TO_BE_KEPT
    result = prefetch_api.show_result(job, job.found_keys + job.resident_keys)
    return {"request_id": request_id, **result}, prefetch_api.NOT_TO_BE_KEPT
