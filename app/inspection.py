"""What the routes that look into one process have in common: their error bodies, and the facts that they show.

Bodies are indented JSON. An error has `error`, which route it is about and what kind of failure, and `message`, why.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Response

from app.backend import current_backend
from app.declarations import refuses
from app.errors import json_reply
from app.policy import ErrorShape
from contract.errors import EngineAway

INDENT = 2

View = TypeVar("View", bound=Callable[..., Any])

_TITLES = {
    401: "{} API needs a token",
    403: "{} API refused the caller",
    404: "{} API found nothing",
    501: "{} API is not supported",
    503: "{} API is unavailable",
}


@dataclass(frozen=True, slots=True)
class InspectionShape(ErrorShape):
    """`route` names it in the field `error`."""

    route: str = ""

    def body(self, reason: str, status: int = 500) -> dict[str, str]:
        title = _TITLES.get(status, "{} API refused the request" if status < 500 else "{} API failed")
        return {"error": title.format(self.route), "message": reason}


def asks_the_engine(view: View) -> View:
    """Declares the refusals of what only a ready engine answers: a process with a cache client alone has none."""
    return refuses(501, "this process has no engine, ask the engine's own server")(refuses(503)(view))


def shape_of(route: str) -> InspectionShape:
    """The error bodies of a route."""
    return InspectionShape("error", engine_away="LMCache engine not configured.", indent=INDENT, route=route)


def shown(body: object, status: int = 200) -> Response:
    """The reply with this body."""
    reply = json_reply(body, INDENT)
    reply.status_code = status
    return reply


def fact(name: str) -> Any:
    """What the process says under a name of contract/process_facts.py. Raises EngineAway where there is nothing yet."""
    value = fact_or_none(name)
    if value is None:
        raise EngineAway("missing")
    return value


def fact_or_none(name: str) -> Any:
    """The same, with None where there is nothing."""
    text = current_backend().last_text(name)
    return None if text is None else json.loads(text)
