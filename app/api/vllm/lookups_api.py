"""/lookup/* and /chunk_statistics/*: who looks prefixes up, and how often the same chunks are asked for."""

import time

from flask import Blueprint, Response

from app.backend import current_backend
from app.errors import RouteError
from app.inspection import fact, shape_of, shown
from app.policy import Level, policy
from contract.commands import CountChunks
from contract.process_facts import LOOKUP, STEERING

router = Blueprint("vllm_lookups", __name__)

LOOKUPS = shape_of("lookup")
STATISTICS = shape_of("chunk_statistics")
FIXED = (
    "lookups go over the data plane, whose server lives as long as the engine and whose clients reconnect by themselves"
)


@router.get("/lookup/info")
@policy(Level.READ, LOOKUPS)
def lookup_info() -> Response:
    """The classes of this process that ask, and that answer; "None" for none."""
    return shown(fact(LOOKUP))


@router.post("/lookup/close")
@router.post("/lookup/create", endpoint="create_lookup")
@router.post("/lookup/recreate", endpoint="recreate_lookup")
@policy(Level.ADMIN, LOOKUPS)
def change_lookup() -> Response:
    """Not supported."""
    raise RouteError(501, FIXED)


@router.post("/chunk_statistics/start")
@policy(Level.ADMIN, STATISTICS)
def start() -> Response:
    """Counts the chunks of each lookup from now on."""
    return _step("start", "Started")


@router.post("/chunk_statistics/stop")
@policy(Level.ADMIN, STATISTICS)
def stop() -> Response:
    """Counts no more; what was counted is kept."""
    return _step("stop", "Stopped")


@router.post("/chunk_statistics/reset")
@policy(Level.ADMIN, STATISTICS)
def reset() -> Response:
    """Forgets what was counted."""
    return _step("reset", "Reset")


@router.get("/chunk_statistics/status")
@policy(Level.READ, STATISTICS)
def statistics() -> Response:
    """The counts. They never end by themselves."""
    never = {"auto_exit_enabled": False, "auto_exit_timeout_hours": 0.0, "auto_exit_target_unique_chunks": 0}
    return shown({**fact(STEERING)["chunk_statistics"], "timestamp": time.time(), **never})


def _step(step: str, message: str) -> Response:
    current_backend().call(CountChunks(step))
    return shown({"status": "success", "message": message})
