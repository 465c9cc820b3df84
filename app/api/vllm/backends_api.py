"""/backends and /bypass/*: where objects are kept, and taking an L2 adapter out of service for a while."""

from typing import Any

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import current_backend
from app.errors import RouteError
from app.inspection import fact, shape_of, shown
from app.policy import Level, policy
from app.request_schema import LarderSchema, Text, takes_query
from contract.commands import SetSwitch
from contract.process_facts import STEERING

router = Blueprint("vllm_backends", __name__)

BACKENDS = shape_of("backends")
BYPASS = shape_of("bypass")
FIXED = (
    "which adapters there are is decided when the engine starts, since each has its catalog, write-back queue and "
    "eviction; PUT /bypass/add takes one out of service, /reconfigure changes the devices of one"
)


class BackendQuery(LarderSchema):
    backend_name: fields.Field = Text(load_default="")


@router.get("/backends")
@policy(Level.READ, BACKENDS)
def backends() -> Response:
    """Name -> class, L1 first."""
    return shown(fact(STEERING)["backends"])


@router.post("/backends")
@router.delete("/backends/<name>", endpoint="close_backend")
@router.post("/backends/<name>/recreate", endpoint="recreate_backend")
@policy(Level.ADMIN, BACKENDS)
def change_backends(name: str = "") -> Response:
    """Not supported."""
    raise RouteError(501, FIXED)


@router.get("/bypass/list")
@policy(Level.READ, BYPASS)
def bypassed() -> Response:
    """The adapters that are neither asked nor written."""
    steering = fact(STEERING)
    names = {"bypassed_backends": steering["bypassed"], "all_backends": list(steering["backends"])}
    return shown({"status": "success", **names})


@router.put("/bypass/add")
@policy(Level.ADMIN, BYPASS)
@takes_query(BackendQuery)
def add_bypass(backend_name: str) -> Response:
    """From now on it is neither asked nor written."""
    return _set_bypass(backend_name, on=True, was="was_already_bypassed")


@router.put("/bypass/remove")
@policy(Level.ADMIN, BYPASS)
@takes_query(BackendQuery)
def remove_bypass(backend_name: str) -> Response:
    """It is in service again; what was stored meanwhile is not written to it now."""
    return _set_bypass(backend_name, on=False, was="was_bypassed")


def _set_bypass(backend_name: str, *, on: bool, was: str) -> Response:
    if not backend_name:
        raise RouteError(400, "backend_name is missing")
    reply = current_backend().call(SetSwitch("bypass", backend_name, on))
    body: dict[str, Any] = {"status": "success", "backend_name": reply["name"], "bypassed": on, was: reply["was"]}
    return shown({**body, "bypassed_backends": fact(STEERING)["bypassed"]})
