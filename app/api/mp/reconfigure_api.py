"""Changing L2 adapters while they are used: what can be changed, how it is now, and changing it.

The fields of DAX operations are checked here; any other backend gets the fields as they came. What the body's form is
judged before the backend is looked for, so a wrong request is told so on any server.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from flask import Blueprint
from marshmallow import Schema

from app.backend import current_backend
from app.declarations import answers, in_path, reads, refuses
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

BACKEND = ("dax", "The type of an adapter; its case and spaces around it do not matter.")
Change = Annotated[
    dict[str, Any],
    "The fields of the operation; a DAX operation takes no others than these.",
    {
        "properties": {
            "device_path": {"type": "string"},
            "size": {"type": ["integer", "string"], "description": "Bytes, or a text such as `1.5 TiB`."},
            "mode": {"enum": ["migrate", "evict", "drain"], "default": "migrate"},
            "force": {"type": "boolean", "default": False},
            "adapter_index": {
                "type": "integer",
                "default": 0,
                "description": "Counts only the adapters of this backend.",
            },
        }
    },
]

#: An adapter's own, with what it has to say beside the reason.
Refusal = {"error": str, ...: Any}


class ChangeableAdapter(TypedDict):
    """An adapter that can be changed at runtime, and how it is."""

    backend: str
    supported_operations: list[str]
    adapter_index: int
    l2_adapter_index: int
    status: dict[str, Any]


DAX_EXAMPLE = {
    "backend": DAX,
    "supported_operations": ["status", "add", "remove", "resize"],
    "adapter_index": 0,
    "l2_adapter_index": 0,
    "status": {"hotplug_enabled": True, "slot_bytes": 4202496, "devices": []},
}


@router.get("/reconfigure/backends")
@policy(Level.READ, ERROR)
@answers(
    200,
    {"enabled": bool, "num_backends": int, "backends": list[str]},
    example={"enabled": True, "num_backends": 1, "backends": [DAX]},
)
@refuses(503)
def backends() -> dict[str, Any]:
    """The backends of which an adapter is configured that can be changed."""
    names = sorted({entry["backend"] for entry in _reconfigurable()})
    return {"enabled": bool(names), "num_backends": len(names), "backends": names}


@router.get("/reconfigure/<backend>/status")
@policy(Level.READ, ERROR)
@in_path(backend=BACKEND)
@answers(
    200,
    {"enabled": bool, "backend": str, "num_adapters": int, "adapters": list[ChangeableAdapter]},
    example={"enabled": True, "backend": DAX, "num_adapters": 1, "adapters": [DAX_EXAMPLE]},
)
@refuses(400, "backend must be non-empty")
@refuses(503)
def status(backend: str) -> dict[str, Any]:
    """The adapters of a backend that can be changed, as they are now. None for an unknown backend."""
    entries = _reconfigurable()
    name = _word(backend, "backend")
    found = [entry for entry in entries if entry["backend"] == name]
    return {"enabled": bool(found), "backend": name, "num_adapters": len(found), "adapters": found}


@router.post("/reconfigure/<backend>/<operation>")
@policy(Level.ADMIN, ERROR)
@in_path(backend=BACKEND, operation=("add", "What to do: `add`, `resize` and `remove` for DAX."))
@reads(Change, example={"device_path": "/dev/dax1.0", "size": "100GiB"}, checked=True)
@answers(
    200,
    dict[str, Any],
    example={"status": "ok", "operation": "add", "adapter_index": 0, "device": {"index": 1, "state": "active"}},
    says="The adapter's own words.",
)
@refuses(400, "operation must be non-empty", "unsupported dax reconfigure operation: grow")
@refuses(403, "DAX hotplug is disabled")
@refuses(404, "dax adapter not found")
@answers(400, Refusal, example={"error": "failed to map DAX device", "reason": "[Errno 2] No such file or directory"})
@answers(404, Refusal, example={"error": "DAX device not found"})
@answers(
    409,
    Refusal,
    example={"error": "slots are in use", "status": "blocked", "locked_key_count": 1, "borrowed_slot_count": 0},
)
@answers(507, Refusal, example={"error": "no room to move objects to"})
@refuses(503)
def change(backend: str, operation: str) -> tuple[dict[str, Any], int]:
    """Changes one adapter of a backend while it is used. The answer is the adapter's own."""
    return carry_out(backend, operation, DAX_SCHEMAS)


def carry_out(backend: str, operation: str, dax_schemas: Mapping[str, Schema]) -> tuple[dict[str, Any], int]:
    """The change that the request's body tells, and its status; the schemas are those of DAX's operations."""
    body = json_body()
    current_backend().require_engine()
    name, verb = _word(backend, "backend"), _word(operation, "operation")
    fields = _fields_of(name, verb, body, dax_schemas)
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


def _fields_of(backend: str, operation: str, body: dict[str, Any], dax_schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """The checked fields; locations of DAX's do not begin with `body`. An unknown DAX operation is the engine's to
    refuse, whatever its fields."""
    if backend != DAX:
        return load(GENERIC, body, "body")
    schema = dax_schemas.get(operation)
    return {} if schema is None else load(schema, body)
