"""/reconfigure/{backend}/l2/..., /reconfigure/dax/l1/...: changing adapters at runtime under newer names.

L1 is shared memory, never a Device-DAX device, so its routes check what they are sent and refuse.
"""

from typing import Any, NoReturn

from flask import Blueprint

from app.api.mp import reconfigure_api
from app.backend import current_backend
from app.declarations import like, reads, refuses
from app.errors import RouteError
from app.l2_schema import StrictDaxAdd, StrictDaxResize
from app.newer_schema import L1DaxAdd, L1DaxRemove
from app.policy import ERROR, Level, policy
from app.request_schema import json_body, load

router = Blueprint("newer_reconfigure", __name__)

NOT_DAX = "L1 is not Device-DAX backed, it is shared memory: its size is l1_size_gb, fixed until the next start"
DAX_SCHEMAS = {**reconfigure_api.DAX_SCHEMAS, "add": StrictDaxAdd(), "resize": StrictDaxResize()}
ADD = L1DaxAdd()
REMOVE = L1DaxRemove()


@router.get("/reconfigure/<backend>/l2/status")
@policy(Level.READ, ERROR)
@like(reconfigure_api.status)
def status(backend: str) -> dict[str, Any]:
    """The same as `/reconfigure/{backend}/status`."""
    return reconfigure_api.status(backend)


@router.post("/reconfigure/<backend>/l2/<operation>")
@policy(Level.ADMIN, ERROR)
@like(reconfigure_api.change)
def change(backend: str, operation: str) -> tuple[dict[str, Any], int]:
    """The same as `/reconfigure/{backend}/{operation}`, but that a `size` of 1.0 is no integer."""
    return reconfigure_api.carry_out(backend, operation, DAX_SCHEMAS)


@router.get("/reconfigure/dax/l1/status")
@policy(Level.READ, ERROR)
@refuses(409, NOT_DAX)
@refuses(503)
def l1_status() -> NoReturn:
    """Refused, since L1 is shared memory."""
    _refuse()


@router.post("/reconfigure/dax/l1/add")
@policy(Level.ADMIN, ERROR)
@reads(
    {"device_path": str, "size": int | str},
    example={"device_path": "/dev/dax1.0", "size": "100GiB"},
    checked=True,
)
@refuses(409, NOT_DAX)
@refuses(503)
def l1_add() -> NoReturn:
    """Refused, since L1 is shared memory; a wrong form is told before."""
    load(ADD, json_body())
    _refuse()


@router.post("/reconfigure/dax/l1/remove")
@policy(Level.ADMIN, ERROR)
@reads({"device_path": str, ...: Any}, example={"device_path": "/dev/dax1.0", "mode": "drain"}, checked=True)
@refuses(409, NOT_DAX)
@refuses(503)
def l1_remove() -> NoReturn:
    """Refused, since L1 is shared memory; a wrong form is told before."""
    load(REMOVE, json_body())
    _refuse()


def _refuse() -> NoReturn:
    current_backend().require_engine()
    raise RouteError(409, NOT_DAX)
