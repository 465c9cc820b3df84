"""The body of a prefetch request: up to a million token ids, and a few words.

The ids of a long body are read slice by slice, so that the other threads of the web worker get their turn, and they
are handed on as the text in which they came.
"""

import re
import secrets
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from marshmallow import ValidationError
from marshmallow.fields import Field

from app.request_schema import Integer, LarderSchema, StrictField, Text, invalid, parse_json, to_integer
from contract.token_ids import MAX_TOKEN_ID, MAX_TOKEN_IDS, read_token_ids, write_token_ids

#: A million ids of ten digits, each with a comma and three blanks.
MAX_BODY_BYTES = 16 * 1024 * 1024
_SLICED_FROM_BYTES = 65_536
_NAME = b'"token_ids"'
_OPENING = re.compile(_NAME + rb"\s*:\s*\[")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """How many, and the JSON list of them; the text is empty when there are too many."""

    count: int
    text: str


class TokenIdList(StrictField):
    """A list of whole numbers from 0 to 2**32 - 1, as TokenIds."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "type": "array",
        "maxItems": MAX_TOKEN_IDS,
        "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> TokenIds:
        if isinstance(value, TokenIds):
            return value
        if not isinstance(value, list):
            raise invalid("list_type", "not a list")
        try:
            ids = array("I", value)
        except (TypeError, OverflowError):
            ids = array("I", [_token_id(index, member) for index, member in enumerate(value[: MAX_TOKEN_IDS + 1])])
        return TokenIds(len(ids), write_token_ids(ids) if len(ids) <= MAX_TOKEN_IDS else "")


class PrefetchBody(LarderSchema):
    model_name: Field = Text(required=True, metadata={"description": "As a worker registered it."})
    world_size: Field = Integer(required=True, metadata={"description": "As a worker registered it."})
    token_ids: Field = TokenIdList(required=True, metadata={"description": "The prompt; whole chunks of it count."})
    cache_salt: Field = Text(load_default="", metadata={"description": "The tenant."})


def parse_prefetch_body(raw: bytes) -> Any:
    """The value in the body, with TokenIds in place of a long plain list of ids. Raises ValueError."""
    found = _find_ids(raw)
    if found is None:
        return parse_json(raw)
    start, end, ids = found
    # Only the list's own place in the document gets this number back, wherever its name may stand.
    stand_in = secrets.randbits(62)
    try:
        body = parse_json(b"%b%d%b" % (raw[:start], stand_in, raw[end:]))
    except ValueError:
        return parse_json(raw)  # which says where the mistake is
    if not isinstance(body, dict) or body.get("token_ids") != stand_in:
        return parse_json(raw)
    return {**body, "token_ids": ids}


def _find_ids(raw: bytes) -> tuple[int, int, TokenIds] | None:
    """Where the one plain list of ids begins and ends in a long body; None if it is not as plain as that."""
    at = raw.find(_NAME)
    if len(raw) < _SLICED_FROM_BYTES or at < 1 or raw[at - 1 : at] == b"\\" or raw.find(_NAME, at + 1) >= 0:
        return None
    opening = _OPENING.match(raw, at)
    end = raw.find(b"]", at) + 1
    if opening is None or end == 0:
        return None
    start = opening.end() - 1
    try:
        text = raw[start:end].decode("ascii")
        count = len(read_token_ids(text))
    except ValueError:
        return None
    return start, end, TokenIds(count, text)


def _token_id(index: int, member: Any) -> int:
    """A member of the list, by the rules for integers in a body. Raises ValidationError."""
    try:
        number = to_integer(member)
        if not 0 <= number <= MAX_TOKEN_ID:
            raise invalid("token_id_range", f"not from 0 to {MAX_TOKEN_ID}")
    except ValidationError as error:
        raise ValidationError({index: error.messages}) from error
    return number
