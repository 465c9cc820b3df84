"""The OpenAPI 3.1 document of an application: read off its routes, their policies, schemas and declarations.

A route that says too little of itself (app/declarations.py) is in the document with what is known; `complaints` tells
what is missing, and a test asks it. Nothing is imported for the document that the application does not serve.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask
from marshmallow import Schema
from marshmallow.fields import Field
from werkzeug.routing import Rule

from app.declarations import JSON, PLAIN, Answer, Body, Declaration, declaration_of
from app.errors import POLICIES
from app.json_schema import Components
from app.policy import DETAIL, ErrorShape, Level, Policy
from contract.version import VERSION

OPENAPI = "3.1.0"
ABOUT = """\
KV-cache server for LLM inference: operations and diagnostics. KV data never travels here.

Every path may also answer 404 or 405, `{"detail": ...}`, when there is no such path or method, and 500 is always a bug
unless a route says otherwise. Levels of access: **open** routes answer anybody, **read** routes anybody until a read
token is configured, **admin** routes the same machine until an admin token is configured. Tokens travel as
`Authorization: Bearer TOKEN`."""

READ_TOKEN = "readToken"
ADMIN_TOKEN = "adminToken"
SECURITY: dict[Level, list[dict[str, list[str]]]] = {
    Level.OPEN: [],
    Level.READ: [{}, {READ_TOKEN: []}, {ADMIN_TOKEN: []}],
    Level.ADMIN: [{}, {ADMIN_TOKEN: []}],
}
SCHEMES = {
    READ_TOKEN: "The value of LARDER_READ_TOKEN. Read routes need it, or the admin token, when it is configured.",
    ADMIN_TOKEN: "The value of LARDER_ADMIN_TOKEN. Admin routes need it when it is configured, and are for callers "
    "on the same machine when it is not.",
}
BUG = "internal error, the log of the web tier says more"
REASONS = {
    401: "this route needs the admin token",
    403: "this route is for the same machine as long as no admin token is configured; the connection comes from "
    "elsewhere",
    413: "the body is larger than 4194304 bytes",
    500: BUG,
}
REDIS_AWAY = "Redis does not answer: timed out"
PHRASES = {
    200: "Done.",
    202: "Accepted.",
    400: "A value that makes no sense.",
    401: "No token, or a wrong one.",
    403: "The caller may not.",
    404: "Not there.",
    409: "In conflict with what is.",
    413: "The body is too large.",
    422: "Query or body have not the form that the route takes.",
    500: "A bug; the log says more.",
    501: "Not supported.",
    503: "The engine or Redis is away, too many wait, or the reply is late.",
    507: "No room.",
}
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="larder"'}
_PARAMETER = re.compile(r"<(?:[^:<>]+:)?([^<>]+)>")
_ROUTES = re.compile(r"^(?:GET|POST|PUT|DELETE) [^:]*: ")
_AUTOMATIC = {"HEAD", "OPTIONS"}


class Problem(TypedDict):
    """One thing that is wrong with the query or the body; `loc` walks to it."""

    type: str
    loc: list[str | int]
    msg: str


class Unprocessable(TypedDict):
    """Why query or body were not taken."""

    detail: list[Problem]


#: An Example Object: its value, and for a refusal the reason as its summary.
Example = dict[str, Any]
PROBLEM = {"detail": [{"type": "int_parsing", "loc": ["query", "limit"], "msg": "not an integer: give decimal digits"}]}


def build(app: Flask) -> dict[str, Any]:
    """The document of all routes of the app."""
    plugin = MarshmallowPlugin(schema_name_resolver=lambda schema: _schema_class(schema).__name__)
    spec = APISpec("Larder", VERSION, OPENAPI, plugins=[plugin], info={"description": ABOUT}, servers=[{"url": "/"}])
    assert plugin.converter is not None
    plugin.converter.add_attribute_function(_own_type)
    components = Components()
    for name, words in SCHEMES.items():
        spec.components.security_scheme(name, {"type": "http", "scheme": "bearer", "description": words})
    tags: dict[str, str] = {}
    for path, operations in _operations(app, components, plugin.converter, tags).items():
        spec.path(path, operations=operations)
    for name, module in sorted(tags.items()):
        spec.tag({"name": name, "description": _subject(sys.modules[module].__doc__)})
    for name, schema in components.schemas.items():
        spec.components.schema(name, schema)
    return spec.to_dict()


def complaints(app: Flask) -> list[str]:
    """What routes do not say of themselves, one line each."""
    return [
        f"{method} {rule.rule} ({view.__module__}): {what}"
        for rule, method, view in _views(app)
        for what in _missing(rule, view)
    ]


def _missing(rule: Rule, view: Callable[..., Any]) -> Iterator[str]:
    said = declaration_of(view)
    if not _sentences(view.__doc__)[0]:
        yield "the view has no docstring"
    if not said.answers:
        yield "no answer is declared, add @answers(200, ...)"
    if set(said.path) != rule.arguments:
        yield f"@in_path names {sorted(said.path)}, the path has {sorted(rule.arguments)}"
    if said.body is not None and said.body.example is None:
        yield "the body has no example"
    if said.query is not None:
        fields = said.query().fields.items()
        yield from (f"{name} of the query has no description" for name, f in fields if "description" not in f.metadata)


def _views(app: Flask) -> Iterator[tuple[Rule, str, Callable[..., Any]]]:
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        for method in sorted((rule.methods or set()) - _AUTOMATIC):
            yield rule, method, app.view_functions[rule.endpoint]


def _operations(
    app: Flask, components: Components, converter: OpenAPIConverter, tags: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Path -> method in lower case -> operation. Notes each tag with the module that it stands for."""
    paths: dict[str, dict[str, Any]] = {}
    policies: dict[str, Policy] = app.extensions[POLICIES]
    for rule, method, view in _views(app):
        route = _Route(rule, method, view, policies[rule.endpoint])
        tags.setdefault(route.tag, view.__module__)
        paths.setdefault(_PARAMETER.sub(r"{\1}", rule.rule), {})[method.lower()] = route.describe(components, converter)
    return paths


