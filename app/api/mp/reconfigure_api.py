"""Changing L2 adapters while they are used: what can be changed, how it is now, and changing it.

The fields of DAX operations are checked here; any other backend gets the fields as they came. What the body's form is
judged before the backend is looked for, so a wrong request is told so on any server.
"""

import json
from typing import Any

from flask import Blueprint

from app.backend import current_backend
from app.errors import RouteError
from app.l2_schema import DaxAdd, DaxRemove, DaxResize, GenericChange
from app.policy import ERROR, Level, policy
from app.request_schema import json_body, load
from contract.commands import Reconfigure
from contract.snapshots import ADAPTERS

router = Blueprint("reconfigure", __name__)

DAX = "dax"
DAX_SCHEMAS = {"add": DaxAdd(), "remove": DaxRemove(), "resize": DaxResize()}
GENERIC = GenericChange()
STATUS_OF_REFUSAL = {"bad_request": 400, "forbidden": 403, "not_found": 404, "conflict": 409, "no_room": 507}
#: Beyond the number of adapters that there can be, and within what a command may carry.
MAX_INDEX = 1_000_000


@router.get("/reconfigure/backends")
@policy(Level.READ, ERROR)
def backends() -> dict[str, Any]:
    """The backends of which an adapter is configured that can be changed."""
    names = sorted({entry["backend"] for entry in _reconfigurable()})
    return {"enabled": bool(names), "num_backends": len(names), "backends": names}


@router.get("/reconfigure/<backend>/status")
@policy(Level.READ, ERROR)
def status(backend: str) -> dict[str, Any]:
    """The adapters of a backend that can be changed, as they are now; none for an unknown backend."""
    entries = _reconfigurable()
    name = _word(backend, "backend")
    found = [entry for entry in entries if entry["backend"] == name]
    return {"enabled": bool(found), "backend": name, "num_adapters": len(found), "adapters": found}


@router.post("/reconfigure/<backend>/<operation>")
@policy(Level.ADMIN, ERROR)
def change(backend: str, operation: str) -> tuple[dict[str, Any], int]:
    """Changes one adapter of a backend; the answer is the adapter's own."""
    body = json_body()
    current_backend().require_engine()
    name, verb = _word(backend, "backend"), _word(operation, "operation")
    fields = _fields_of(name, verb, body)
    index = max(-1, min(fields.pop("adapter_index", 0), MAX_INDEX))
    reply = current_backend().call(Reconfigure(name, verb, index, fields))
    if "refused" in reply:
        return {"error": reply["message"], **reply["fields"]}, STATUS_OF_REFUSAL[reply["refused"]]
    return reply["body"], 200


def _reconfigurable() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(current_backend().read_text(ADAPTERS))["reconfigurable"]
    return found


def _word(segment: str, what: str) -> str:
    word = segment.strip().lower()
    if not word:
        raise RouteError(400, f"{what} must be non-empty")
    return word


def _fields_of(backend: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    """The checked fields; locations of DAX's do not begin with `body`. An unknown DAX operation is the engine's to
    refuse, whatever its fields."""
    if backend != DAX:
        return load(GENERIC, body, "body")
    schema = DAX_SCHEMAS.get(operation)
    return {} if schema is None else load(schema, body)
