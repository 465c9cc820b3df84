"""Reads query parameters and JSON bodies by the API's strict rules; what does not fit is a 422.

value             taken                                                         refused
----------------  ------------------------------------------------------------  ------------------------------------
integer, query    decimal text                                                  all else, and empty
boolean, query    true false 1 0 yes no on off t f y n, any case                all else, and empty
integer, body     1, 1.0, "7", true (is 1)                                      1.5, "x", null
boolean, body     true, false, 1, 0, the words of a query                       all else
list of integers  a list of what is an integer in a body                        anything but a list

Of a repeated query parameter the last counts. Unknown parameters and fields are ignored.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from itertools import islice
from typing import Any, ClassVar, TypeVar

from flask import request
from marshmallow import EXCLUDE, Schema, ValidationError
from marshmallow.fields import Field
from werkzeug.exceptions import RequestEntityTooLarge

from app.declarations import Body, declaration_of, declare
from app.errors import Unprocessable

R = TypeVar("R")

# No integer of the API needs more; int() of a megabyte of digits would be slow.
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)
#: How many problems of a request are told.
MAX_PROBLEMS = 100
_MAX_STEP = 200
_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE = frozenset({"false", "0", "no", "off", "f", "n"})


class Problem(str):
    """A message that also knows its machine-readable type."""

    type: str

    def __new__(cls, problem_type: str, message: str) -> "Problem":
        problem = super().__new__(cls, message)
        problem.type = problem_type
        return problem

    def format(self, *args: object, **kwargs: object) -> "Problem":
        """Itself: marshmallow formats default messages, which would leave a plain string."""
        return self


def invalid(problem_type: str, message: str) -> ValidationError:
    return ValidationError([Problem(problem_type, message)])


class LarderSchema(Schema):
    class Meta:
        unknown = EXCLUDE


class StrictField(Field):
    """Its messages know their types. `json_schema` is what the API document says of the values it takes."""

    json_schema: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error_messages = {
            "required": Problem("missing", "this field is required"),
            "null": Problem("null", "null is not allowed here"),
        }


class Integer(StrictField):
    """An integer from a JSON body."""

    json_schema: ClassVar[Mapping[str, Any]] = {"type": "integer"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        return to_integer(value)


class QueryInteger(StrictField):
    """An integer from a query string."""

    json_schema: ClassVar[Mapping[str, Any]] = {"type": "integer"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        return _integer_from_text(value)


class Boolean(StrictField):
    """A boolean from a query string or a JSON body."""

    json_schema: ClassVar[Mapping[str, Any]] = {"type": "boolean"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        word = value.strip().lower() if isinstance(value, str) else _number_word(value)
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise invalid("bool_parsing", "not a boolean: give true or false")


class Text(StrictField):
    """A string, from a query or a body."""

    json_schema: ClassVar[Mapping[str, Any]] = {"type": "string"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise invalid("string_type", "not a string")
        if not _is_unicode(value):
            raise invalid("string_unicode", "not valid Unicode: a surrogate stands alone")
        return value


class IntegerList(StrictField):
    """A list of integers as one field: a field per member costs twenty times as much."""

    json_schema: ClassVar[Mapping[str, Any]] = {"type": "array", "items": {"type": "integer"}}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[int]:
        if not isinstance(value, list):
            raise invalid("list_type", "not a list")
        members: list[int] = []
        for index, member in enumerate(value):
            try:
                members.append(member if type(member) is int else to_integer(member))
            except ValidationError as error:
                raise ValidationError({index: error.messages}) from error
        return members


def to_integer(value: Any) -> int:
    """The integer that a member of a JSON body stands for. Raises ValidationError."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        raise invalid("int_from_float", "not an integer: it has a fraction or is not finite")
    if isinstance(value, str):
        return _integer_from_text(value)
    raise invalid("int_type", "not an integer")


