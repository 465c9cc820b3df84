"""GET /l1/objects: what L1 knows about single objects."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict

from flask import Blueprint
from marshmallow import fields

from app.api.mp.l2_api import StoredKey
from app.backend import current_backend
from app.declarations import answers, refuses
from app.l2_schema import EXAMPLE_KEY
from app.policy import DETAIL, Level, policy
from app.request_schema import LarderSchema, StrictField, invalid, takes_query
from contract.commands import MAX_FOUND, MAX_HASH_DIGITS, MIN_HASH_DIGITS, FindL1Objects, is_hash_prefix

router = Blueprint("l1", __name__)


class HashPrefix(StrictField):
    """The first hexadecimal digits of a chunk hash, or all of them."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "type": "string",
        "pattern": f"^[0-9a-fA-F]{{{MIN_HASH_DIGITS},{MAX_HASH_DIGITS}}}$",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        digits = str(value).lower()
        if not is_hash_prefix(digits):
            allowed = f"{MIN_HASH_DIGITS} to {MAX_HASH_DIGITS} hexadecimal digits"
            raise invalid("string_pattern_mismatch", f"must be {allowed}")
        return digits


class FindQuery(LarderSchema):
    chunk_hash: fields.Field = HashPrefix(
        required=True, metadata={"description": "The beginning of a chunk hash.", "example": "0f2c9b"}
    )


class ObjectInL1(TypedDict):
    """An object in L1. `leases` are readers that were promised it, `pins` copies and writes under way.

    Of the `ordered_objects` in its order of eviction (its tenant's, or that of objects used as often, where the policy
    has several) `colder_objects` go before it; both null without an order: while it is written, under `noop`, and above
    100,000 objects.
    """

    key: StoredKey
    size_bytes: int
    state: Literal["writing", "ready"]
    leases: int
    pins: int
    to_be_written_to: list[str]
    colder_objects: int | None
    ordered_objects: int | None


EXAMPLE = {
    "key": EXAMPLE_KEY,
    "size_bytes": 2097152,
    "state": "ready",
    "leases": 1,
    "pins": 0,
    "to_be_written_to": ["0-fs"],
    "colder_objects": 12,
    "ordered_objects": 39,
}


@router.get("/l1/objects")
@policy(Level.READ, DETAIL)
@takes_query(FindQuery)
@answers(
    200,
    {"entries": list[ObjectInL1], "has_more": bool},
    example={"entries": [EXAMPLE], "has_more": False},
    says=f"At most {MAX_FOUND} objects; `has_more`: others were left out.",
)
@refuses(503)
def find_objects(chunk_hash: str) -> dict[str, Any]:
    """The objects in L1 whose chunk hash begins so: their size, who holds them, and how soon they would be evicted."""
    return current_backend().call(FindL1Objects(chunk_hash))
