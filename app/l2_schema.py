"""The forms of requests about L2: keys of objects, pages, and changes of DAX devices."""

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import INCLUDE, RAISE, ValidationError, fields

from app.request_schema import Boolean, Integer, LarderSchema, Problem, QueryInteger, StrictField, Text, invalid
from app.request_schema import to_integer as _to_integer
from contract.commands import MAX_KEYS, MAX_PAGE_SIZE
from contract.object_keys import EncodedKey

DEFAULT_PAGE_SIZE = 500
EXAMPLE_KEY = {
    "chunk_hash_hex": "0f2c9b",
    "model_name": "llama-8b",
    "kv_rank": 16777472,
    "object_group_id": 0,
    "cache_salt": "",
}
KEY_PROPERTIES: dict[str, Any] = {
    "chunk_hash_hex": {"type": "string", "description": "Hexadecimal of even length."},
    "model_name": {"type": "string", "description": "Without `@`."},
    "kv_rank": {"type": "integer"},
    "object_group_id": {"type": "integer", "minimum": 0, "default": 0},
    "cache_salt": {"type": "string", "maxLength": 128, "default": "", "description": "Without `@`, `/`, `\\`, NUL."},
}


class KeyList(StrictField):
    """A list of keys as one field: ten thousand of them are read in a moment."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "type": "array",
        "maxItems": MAX_KEYS,
        "items": {
            "type": "object",
            "required": ["chunk_hash_hex", "model_name", "kv_rank"],
            "properties": KEY_PROPERTIES,
            "additionalProperties": True,
        },
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[EncodedKey]:
        if not isinstance(value, list):
            raise invalid("list_type", "not a list")
        return [_read_key(index, item) for index, item in enumerate(value)]


def _read_key(index: int, item: Any) -> EncodedKey:
    if not isinstance(item, dict):
        raise ValidationError({index: [Problem("object_type", "not an object")]})
    values: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}
    for name in EncodedKey._fields:
        try:
            if name in item:
                values[name] = _read_part(name, item[name])
            elif name not in EncodedKey._field_defaults:
                problems[name] = [Problem("missing", "this field is required")]
        except ValidationError as error:
            problems[name] = list(error.messages)
    if problems:
        raise ValidationError({index: problems})
    return EncodedKey(**values)


def _read_part(name: str, value: Any) -> Any:
    if name in ("kv_rank", "object_group_id"):
        return value if type(value) is int else _to_integer(value)
    if not isinstance(value, str):
        raise invalid("string_type", "not a string")
    return value


class PageSize(QueryInteger):
    """How many keys a page may have."""

    json_schema: ClassVar[Mapping[str, Any]] = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        number = super()._deserialize(value, attr, data, **kwargs)
        if not 1 <= number <= MAX_PAGE_SIZE:
            raise invalid("out_of_range", f"must be from 1 to {MAX_PAGE_SIZE}")
        return number


class AdapterQuery(LarderSchema):
    adapter: fields.Field = Text(
        load_default=None, metadata={"description": "A `type_name`, the first adapter of that type; else the primary."}
    )


class DeleteBody(LarderSchema):
    keys: fields.Field = KeyList(required=True)


class ListQuery(AdapterQuery):
    model_name: fields.Field = Text(load_default=None, metadata={"description": "Only keys of exactly this model."})
    page_size: fields.Field = PageSize(
        load_default=DEFAULT_PAGE_SIZE, metadata={"description": "At most so many keys in the answer."}
    )
    page_token: fields.Field = Text(
        load_default=None, metadata={"description": "`next_page_token` of the page before; empty counts as none."}
    )


class Size(StrictField):
    """A size of a device: bytes, or a text that the engine reads. 1.0 is 1, as for all integers in a body."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int | str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise invalid("size_type", "not a size: give whole bytes, or a text like '100GiB'")
        return value


class StrictSize(Size):
    """The same of the newer routes, which take no 1.0."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int | str:
        return super()._deserialize(None if isinstance(value, float) else value, attr, data, **kwargs)


class Mode(StrictField):
    """What becomes of the objects on a device."""

    def __init__(self, *words: str) -> None:
        super().__init__(load_default=words[0])
        self._words = words

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if value not in self._words:
            raise invalid("literal_error", f"must be one of {', '.join(self._words)}")
        return str(value)


class GenericChange(LarderSchema):
    """Any backend's: all other fields are handed on as they are."""

    class Meta:
        unknown = INCLUDE

    adapter_index: fields.Field = Integer(load_default=0)


class _DaxChange(LarderSchema):
    class Meta:
        unknown = RAISE

    error_messages = {"unknown": Problem("extra_forbidden", "this field is not known here")}  # noqa: RUF012
    device_path: fields.Field = Text(required=True)
    adapter_index: fields.Field = Integer(load_default=0)


class DaxAdd(_DaxChange):
    size: fields.Field = Size(required=True)


class StrictDaxAdd(DaxAdd):
    size: fields.Field = StrictSize(required=True)


class DaxRemove(_DaxChange):
    mode: fields.Field = Mode("migrate", "evict", "drain")
    force: fields.Field = Boolean(load_default=False)


class DaxResize(_DaxChange):
    size: fields.Field = Size(required=True)
    mode: fields.Field = Mode("migrate", "evict")
    force: fields.Field = Boolean(load_default=False)


class StrictDaxResize(DaxResize):
    size: fields.Field = StrictSize(required=True)
