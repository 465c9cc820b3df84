"""/cache/clear, and what other engines offer to move KV by hand, which needs KV tensors that this process owns."""

from typing import Literal

from flask import Blueprint, Response, request

from app.backend import current_backend
from app.declarations import answers, refuses
from app.errors import RouteError
from app.inspection import asks_the_engine, fact, shape_of, shown
from app.policy import Level, policy
from contract.commands import ClearCache
from contract.process_facts import STEERING

router = Blueprint("vllm_objects", __name__)

CLEAR = shape_of("cache/clear")
MOVE = shape_of("cache/store and cache/retrieve")
LOAD = shape_of("cache/load-fs-chunks")
L1_NAME = "LocalCPUBackend"
NOT_MOVED = "KV is stored from and retrieved into the memory of inference workers, who ask for it over the data plane"
NOT_LOADED = "files of other engines have another form; an fs adapter's objects are loaded by POST /l2/prefetch"


@router.delete("/cache/clear")
@policy(Level.ADMIN, CLEAR)
@answers(200, {"status": Literal["success"], "num_removed": int}, example={"status": "success", "num_removed": 118})
@refuses(400, "unknown location 's3'")
@asks_the_engine
def clear() -> Response:
    """Empties L1, also of what is in use. `locations`, which may be repeated, can name nothing else."""
    others = [name for name in request.args.getlist("locations") if name != L1_NAME]
    if others:
        if others[0] in fact(STEERING)["backends"]:
            raise RouteError(
                400, f"{others[0]} is an L2 adapter, which is not cleared at once; DELETE /l2 deletes keys"
            )
        raise RouteError(400, f"unknown location {others[0][:80]!r}")
    reply = current_backend().call(ClearCache(force=True))
    return shown({"status": "success", "num_removed": reply["removed"] + reply["doomed"]})


@router.post("/cache/store")
@router.post("/cache/retrieve", endpoint="retrieve_objects")
@policy(Level.ADMIN, MOVE)
@refuses(501, NOT_MOVED)
def move_objects() -> Response:
    """Not supported."""
    raise RouteError(501, NOT_MOVED)


@router.post("/cache/load-fs-chunks")
@policy(Level.ADMIN, LOAD)
@refuses(501, NOT_LOADED)
def load_files() -> Response:
    """Not supported."""
    raise RouteError(501, NOT_LOADED)