class _Route:
    """One method of one path, on its way into the document."""

    def __init__(self, rule: Rule, method: str, view: Callable[..., Any], policy: Policy) -> None:
        self._rule = rule
        self._method = method
        self._view = view
        self._policy = policy
        self._said: Declaration = declaration_of(view)
        self.tag = rule.endpoint.partition(".")[0]

    def describe(self, components: Components, converter: OpenAPIConverter) -> dict[str, Any]:
        summary, rest = _sentences(self._view.__doc__)
        level = f"Access: {self._policy.level.value}" + (
            f"; with `{self._policy.admin_with}`: admin." if self._policy.admin_with else "."
        )
        operation: dict[str, Any] = {
            "tags": [self.tag],
            "operationId": f"{self._method.lower()}_{self._rule.endpoint.replace('.', '_')}",
            "summary": summary.replace("`", ""),
            "description": "\n\n".join(filter(None, [f"{summary}. {rest}".strip(), level])),
            "security": SECURITY[self._policy.level],
            "x-access": self._policy.level.value,
        }
        if parameters := self._parameters(converter):
            operation["parameters"] = parameters
        if self._said.body is not None:
            operation["requestBody"] = _request_body(self._said.body, components)
        operation["responses"] = self._responses(components)
        return operation

    def _parameters(self, converter: OpenAPIConverter) -> list[dict[str, Any]]:
        found = []
        for name in _PARAMETER.findall(self._rule.rule):
            example, words = self._said.path.get(name, ("", ""))
            schema = {"type": "string", "minLength": 1}
            found.append(
                {"in": "path", "name": name, "required": True, "schema": schema, "description": words}
                | ({"example": example} if example else {})
            )
        if self._said.query is not None:
            found.extend(map(_without_null, converter.schema2parameters(self._said.query, location="query")))
        return found

    def _responses(self, components: Components) -> dict[str, Any]:
        by_status: dict[int, list[Answer]] = {}
        for answer in (*self._said.answers, *self._implied()):
            by_status.setdefault(answer.status, []).append(answer)
        shape = self._policy.shape
        return {str(status): _response(by_status[status], shape, components) for status in sorted(by_status)}

    def _implied(self) -> Iterator[Answer]:
        """The answers that need no word: they follow from level, path and form."""
        level = Level.ADMIN if self._policy.admin_with else self._policy.level
        if level is not Level.OPEN:
            yield Answer(401, None, REASONS[401], headers=CHALLENGE)
        if level is Level.ADMIN:
            yield Answer(403, None, REASONS[403])
        if self._rule.arguments:
            yield Answer(404, {DETAIL.field: str}, DETAIL.body("Not Found"), "No such path: a `/` is in the parameter.")
        if self._said.body is not None:
            yield Answer(413, None, REASONS[413])
        if self._said.is_checked:
            yield Answer(422, Unprocessable, PROBLEM)
        if not any(answer.status == 500 for answer in self._said.answers):
            yield Answer(500, None, REASONS[500])


