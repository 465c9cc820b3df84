"""Byte budgets per cache_salt: PUT, GET, DELETE /quota/{cache_salt} and GET /quota.

`_default` in the path and in answers stands for the empty salt. GB means 2**30 bytes. Reads come from the hashes that
the engine keeps in Redis, so a GET after a PUT agrees whichever web worker takes it.
"""

import math
from typing import Annotated, Any, Literal, TypedDict

from flask import Blueprint, request

from app.backend import QuotaState, current_backend
from app.declarations import answers, in_path, reads, refuses
from app.errors import RouteError
from app.policy import ERROR, Level, policy
from app.request_schema import parse_json, whole_body
from contract.commands import MAX_INTEGER, MAX_SALT_CHARACTERS, DeleteQuota, SetQuota
from contract.keys import field_to_salt, salt_to_field

router = Blueprint("quota", __name__)

GIB = 2**30
MAX_LIMIT_GB = MAX_INTEGER // GIB

Gb = Annotated[float, "2**30 bytes each.", {"minimum": 0}]
Limit = Annotated[float, "In 2**30 bytes.", {"minimum": 0, "maximum": MAX_LIMIT_GB}]
names_tenant = in_path(
    cache_salt=("alice", "The tenant; `_default` is the empty salt. No `/`, at most 1024 characters.")
)
refuses_bad_salt = refuses(400, "the cache_salt in the path is not UTF-8")


class TenantUsage(TypedDict):
    """A registered tenant. `current_usage_gb` is the larger tier's."""

    limit_gb: Gb
    current_usage_gb: Gb
    l1_usage_gb: Gb
    l2_usage_gb: Gb


class TenantQuota(TenantUsage):
    """A tenant, registered (`exists`) or not."""

    cache_salt: str
    exists: bool


USAGE = {"limit_gb": 10.0, "current_usage_gb": 2.137, "l1_usage_gb": 0.25, "l2_usage_gb": 2.137}


@router.put("/quota/<cache_salt>")
@policy(Level.ADMIN, ERROR)
@names_tenant
@reads({"limit_gb": Limit, ...: Any}, example={"limit_gb": 10})
@answers(
    200,
    {"cache_salt": str, "limit_gb": float, "status": Literal["ok"]},
    example={"cache_salt": "alice", "limit_gb": 10.0, "status": "ok"},
)
@refuses(400, "invalid JSON body", "body must be {'limit_gb': <float>}", "limit_gb must be non-negative")
@refuses(503)
def set_quota(cache_salt: str) -> dict[str, Any]:
    """Registers or replaces a limit. `limit_gb` is echoed as sent, stored as whole bytes; the content type of the body
    does not matter."""
    backend = current_backend()
    backend.require_engine()
    salt = _salt_of(cache_salt)
    limit_gb = _limit_in_body(whole_body())
    backend.call(SetQuota(cache_salt=salt, limit_bytes=int(limit_gb * GIB)))
    return {"cache_salt": salt_to_field(salt), "limit_gb": limit_gb, "status": "ok"}


@router.get("/quota/<cache_salt>")
@policy(Level.READ, ERROR)
@names_tenant
@answers(200, TenantQuota, example={"cache_salt": "alice", **USAGE, "exists": True})
@refuses_bad_salt
@refuses(503)
def get_quota(cache_salt: str) -> dict[str, Any]:
    """Limit and usage of a tenant, registered or not."""
    state = current_backend().quota(_salt_of(cache_salt))
    return {"cache_salt": cache_salt, **_shown(state), "exists": state.limit_bytes is not None}


@router.delete("/quota/<cache_salt>")
@policy(Level.ADMIN, ERROR)
@names_tenant
@answers(
    200,
    {"cache_salt": str, "status": Literal["removed", "not_found"]},
    example={"cache_salt": "alice", "status": "removed"},
)
@refuses_bad_salt
@refuses(503)
def delete_quota(cache_salt: str) -> dict[str, Any]:
    """Removes a limit. The tenant then has limit 0."""
    reply = current_backend().call(DeleteQuota(cache_salt=_salt_of(cache_salt)))
    return {"cache_salt": cache_salt, "status": "removed" if reply["removed"] else "not_found"}


@router.get("/quota")
@policy(Level.READ, ERROR)
@answers(200, {"users": dict[str, TenantUsage]}, example={"users": {"alice": USAGE}})
@refuses(503)
def list_quotas() -> dict[str, Any]:
    """The registered tenants, with limits and usage."""
    quotas = current_backend().quotas()
    return {"users": {salt_to_field(salt): _shown(state) for salt, state in sorted(quotas.items())}}


def _shown(state: QuotaState) -> dict[str, float]:
    """`current_usage_gb` is the larger tier's, since a limit holds for each tier by itself."""
    return {
        "limit_gb": (state.limit_bytes or 0) / GIB,
        "current_usage_gb": max(state.l1_bytes, state.l2_bytes) / GIB,
        "l1_usage_gb": state.l1_bytes / GIB,
        "l2_usage_gb": state.l2_bytes / GIB,
    }


def _salt_of(segment: str) -> str:
    """The salt that a path segment names. Werkzeug puts U+FFFD for what is not UTF-8: two salts must not meet there."""
    if "\ufffd" in segment and not _is_utf8(request.environ["PATH_INFO"]):
        raise RouteError(400, "the cache_salt in the path is not UTF-8")
    if len(segment) > MAX_SALT_CHARACTERS:
        raise RouteError(400, f"the cache_salt has {len(segment)} characters, at most {MAX_SALT_CHARACTERS} are taken")
    return field_to_salt(segment)


def _is_utf8(wsgi_path: str) -> bool:
    try:
        wsgi_path.encode("latin-1").decode()
    except UnicodeDecodeError:
        return False
    return True


def _limit_in_body(raw: bytes) -> float:
    """The limit, checked in the order that clients know; the content type does not matter."""
    try:
        body = parse_json(raw, parse_int=float)
    except ValueError as error:
        raise RouteError(400, "invalid JSON body") from error
    if not isinstance(body, dict) or "limit_gb" not in body:
        raise RouteError(400, "body must be {'limit_gb': <float>}")
    try:
        limit_gb = float(body["limit_gb"])
    except (TypeError, ValueError) as error:
        raise RouteError(400, "limit_gb must be numeric") from error
    if not math.isfinite(limit_gb):
        raise RouteError(400, "limit_gb must be finite")
    if limit_gb < 0:
        raise RouteError(400, "limit_gb must be non-negative")
    if limit_gb * GIB > MAX_INTEGER:
        raise RouteError(400, f"limit_gb must be at most {MAX_LIMIT_GB}")
    return limit_gb + 0.0  # -0.0 is 0.0 then
