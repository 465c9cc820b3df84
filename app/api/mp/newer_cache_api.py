"""POST /cache/clear, DELETE and GET /cache/objects: clearing, deleting and listing under their newer names.

They name a tier. L2 is deleted from before L1: its refusals come before anything is gone, and nothing that is deleted
comes back from there.
"""

from typing import Any, Literal

from flask import Blueprint

from app.api.mp.l2_api import StoredObject, check_keys
from app.backend import current_backend
from app.declarations import answers, refuses
from app.errors import RouteError
from app.l2_schema import EXAMPLE_KEY
from app.newer_schema import ClearBody, DeleteObjectsBody, ListObjectsQuery
from app.policy import NEWER, Level, policy
from app.request_schema import takes_body, takes_query
from contract.commands import ClearCache, DeleteKeys, DeleteL1Keys, ListKeys
from contract.errors import CommandFailed
from contract.object_keys import EncodedKey

router = Blueprint("newer_cache", __name__)

refuses_without_adapter = refuses(
    503, "server not initialized", "no L2 adapter configured", "Redis does not answer: timed out"
)
refuses_unknown_adapter = refuses(404, "no L2 adapter of type 's3', there are fs")


@router.post("/cache/clear")
@policy(Level.ADMIN, NEWER)
@takes_body(ClearBody, example={"tier": "l1", "force": False}, optional=True)
@answers(
    200,
    {"status": Literal["ok"], "cleared": {"tier": Literal["l1"]}},
    example={"status": "ok", "cleared": {"tier": "l1"}},
)
@refuses(400, "tier 'l2' cannot be cleared, only l1 can")
@refuses(503)
def clear(tier: str, force: bool) -> dict[str, Any]:
    """Drops the objects of L1. What is leased or in use stays, unless `force` is given."""
    if tier != "l1":
        raise RouteError(400, f"tier {tier!r} cannot be cleared, only l1 can")
    current_backend().call(ClearCache(force=force))
    return {"status": "ok", "cleared": {"tier": "l1"}}


@router.delete("/cache/objects")
@policy(Level.ADMIN, NEWER)
@takes_body(DeleteObjectsBody, example={"keys": [EXAMPLE_KEY], "tier": "all"})
@answers(
    200,
    {"deleted": int, "skipped": int, "ok": Literal[True]},
    example={"deleted": 1, "skipped": 0, "ok": True},
    says="L2 counts every key of the request as deleted, L1 those that were there. `skipped`: in use in L1.",
)
@answers(
    200,
    {"deleted": int, "skipped": int, "ok": Literal[False], "error": str},
    example={"deleted": 0, "skipped": 0, "ok": False, "error": "[Errno 30] Read-only file system"},
    says="`ok` false: the storage failed; it then counts what was really deleted.",
)
@refuses(400, "keys[0]: chunk_hash_hex '0g' is not hexadecimal of even length", "10001 keys, at most 10000 are taken")
@refuses_unknown_adapter
@refuses_without_adapter
def delete_objects(keys: list[EncodedKey], tier: str, force: bool, adapter: str | None) -> dict[str, Any]:
    """Deletes objects from L1, from one adapter of L2, or from both. A storage's failure is a 200."""
    check_keys(keys)
    answer: dict[str, Any] = {"deleted": 0, "skipped": 0, "ok": True}
    failure = {}
    if tier != "l1":
        reply = current_backend().call(DeleteKeys(adapter, tuple(keys)))
        answer["ok"] = reply["ok"]
        answer["deleted"] = len(keys) if reply["ok"] else reply["deleted"]
        failure = {} if reply["ok"] else {"error": reply["error"]}
    if tier != "l2":
        reply = current_backend().call(DeleteL1Keys(tuple(keys), force))
        answer["deleted"] += reply["deleted"]
        answer["skipped"] = reply["skipped"]
    return answer | failure


@router.get("/cache/objects")
@policy(Level.READ, NEWER)
@takes_query(ListObjectsQuery)
@answers(
    200,
    {"adapter": str, "shared": bool, "entries": list[StoredObject], "next_page_token": str | None},
    example={
        "adapter": "fs",
        "shared": False,
        "entries": [{"key": EXAMPLE_KEY, "size_bytes": 2101248}],
        "next_page_token": None,
    },
    says="`next_page_token` is null on the last page. `shared`: other servers store there too.",
)
@refuses(400, "malformed page_token", "tier 'l1' cannot be listed, only l2 can")
@refuses_unknown_adapter
@refuses(503, "too many objects to list")
@refuses_without_adapter
def list_objects(
    tier: str, adapter: str | None, model_name: str | None, page_size: int, page_token: str | None
) -> dict[str, Any]:
    """A page of keys with their stored bytes, and the token of the next page."""
    if tier != "l2":
        raise RouteError(400, f"tier {tier[:80]!r} cannot be listed, only l2 can")
    try:
        return current_backend().call(ListKeys(adapter, model_name, page_size, page_token or None))
    except CommandFailed as error:
        if error.code == "unsupported":
            raise RouteError(503, error.message) from error
        raise
