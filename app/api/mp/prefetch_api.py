"""Prefetch jobs: POST /l2/prefetch warms L1 from L2 by token ids, GET /l2/prefetch/{id} asks for the result, once.

The record in Redis is made here; the engine gets its id. A job whose start is refused is taken back. A poll that may
wait needs a place for that, and says `pending` at once where there is none: two thirds of those that wait for the
engine, so that polls leave some for commands. It takes no result for a caller who has gone.
"""

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

from flask import Blueprint, request
from marshmallow import validate
from marshmallow.fields import Field
from werkzeug.exceptions import MethodNotAllowed

from app import audit
from app.backend import Backend, current_backend
from app.declarations import answers, in_path, refuses
from app.errors import RouteError
from app.policy import DETAIL, Level, policy
from app.prefetch_body import MAX_BODY_BYTES, PrefetchBody, TokenIds, parse_prefetch_body
from app.request_schema import LarderSchema, Problem, QueryInteger, takes_body, takes_query
from contract.commands import CancelPrefetch, StartPrefetch
from contract.errors import ContractError, QueueFull, RedisAway
from contract.keys import PREFETCH_MAX_JOBS
from contract.prefetch_jobs import COMPLETED, PrefetchJob, is_request_id, new_request_id
from contract.token_ids import MAX_TOKEN_IDS

router = Blueprint("prefetch", __name__)

MAX_WAIT_S = 30
ASK_AGAIN_S = 0.1
RETRY_AFTER_S = 60.0
NOT_TO_BE_KEPT = {"Cache-Control": "no-store"}
NOT_FOUND = "unknown prefetch request, or its result was taken already"
TOO_MANY = f"more than {MAX_TOKEN_IDS} token_ids"


class PollQuery(LarderSchema):
    wait: Field = QueryInteger(
        load_default=0,
        validate=validate.Range(0, MAX_WAIT_S, error=Problem("range", f"not from 0 to {MAX_WAIT_S}")),
        metadata={"description": "How many seconds the answer may wait for the end of the job."},
    )


EXAMPLE_ID = "b6a5634be4a316e316bf05f8507f88bf"
EXAMPLE_BODY = {"model_name": "llama-8b", "world_size": 1, "token_ids": [1, 15043, 3186], "cache_salt": ""}
EXAMPLE_RESULT = {"status": COMPLETED, "found_keys": 2, "total_keys": 2}
names_job = in_path(request_id=(EXAMPLE_ID, "The id that the submission answered."))
answers_submitted = answers(
    202,
    {"request_id": str, "chunks": int, "status": Literal["submitted"]},
    example={"request_id": EXAMPLE_ID, "chunks": 2, "status": "submitted"},
)
answers_noop = answers(
    202,
    {"chunks": Literal[0], "status": Literal["noop"]},
    example={"chunks": 0, "status": "noop"},
    says="`noop`: less than a chunk is no job.",
)


@router.post("/l2/prefetch")
@policy(Level.ADMIN, DETAIL)
@takes_body(PrefetchBody, example=EXAMPLE_BODY, parse=parse_prefetch_body, max_bytes=MAX_BODY_BYTES)
@answers_submitted
@answers_noop
@refuses(400, TOO_MANY, "cache_salt 'a@b' must not contain '@', '/', '\\' or NUL")
@refuses(409, "no layout is registered for model llama-8b and world size 1")
@refuses(503)
def submit(model_name: str, world_size: int, token_ids: TokenIds, cache_salt: str) -> tuple[dict[str, Any], int]:
    """Starts loading a prompt from L2 into L1, and returns at once. Less than a chunk is no job."""
    if token_ids.count > MAX_TOKEN_IDS:
        raise RouteError(400, TOO_MANY)
    return start_job(PrefetchJob(new_request_id(), model_name, world_size, cache_salt), token_ids.text), 202


def start_job(job: PrefetchJob, token_ids: str) -> dict[str, Any]:
    """The answer to a submission. Raises CommandFailed: conflict (no layout), bad_request; QueueFull, and others."""
    backend = current_backend()
    backend.require_engine()
    with backend.prefetch_jobs() as jobs:
        has_room = jobs.create(job, token_ids)
    if not has_room:
        raise QueueFull(f"{PREFETCH_MAX_JOBS} prefetch jobs are kept, and the oldest are not over", RETRY_AFTER_S)
    try:
        reply = backend.call(StartPrefetch(job.request_id))
    except ContractError:
        _withdraw(backend, job.request_id)
        raise
    if reply["status"] == "noop":
        _withdraw(backend, job.request_id)
        return {"chunks": 0, "status": "noop"}
    return {"request_id": job.request_id, "chunks": reply["chunks"], "status": "submitted"}


