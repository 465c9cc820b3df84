"""The forms of requests under the names that clients of LMCache 0.5.1 and later send."""

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import RAISE, fields

from app.l2_schema import KeyList, ListQuery, Mode, StrictSize
from app.prefetch_body import PrefetchBody
from app.request_schema import Boolean, LarderSchema, Problem, StrictField, Text, invalid

TIERS = ("l1", "l2", "all")


class Tier(StrictField):
    """A word for a part of the cache; `load_default` without one."""

    json_schema: ClassVar[Mapping[str, Any]] = {"enum": list(TIERS)}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if value not in TIERS:
            raise invalid("literal_error", f"must be one of {', '.join(TIERS)}")
        return str(value)


class ClearBody(LarderSchema):
    tier: fields.Field = Tier(load_default="l1", metadata={"description": "Only `l1` can be cleared."})
    force: fields.Field = Boolean(load_default=False, metadata={"description": "Also what is leased or in use."})


class DeleteObjectsBody(LarderSchema):
    keys: fields.Field = KeyList(required=True)
    tier: fields.Field = Tier(load_default="l2", metadata={"description": "Where to delete them."})
    force: fields.Field = Boolean(load_default=False, metadata={"description": "In L1 also what is leased or in use."})
    adapter: fields.Field = Text(
        load_default=None,
        allow_none=True,
        metadata={"description": "In L2: a `type_name`, the first adapter of that type; else the primary."},
    )


class ListObjectsQuery(ListQuery):
    tier: fields.Field = Text(load_default="l2", metadata={"description": "Only `l2` can be listed."})


class PrefetchesBody(PrefetchBody):
    source_tier: fields.Field = Text(load_default="l2", metadata={"description": "Only `l2` can be loaded from."})
    target_tier: fields.Field = Text(load_default="l1", metadata={"description": "Only `l1` can be loaded into."})


class _L1DaxChange(LarderSchema):
    class Meta:
        unknown = RAISE

    error_messages = {"unknown": Problem("extra_forbidden", "this field is not known here")}  # noqa: RUF012
    device_path: fields.Field = Text(required=True)


class L1DaxAdd(_L1DaxChange):
    size: fields.Field = StrictSize(required=True)


class L1DaxRemove(_L1DaxChange):
    mode: fields.Field = Mode("drain")