def takes_query(schema: type[Schema]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """The view gets the checked query parameters as keyword arguments."""
    checked = schema()

    def decorate(view: Callable[..., R]) -> Callable[..., R]:
        @wraps(view)
        def with_query(**path: Any) -> R:
            last_of_each = {name: values[-1] for name, values in request.args.lists()}
            return view(**path, **load(checked, last_of_each, "query"))

        return declare(with_query, query=schema, is_checked=declaration_of(view).is_checked or _can_refuse(checked))

    return decorate


def takes_body(
    schema: type[Schema],
    *,
    example: Any = None,
    parse: Callable[[bytes], Any] | None = None,
    max_bytes: int | None = None,
    optional: bool = False,
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """The view gets the checked members of the JSON body as keyword arguments.

    `example` is for the API document; `parse` reads the body in place of parse_json; `max_bytes` is what it may have in
    place of the application's limit; with `optional` no body, and `null`, are an object without members.
    """
    checked = schema()

    def decorate(view: Callable[..., R]) -> Callable[..., R]:
        @wraps(view)
        def with_body(**path: Any) -> R:
            if max_bytes is not None:
                request.max_content_length = max_bytes
            return view(**path, **load(checked, json_body(parse, optional=optional), "body"))

        return declare(with_body, body=Body(schema, example, required=not optional), is_checked=True)

    return decorate


def _can_refuse(query: Schema) -> bool:
    """Whether a query can have a wrong form: a text cannot, and may be missing."""
    return any(type(field) is not Text or field.required for field in query.fields.values())


def json_body(parse: Callable[[bytes], Any] | None = None, *, optional: bool = False) -> dict[str, Any]:
    """The object in the request's body, read by `parse` or parse_json; with `optional` empty without one.

    Raises Unprocessable: none, another content type, not JSON, not an object.
    """
    is_json = request.mimetype in ("", "application/json") or request.mimetype.endswith("+json")
    raw = whole_body() if is_json or optional else b""
    if optional and not raw:
        return {}
    if not raw or not is_json:
        raise Unprocessable(
            [_problem("missing", ("body",), "a JSON body is required, with Content-Type application/json")]
        )
    try:
        body = (parse or parse_json)(raw)
    except ValueError as error:
        raise Unprocessable([_problem("json_invalid", ("body",), f"the body is not JSON: {error}")]) from error
    if optional and body is None:
        return {}
    if not isinstance(body, dict):
        raise Unprocessable([_problem("object_type", ("body",), "the body must be a JSON object")])
    return body


def whole_body() -> bytes:
    """The request's body. Raises RequestEntityTooLarge, also for one without a length that reaches the limit: Werkzeug
    cuts such a body off there."""
    raw = request.get_data()
    limit = request.max_content_length
    if limit is not None and request.content_length is None and len(raw) >= limit:
        raise RequestEntityTooLarge
    return raw


def parse_json(raw: bytes, *, parse_int: Callable[[str], Any] | None = None) -> Any:
    """The value in a body; `parse_int` reads integers in place of int. Raises ValueError, also for nesting too deep to
    read."""
    try:
        return json.loads(raw, parse_int=parse_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load(schema: Schema, values: Mapping[str, Any], *place: str) -> dict[str, Any]:
    """What the schema makes of the values. Raises Unprocessable with locations that begin with `place`."""
    try:
        return schema.load(values)
    except ValidationError as error:
        raise Unprocessable(list(islice(_walk(error.messages, place), MAX_PROBLEMS))) from error


def _walk(messages: Any, loc: tuple[str | int, ...]) -> Iterator[dict[str, object]]:
    """marshmallow's nested messages as a flat list of problems."""
    if isinstance(messages, dict):
        for step, inner in messages.items():
            short = step[:_MAX_STEP] if isinstance(step, str) else step
            yield from _walk(inner, loc if step == "_schema" else (*loc, short))
        return
    for message in messages:
        yield _problem(getattr(message, "type", "value_error"), loc, str(message))


def _problem(problem_type: str, loc: tuple[str | int, ...], message: str) -> dict[str, object]:
    return {"type": problem_type, "loc": list(loc), "msg": message}


def _integer_from_text(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise invalid("int_parsing", "not an integer: give decimal digits")
    return int(text)


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON can spell what cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number_word(value: Any) -> str:
    """1 and 0 (also true and false, which are 1 and 0) as the words of a query."""
    return str(int(value)) if isinstance(value, int | float) and value in (0, 1) else ""