@router.get("/l2/prefetch/<request_id>")
@policy(Level.ADMIN, DETAIL)
@names_job
@takes_query(PollQuery)
@answers(200, {"status": Literal["pending"]}, example={"status": "pending"}, headers=NOT_TO_BE_KEPT)
@answers(
    200,
    {"status": Literal["completed"], "found_keys": int, "total_keys": int},
    example=EXAMPLE_RESULT,
    headers=NOT_TO_BE_KEPT,
)
@answers(
    200,
    {
        "status": Literal["completed"],
        "found_keys": int,
        "total_keys": int,
        "outcome": Literal["failed", "cancelled"],
        "error": str,
    },
    example={**EXAMPLE_RESULT, "found_keys": 1, "outcome": "cancelled", "error": ""},
    headers=NOT_TO_BE_KEPT,
    says="`outcome` is there for a job that failed or was cancelled.",
)
@refuses(404, NOT_FOUND)
@refuses(503)
def poll(request_id: str, wait: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The result of a job that is over, once. `wait` is how many seconds the answer may take; until the job is over
    the answer is `pending`."""
    job = take_result(request_id, wait, ["GET", "DELETE"])
    if not job.has_ended:
        return {"status": "pending"}, NOT_TO_BE_KEPT
    return show_result(job, job.found_keys), NOT_TO_BE_KEPT


def take_result(request_id: str, wait: int, methods: Sequence[str]) -> PrefetchJob:
    """The job as it is, after at most `wait` seconds; one that is over was taken now. `methods` are those of the path.

    Raises RouteError: there is none to be taken.
    """
    if request.method == "HEAD":  # it would take the result away and show nothing
        raise MethodNotAllowed(methods)
    backend = current_backend()
    backend.require_engine()
    job = _consume(backend, request_id)
    if wait and job is not None and not job.has_ended:
        with backend.poll_place() as may_wait:
            if may_wait:
                job = _wait_for_end(backend, job, wait)
    if job is None:
        raise RouteError(404, NOT_FOUND)
    if not job.has_ended:
        audit.leave_out()
    return job


def show_result(job: PrefetchJob, found_keys: int) -> dict[str, Any]:
    """What a poll answers about a job that is over."""
    result: dict[str, Any] = {"status": COMPLETED, "found_keys": found_keys, "total_keys": job.total_keys}
    if job.status != COMPLETED:
        result |= {"outcome": job.status, "error": job.error}
    return result


@router.delete("/l2/prefetch/<request_id>")
@policy(Level.ADMIN, DETAIL)
@names_job
@answers(
    200,
    {"request_id": str, "status": Literal["cancelled", "completed", "failed"]},
    example={"request_id": EXAMPLE_ID, "status": "cancelled"},
)
@answers(
    202,
    {"request_id": str, "status": Literal["cancelling"]},
    example={"request_id": EXAMPLE_ID, "status": "cancelling"},
)
@refuses(404, NOT_FOUND, "the prefetch request is over")
@refuses(503)
def cancel(request_id: str) -> tuple[dict[str, str], int]:
    """Cancels a job; what was loaded stays. `status` is how the job ended, `cancelling` if that takes longer."""
    backend = current_backend()
    backend.require_engine()
    if not is_request_id(request_id):
        raise RouteError(404, NOT_FOUND)
    with backend.prefetch_jobs() as jobs:
        job = jobs.load(request_id)
    if job is None or job.has_ended:
        raise RouteError(404, "unknown prefetch request, or it is over")
    status = backend.call(CancelPrefetch(request_id))["status"]
    if status == "unknown":
        raise RouteError(404, "the prefetch request is over")
    return {"request_id": request_id, "status": status}, 202 if status == "cancelling" else 200


def _withdraw(backend: Backend, request_id: str) -> None:
    """Removes a job that did not start. A Redis that is away keeps it; the engine closes it after a while."""
    try:
        with backend.prefetch_jobs() as jobs:
            jobs.withdraw(request_id)
    except RedisAway:
        return


def _consume(backend: Backend, request_id: str) -> PrefetchJob | None:
    if not is_request_id(request_id):
        return None
    with backend.prefetch_jobs() as jobs:
        return jobs.consume(request_id)


def _wait_for_end(backend: Backend, job: PrefetchJob, wait_s: float) -> PrefetchJob | None:
    """Asks again until the job is over, the time is up, or the caller has gone."""
    give_up_at = time.monotonic() + wait_s
    pause = threading.Event()
    latest: PrefetchJob | None = job
    while latest is not None and not latest.has_ended and (rest_s := give_up_at - time.monotonic()) > 0:
        pause.wait(min(ASK_AGAIN_S, rest_s))
        if _caller_has_gone():
            break
        backend.require_engine()
        latest = _consume(backend, job.request_id)
    return latest


def _caller_has_gone() -> bool:
    connection = request.environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
