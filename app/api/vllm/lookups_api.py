"""/lookup/* and /chunk_statistics/*: who looks prefixes up, and how often the same chunks are asked for."""

import time
from typing import Literal

from flask import Blueprint, Response

from app.backend import current_backend
from app.declarations import answers, refuses
from app.errors import RouteError
from app.inspection import asks_the_engine, fact, shape_of, shown
from app.policy import Level, policy
from contract.commands import CountChunks
from contract.process_facts import LOOKUP, STEERING

router = Blueprint("vllm_lookups", __name__)

LOOKUPS = shape_of("lookup")
STATISTICS = shape_of("chunk_statistics")
FIXED = (
    "lookups go over the data plane, whose server lives as long as the engine and whose clients reconnect by themselves"
)

STATISTICS_BODY = {
    "enabled": bool,
    "total_requests": int,
    "total_chunks": int,
    "unique_chunks": int,
    "duplicate_chunks": int,
    "reuse_rate": float,
    "since": float | None,
    "timestamp": float,
    "auto_exit_enabled": bool,
    "auto_exit_timeout_hours": float,
    "auto_exit_target_unique_chunks": int,
}
EXAMPLE_STATISTICS = {
    "enabled": True,
    "total_requests": 12,
    "total_chunks": 96,
    "unique_chunks": 40,
    "duplicate_chunks": 56,
    "reuse_rate": 0.58,
    "since": 1795383854.4,
    "timestamp": 1795384854.4,
    "auto_exit_enabled": False,
    "auto_exit_timeout_hours": 0.0,
    "auto_exit_target_unique_chunks": 0,
}


@router.get("/lookup/info")
@policy(Level.READ, LOOKUPS)
@answers(200, {"client": str, "server": str}, example={"client": "None", "server": "DataPlaneServer"})
@refuses(503)
def lookup_info() -> Response:
    """The classes of this process that ask for prefixes, and that answer. "None" for none."""
    return shown(fact(LOOKUP))


@router.post("/lookup/close")
@router.post("/lookup/create", endpoint="create_lookup")
@router.post("/lookup/recreate", endpoint="recreate_lookup")
@policy(Level.ADMIN, LOOKUPS)
@refuses(501, FIXED)
def change_lookup() -> Response:
    """Not supported."""
    raise RouteError(501, FIXED)


answers_step = answers(
    200,
    {"status": Literal["success"], "message": Literal["Started", "Stopped", "Reset"]},
    example={"status": "success", "message": "Started"},
)
refuses_clients = refuses(400, "a cache client has no chunk statistics")


@router.post("/chunk_statistics/start")
@policy(Level.ADMIN, STATISTICS)
@answers_step
@refuses_clients
@refuses(503)
def start() -> Response:
    """Counts the chunks of each lookup from now on."""
    return _step("start", "Started")


@router.post("/chunk_statistics/stop")
@policy(Level.ADMIN, STATISTICS)
@answers_step
@refuses_clients
@refuses(503)
def stop() -> Response:
    """Counts no more; what was counted is kept."""
    return _step("stop", "Stopped")


@router.post("/chunk_statistics/reset")
@policy(Level.ADMIN, STATISTICS)
@answers_step
@refuses_clients
@refuses(503)
def reset() -> Response:
    """Forgets which chunks were counted."""
    return _step("reset", "Reset")


@router.get("/chunk_statistics/status")
@policy(Level.READ, STATISTICS)
@answers(200, STATISTICS_BODY, example=EXAMPLE_STATISTICS)
@asks_the_engine
def statistics() -> Response:
    """How often the same chunks are asked for. Counting never ends by itself."""
    never = {"auto_exit_enabled": False, "auto_exit_timeout_hours": 0.0, "auto_exit_target_unique_chunks": 0}
    return shown({**fact(STEERING)["chunk_statistics"], "timestamp": time.time(), **never})


def _step(step: str, message: str) -> Response:
    current_backend().call(CountChunks(step))
    return shown({"status": "success", "message": message})
