"""L2 adapters: which there are, deleting and listing what they hold, and their scrub.

An adapter is named by its type, the first one of that type wins; without a name it is the primary.
"""

import json
from typing import Any

from flask import Blueprint

from app.backend import current_backend
from app.errors import RouteError
from app.l2_schema import AdapterQuery, DeleteBody, ListQuery
from app.policy import DETAIL, Level, policy
from app.request_schema import takes_body, takes_query
from contract.commands import MAX_KEYS, ControlScrub, DeleteKeys, ListKeys
from contract.object_keys import EncodedKey, check_key
from contract.snapshots import ADAPTERS

router = Blueprint("l2", __name__)


@router.get("/l2/adapters")
@policy(Level.READ, DETAIL)
def adapters() -> dict[str, Any]:
    """The configured adapters in their order; the first is the primary."""
    return {"adapters": json.loads(current_backend().read_text(ADAPTERS))["adapters"]}


@router.delete("/l2")
@policy(Level.ADMIN, DETAIL)
@takes_query(AdapterQuery)
@takes_body(DeleteBody)
def delete_keys(adapter: str | None, keys: list[EncodedKey]) -> dict[str, Any]:
    """Deletes objects from one adapter; absent ones and those in use are passed over. A storage's failure is a 200."""
    if len(keys) > MAX_KEYS:
        raise RouteError(400, f"{len(keys)} keys, at most {MAX_KEYS} are taken")
    for index, key in enumerate(keys):
        try:
            check_key(key)
        except ValueError as error:
            raise RouteError(400, f"keys[{index}]: {error}") from error
    reply = current_backend().call(DeleteKeys(adapter, tuple(keys)))
    answer = {"requested": len(keys), "adapter": reply["adapter"], "ok": reply["ok"]}
    return answer if reply["ok"] else {**answer, "error": reply["error"]}


@router.get("/l2/keys")
@policy(Level.READ, DETAIL)
@takes_query(ListQuery)
def list_keys(adapter: str | None, model_name: str | None, page_size: int, page_token: str | None) -> dict[str, Any]:
    """A page of keys with their stored bytes, and the token of the next page."""
    return current_backend().call(ListKeys(adapter, model_name, page_size, page_token or None))


@router.post("/l2/scrub")
@policy(Level.ADMIN, DETAIL)
@takes_query(AdapterQuery)
def start_scrub(adapter: str | None) -> tuple[dict[str, Any], int]:
    """Begins to read and verify all that an adapter holds, in the background."""
    state = _scrub(adapter, "start")
    if not state.pop("started"):
        raise RouteError(409, f"a scrub of {state['adapter']} is running already")
    return state, 202


@router.get("/l2/scrub")
@policy(Level.READ, DETAIL)
@takes_query(AdapterQuery)
def scrub_state(adapter: str | None) -> dict[str, Any]:
    """How far the running scrub is, or how the last one ended."""
    return _scrub(adapter, "state")


@router.delete("/l2/scrub")
@policy(Level.ADMIN, DETAIL)
@takes_query(AdapterQuery)
def stop_scrub(adapter: str | None) -> dict[str, Any]:
    """Ends the running scrub; `stopped` says whether there was one."""
    return _scrub(adapter, "stop")


def _scrub(adapter: str | None, action: str) -> dict[str, Any]:
    return current_backend().call(ControlScrub(adapter, action))
