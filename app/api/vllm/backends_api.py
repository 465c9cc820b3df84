"""/backends and /bypass/*: where objects are kept, and taking an L2 adapter out of service for a while."""

from typing import Any, Literal

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import current_backend
from app.declarations import answers, in_path, refuses
from app.errors import RouteError
from app.inspection import asks_the_engine, fact, shape_of, shown
from app.policy import Level, policy
from app.request_schema import LarderSchema, Text, takes_query
from contract.commands import SetSwitch
from contract.process_facts import STEERING

router = Blueprint("vllm_backends", __name__)

BACKENDS = shape_of("backends")
BYPASS = shape_of("bypass")
FIXED = (
    "an adapter lives as long as the engine, since its catalog, write-back queue and eviction do; PUT /bypass/add "
    "takes one out of service, /reconfigure changes the devices of one"
)


EXAMPLE_NAMES = {"LocalCPUBackend": "L1Cache", "0-fs": "FsAdapter"}
EXAMPLE_BYPASS = {"status": "success", "backend_name": "0-fs", "bypassed": True, "bypassed_backends": ["0-fs"]}
BYPASS_BODY = {
    "status": Literal["success"],
    "backend_name": str,
    "bypassed": bool,
    "bypassed_backends": list[str],
}
refuses_unknown = refuses(400, "backend_name is missing", "unknown backend 's3'; there are LocalCPUBackend, 0-fs")


class BackendQuery(LarderSchema):
    backend_name: fields.Field = Text(
        load_default="", metadata={"description": "Needed. An L2 adapter's name (`0-fs`), or its type."}
    )


@router.get("/backends")
@policy(Level.READ, BACKENDS)
@answers(200, dict[str, str], example=EXAMPLE_NAMES)
@asks_the_engine
def backends() -> Response:
    """Where objects are kept. Name -> class, L1 first."""
    return shown(fact(STEERING)["backends"])


@router.post("/backends")
@policy(Level.ADMIN, BACKENDS)
@answers(
    200,
    {"status": Literal["success"], "created": dict[str, str], "backends": dict[str, str]},
    example={"status": "success", "created": {}, "backends": EXAMPLE_NAMES},
)
@asks_the_engine
def create_backends() -> Response:
    """Creates those that are configured and missing. None ever is: all are made when the engine starts, and stay."""
    return shown({"status": "success", "created": {}, "backends": fact(STEERING)["backends"]})


@router.delete("/backends/<name>", endpoint="close_backend")
@router.post("/backends/<name>/recreate", endpoint="recreate_backend")
@policy(Level.ADMIN, BACKENDS)
@in_path(name=("0-fs", "The name of a backend."))
@answers(
    404,
    {"status": Literal["not_found"], "message": str, "backends": dict[str, str]},
    example={"status": "not_found", "message": "unknown backend 's3'", "backends": EXAMPLE_NAMES},
)
@refuses(501, FIXED)
@asks_the_engine
def change_backend(name: str) -> Response:
    """Not supported for a backend that there is."""
    known = fact(STEERING)["backends"]
    if name not in known:
        return shown({"status": "not_found", "message": f"unknown backend {name[:80]!r}", "backends": known}, 404)
    raise RouteError(501, FIXED)


@router.get("/bypass/list")
@policy(Level.READ, BYPASS)
@answers(
    200,
    {"status": Literal["success"], "bypassed_backends": list[str], "all_backends": list[str]},
    example={"status": "success", "bypassed_backends": [], "all_backends": list(EXAMPLE_NAMES)},
)
@asks_the_engine
def bypassed() -> Response:
    """The adapters that are neither asked nor written."""
    steering = fact(STEERING)
    names = {"bypassed_backends": steering["bypassed"], "all_backends": list(steering["backends"])}
    return shown({"status": "success", **names})


@router.put("/bypass/add")
@policy(Level.ADMIN, BYPASS)
@takes_query(BackendQuery)
@answers(200, {**BYPASS_BODY, "was_already_bypassed": bool}, example={**EXAMPLE_BYPASS, "was_already_bypassed": False})
@refuses_unknown
@asks_the_engine
def add_bypass(backend_name: str) -> Response:
    """Takes an L2 adapter out of service. From now on it is neither asked nor written."""
    return _set_bypass(backend_name, on=True, was="was_already_bypassed")


@router.put("/bypass/remove")
@policy(Level.ADMIN, BYPASS)
@takes_query(BackendQuery)
@answers(
    200,
    {**BYPASS_BODY, "was_bypassed": bool},
    example={**EXAMPLE_BYPASS, "bypassed": False, "bypassed_backends": [], "was_bypassed": True},
)
@refuses_unknown
@asks_the_engine
def remove_bypass(backend_name: str) -> Response:
    """Puts an L2 adapter into service again. What was stored meanwhile is not written to it now."""
    return _set_bypass(backend_name, on=False, was="was_bypassed")


def _set_bypass(backend_name: str, *, on: bool, was: str) -> Response:
    if not backend_name:
        raise RouteError(400, "backend_name is missing")
    reply = current_backend().call(SetSwitch("bypass", backend_name, on))
    body: dict[str, Any] = {"status": "success", "backend_name": reply["name"], "bypassed": on, was: reply["was"]}
    return shown({**body, "bypassed_backends": fact(STEERING)["bypassed"]})