def _response(alternatives: list[Answer], shape: ErrorShape, components: Components) -> dict[str, Any]:
    """The response of one status, with the schema and an example of each alternative."""
    contents: dict[str, tuple[list[dict[str, Any]], list[Example]]] = {}
    for answer in alternatives:
        content, schema = _form_of(answer, shape, components)
        schemas, examples = contents.setdefault(content, ([], []))
        if schema not in schemas:
            schemas.append(schema)
        examples.extend(example for example in _examples_of(answer, shape) if example not in examples)
    status = alternatives[0].status
    usual = PHRASES.get(status, "A refusal.")
    response: dict[str, Any] = {
        "description": " ".join(dict.fromkeys(answer.says or usual for answer in alternatives)),
        "content": {content: _media_type(*found) for content, found in contents.items()},
    }
    if headers := _headers(status, alternatives):
        response["headers"] = headers
    return response


def _media_type(schemas: list[dict[str, Any]], examples: list[Example]) -> dict[str, Any]:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if len(examples) == 1:
        return {"schema": schema, "example": examples[0]["value"]}
    return {"schema": schema, "examples": {str(number): example for number, example in enumerate(examples, 1)}}


def _form_of(answer: Answer, shape: ErrorShape, components: Components) -> tuple[str, dict[str, Any]]:
    """Content type and schema."""
    if answer.body is not None:
        return answer.content, components.schema_of(answer.body)
    if not shape.field:
        return PLAIN, {"type": "string"}
    one, other = shape.body("one", answer.status), shape.body("other", answer.status)
    members = {name: {"type": "string"} if text != other[name] else {"const": text} for name, text in one.items()}
    return JSON, {"type": "object", "properties": members, "required": list(members)}


def _examples_of(answer: Answer, shape: ErrorShape) -> list[Example]:
    if answer.body is not None:
        return [{"summary": answer.says, "value": answer.example} if answer.says else {"value": answer.example}]
    reasons = [answer.example] if answer.example is not None else [shape.engine_away, REDIS_AWAY]
    return [
        {"summary": reason, "value": shape.body(reason, answer.status) if shape.field else reason} for reason in reasons
    ]


def _headers(status: int, alternatives: list[Answer]) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    for answer in alternatives:
        for name, example in answer.headers.items():
            everywhere = all(name in other.headers for other in alternatives)
            headers[name] = {"required": everywhere, "schema": {"type": "string"}, "example": example}
    if status == 503:
        about = "Whole seconds; only when too many wait."
        headers.setdefault("Retry-After", {"description": about, "schema": {"type": "integer"}, "example": 1})
    return headers


def _request_body(body: Body, components: Components) -> dict[str, Any]:
    is_schema = isinstance(body.form, type) and issubclass(body.form, Schema)
    schema = body.form if is_schema else components.schema_of(body.form)
    content: dict[str, Any] = {"schema": schema}
    if body.example is not None:
        content["example"] = body.example
    return {"required": body.required, "content": {body.content: content}}


def _own_type(self: OpenAPIConverter, field: Field, ret: dict[str, Any]) -> dict[str, Any]:
    """The type that a field of ours declares of itself; apispec knows only marshmallow's, and takes a range of what it
    does not know for one of its own invention."""
    own: dict[str, Any] = dict(getattr(field, "json_schema", {}))
    own |= {name: ret.pop(f"x-{name}") for name in ("minimum", "maximum") if f"x-{name}" in ret}
    if field.allow_none and isinstance(own.get("type"), str):
        own["type"] = [own["type"], "null"]
    return own


def _without_null(parameter: dict[str, Any]) -> dict[str, Any]:
    """A query cannot say null: a default of null means that the parameter may be missing."""
    schema = dict(parameter["schema"])
    if isinstance(schema.get("type"), list):
        schema["type"] = next(word for word in schema["type"] if word != "null")
    if schema.get("default", ...) is None:
        del schema["default"]
    return {**parameter, "schema": schema}


def _schema_class(schema: Any) -> type[Schema]:
    return schema if isinstance(schema, type) else type(schema)


def _subject(docstring: str | None) -> str:
    """The first sentence of a module, without the routes that it begins with."""
    first, _ = _sentences(docstring)
    subject = _ROUTES.sub("", first)
    return subject[:1].upper() + subject[1:]


def _sentences(docstring: str | None) -> tuple[str, str]:
    """The first sentence without its full stop, and the rest."""
    text = " ".join(inspect.cleandoc(docstring or "").split())
    first, _, rest = text.partition(". ")
    return first.removesuffix("."), rest
