"""Turns what goes wrong into the body that the route promises.

raised                         status  body
-----------------------------  ------  ------------------------------------------------------------
Refused (access.py)            401/403 the route's shape; 401 with WWW-Authenticate
RouteError                     its own the route's shape
Unprocessable                  422     {"detail": [{"type", "loc", "msg"}, ...]}
EngineAway                     503     the route's shape with its fixed text
QueueFull                      503     the route's shape, with Retry-After
other ContractError            503     the route's shape; CommandFailed: the status of its code
unknown path, wrong method     404/405 {"detail": "Not Found"}, {"detail": "Method Not Allowed"} with Allow
what `refuse_as` was told of   its own the route's shape
anything else                  500     the route's shape, and a traceback in the log
"""

import json
import logging
import math
from collections.abc import Mapping

from flask import Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from app.access import Refused
from app.policy import DETAIL, ErrorShape, Policy
from contract.errors import (
    CommandFailed,
    ContractError,
    DeadlinePassed,
    EngineAway,
    OthersAway,
    OutcomeUnknown,
    QueueFull,
    RedisAway,
)

logger = logging.getLogger(__name__)

POLICIES = "larder_policies"
STATUS_OF_CODE = {
    "bad_request": 400,
    "not_found": 404,
    "unsupported": 501,
    "conflict": 409,
    "unavailable": 503,
    "internal": 500,
}


class RouteError(Exception):
    """A view's refusal, answered in the shape of its route."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Unprocessable(Exception):
    """Query or body do not have the form that the route takes."""

    def __init__(self, problems: list[dict[str, object]]) -> None:
        super().__init__(f"{len(problems)} problems, the first: {problems[0]}")
        self.problems = problems


def install(app: Flask) -> None:
    app.register_error_handler(Refused, _refused)
    app.register_error_handler(RouteError, _route_error)
    app.register_error_handler(Unprocessable, _unprocessable)
    app.register_error_handler(ContractError, _contract_error)
    app.register_error_handler(HTTPException, _http_exception)
    app.register_error_handler(Exception, _unexpected)


def refuse_as(app: Flask, kind: type[Exception], status: int, reason: str) -> None:
    """Answers so what the HTTP server raises when a view reads a body that is the caller's mistake."""
    app.register_error_handler(kind, lambda error: _reply(status, reason))


def current_policy() -> Policy | None:
    """The policy of the route that took this request, None where no route did."""
    policies: Mapping[str, Policy] = current_app.extensions[POLICIES]
    return policies.get(request.endpoint or "")


def plain_text(text: str) -> Response:
    """A text/plain reply; what UTF-8 cannot spell is escaped."""
    return Response(text.encode(errors="backslashreplace"), content_type="text/plain; charset=utf-8")


def in_this_process_alone(error: OthersAway) -> str:
    """What is added to an answer whose promise holds here and nowhere else yet."""
    return f" in this process alone; the others follow when Redis answers again ({error})"


def json_reply(body: object, indent: int | None = None) -> Response:
    """A JSON reply, compact or indented."""
    if indent is None:
        return jsonify(body)
    return Response(json.dumps(body, indent=indent, ensure_ascii=False), mimetype="application/json")


def _current_shape() -> ErrorShape:
    route_policy = current_policy()
    return DETAIL if route_policy is None else route_policy.shape


def _reply(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    shape = _current_shape()
    reply = json_reply(shape.body(reason, status), shape.indent) if shape.field else plain_text(reason)
    reply.status_code = status
    reply.headers.update(headers or {})
    return reply


def _refused(error: Refused) -> Response:
    challenge = {"WWW-Authenticate": 'Bearer realm="larder"'} if error.status == 401 else None
    return _reply(error.status, error.reason, challenge)


def _route_error(error: RouteError) -> Response:
    return _reply(error.status, error.reason)


def _unprocessable(error: Unprocessable) -> Response:
    reply = jsonify({"detail": error.problems})
    reply.status_code = 422
    return reply


def _contract_error(error: ContractError) -> Response:
    if isinstance(error, EngineAway):
        return _reply(503, _current_shape().engine_away)
    if isinstance(error, QueueFull):
        return _reply(503, str(error), {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))})
    if isinstance(error, CommandFailed):
        return _reply(STATUS_OF_CODE[error.code], error.message)
    if isinstance(error, RedisAway):
        return _reply(503, f"Redis does not answer: {error}")
    if isinstance(error, DeadlinePassed):
        return _reply(503, f"the engine did not answer in time, the command may still take effect: {error}")
    if isinstance(error, OutcomeUnknown):
        return _reply(503, f"nobody knows whether the command took effect, look before you repeat it: {error}")
    return _unexpected(error)


def _http_exception(error: HTTPException) -> Response:
    status = error.code or 500
    reason = error.name if status in (404, 405) else error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        reason = f"the body is larger than {request.max_content_length} bytes"
    reply = _reply(status, reason)
    for name, value in error.get_headers(request.environ):
        if name.lower() not in ("content-type", "content-length"):
            reply.headers[name] = value
    return reply


def _unexpected(error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.path[:200], exc_info=error)
    return _reply(500, "internal error, the log of the web tier says more")
