"""L2 adapters: which there are, deleting and listing what they hold, and their scrub.

An adapter is named by its type, the first one of that type wins; without a name it is the primary.
"""

import json
from typing import Annotated, Any, Literal, TypedDict

from flask import Blueprint

from app.backend import current_backend
from app.declarations import answers, refuses
from app.errors import RouteError
from app.l2_schema import EXAMPLE_KEY, KEY_PROPERTIES, AdapterQuery, DeleteBody, ListQuery
from app.policy import DETAIL, Level, policy
from app.request_schema import takes_body, takes_query
from contract.commands import MAX_KEYS, ControlScrub, DeleteKeys, ListKeys
from contract.object_keys import EncodedKey, check_key
from contract.snapshots import ADAPTERS

router = Blueprint("l2", __name__)

StoredKey = Annotated[
    dict[str, Any],
    {"properties": KEY_PROPERTIES, "required": list(KEY_PROPERTIES), "additionalProperties": False},
]
refuses_without_adapter = refuses(
    503, "engine not initialized", "no L2 adapter configured", "Redis does not answer: timed out"
)
refuses_unknown_adapter = refuses(404, "no L2 adapter of type 's3', there are fs")


class L2Adapter(TypedDict):
    """A configured adapter; `index` 0 is the primary."""

    index: int
    type_name: str
    primary: bool


class StoredObject(TypedDict):
    """An object and its stored bytes, header and codecs included."""

    key: StoredKey
    size_bytes: int


class ScrubState(TypedDict):
    """How far a scrub is, or how it ended."""

    adapter: str
    adapter_index: int
    state: Literal["never", "running", "waiting", "completed", "stopped", "failed"]
    error: str
    started_at: float | None
    finished_at: float | None
    elapsed_seconds: float
    eta_seconds: float | None
    total_objects: int | None
    checked_objects: int
    good_objects: int
    corrupt_objects: int
    gone_objects: int
    failed_objects: int
    checked_bytes: int
    bytes_per_second: float
    limit_bytes_per_second: float


class StoppedScrub(ScrubState):
    """The scrub after a request to end it; `stopped`: whether one ran."""

    stopped: bool


SCRUB = {
    "adapter": "fs",
    "adapter_index": 0,
    "state": "running",
    "error": "",
    "started_at": 1795385670.1,
    "finished_at": None,
    "elapsed_seconds": 2.0,
    "eta_seconds": 8.0,
    "total_objects": 500,
    "checked_objects": 100,
    "good_objects": 100,
    "corrupt_objects": 0,
    "gone_objects": 0,
    "failed_objects": 0,
    "checked_bytes": 210124800,
    "bytes_per_second": 105062400,
    "limit_bytes_per_second": 200000000,
}


@router.get("/l2/adapters")
@policy(Level.READ, DETAIL)
@answers(
    200,
    {"adapters": list[L2Adapter]},
    example={"adapters": [{"index": 0, "type_name": "fs", "primary": True}]},
)
@refuses(503)
def adapters() -> dict[str, Any]:
    """The configured adapters, in their order. The first is the primary."""
    return {"adapters": json.loads(current_backend().read_text(ADAPTERS))["adapters"]}


@router.delete("/l2")
@policy(Level.ADMIN, DETAIL)
@takes_query(AdapterQuery)
@takes_body(DeleteBody, example={"keys": [EXAMPLE_KEY]})
@answers(
    200,
    {"requested": int, "adapter": str, "ok": Literal[True]},
    example={"requested": 1, "adapter": "fs", "ok": True},
    says="Absent keys, and those in use, were passed over.",
)
@answers(
    200,
    {"requested": int, "adapter": str, "ok": Literal[False], "error": str},
    example={"requested": 1, "adapter": "fs", "ok": False, "error": "[Errno 30] Read-only file system"},
    says="`ok` false: the storage failed; what was deleted before is deleted.",
)
@refuses(400, "keys[0]: chunk_hash_hex '0g' is not hexadecimal of even length", "10001 keys, at most 10000 are taken")
@refuses_unknown_adapter
@refuses_without_adapter
def delete_keys(adapter: str | None, keys: list[EncodedKey]) -> dict[str, Any]:
    """Deletes objects from one adapter. Absent ones and those in use are passed over; a storage's failure is a 200."""
    check_keys(keys)
    reply = current_backend().call(DeleteKeys(adapter, tuple(keys)))
    answer = {"requested": len(keys), "adapter": reply["adapter"], "ok": reply["ok"]}
    return answer if reply["ok"] else {**answer, "error": reply["error"]}


def check_keys(keys: list[EncodedKey]) -> None:
    """Raises RouteError for too many keys, and for the first that breaks a rule."""
    if len(keys) > MAX_KEYS:
        raise RouteError(400, f"{len(keys)} keys, at most {MAX_KEYS} are taken")
    for index, key in enumerate(keys):
        try:
            check_key(key)
        except ValueError as error:
            raise RouteError(400, f"keys[{index}]: {error}") from error


@router.get("/l2/keys")
@policy(Level.READ, DETAIL)
@takes_query(ListQuery)
@answers(
    200,
    {"adapter": str, "entries": list[StoredObject], "next_page_token": str | None},
    example={
        "adapter": "fs",
        "entries": [{"key": EXAMPLE_KEY, "size_bytes": 2101248}],
        "next_page_token": None,
    },
    says="`next_page_token` is null on the last page.",
)
@refuses(400, "malformed page_token")
@refuses_unknown_adapter
@refuses(501, "too many objects to list")
@refuses_without_adapter
def list_keys(adapter: str | None, model_name: str | None, page_size: int, page_token: str | None) -> dict[str, Any]:
    """A page of keys with their stored bytes, and the token of the next page."""
    page = current_backend().call(ListKeys(adapter, model_name, page_size, page_token or None))
    return {name: member for name, member in page.items() if name != "shared"}


@router.post("/l2/scrub")
@policy(Level.ADMIN, DETAIL)
@takes_query(AdapterQuery)
@answers(202, ScrubState, example=SCRUB)
@refuses(409, "a scrub of fs is running already")
@refuses_unknown_adapter
@refuses_without_adapter
def start_scrub(adapter: str | None) -> tuple[dict[str, Any], int]:
    """Begins to read and verify all that an adapter holds, in the background."""
    state = _scrub(adapter, "start")
    if not state.pop("started"):
        raise RouteError(409, f"a scrub of {state['adapter']} is running already")
    return state, 202


@router.get("/l2/scrub")
@policy(Level.READ, DETAIL)
@takes_query(AdapterQuery)
@answers(200, ScrubState, example=SCRUB)
@refuses_unknown_adapter
@refuses_without_adapter
def scrub_state(adapter: str | None) -> dict[str, Any]:
    """How far the running scrub is, or how the last one ended."""
    return _scrub(adapter, "state")


@router.delete("/l2/scrub")
@policy(Level.ADMIN, DETAIL)
@takes_query(AdapterQuery)
@answers(200, StoppedScrub, example={**SCRUB, "state": "stopped", "stopped": True})
@refuses_unknown_adapter
@refuses_without_adapter
def stop_scrub(adapter: str | None) -> dict[str, Any]:
    """Ends the running scrub. `stopped` says whether there was one."""
    return _scrub(adapter, "stop")


def _scrub(adapter: str | None, action: str) -> dict[str, Any]:
    return current_backend().call(ControlScrub(adapter, action))
