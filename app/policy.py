"""What a route promises about itself: who may call it, and how its errors look.

Every view carries a `Policy`; create_app refuses a view without one, so that no route is open by oversight.

level   without a token configured      with LARDER_ADMIN_TOKEN / LARDER_READ_TOKEN
------  ------------------------------  -------------------------------------------
OPEN    anybody                         anybody
READ    anybody                         read or admin token (only an admin token set: still open)
ADMIN   the same machine (access.py)    admin token

A view that reads without some query parameter and changes something with it is READ, and ADMIN with that parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from flask import Flask, Request

View = TypeVar("View", bound=Callable[..., Any])

_ATTRIBUTE = "larder_policy"


class Level(Enum):
    OPEN = "open"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How a route gives its reason, in a JSON body or as text, and its words for an engine that is not there."""

    #: Of the JSON body; "" for plain text.
    field: str
    status: str | None = None
    engine_away: str = "engine not initialized"
    #: How bodies are indented, None for compact ones.
    indent: int | None = None

    def body(self, reason: str, status: int = 500) -> dict[str, str]:
        """What is answered with this HTTP status."""
        if self.status is None:
            return {self.field: reason}
        return {"status": self.status, self.field: reason}


TEXT = ErrorShape("")
ERROR = ErrorShape("error")
DETAIL = ErrorShape("detail")
#: Of routes under the names that clients of LMCache 0.5.1 and later send.
NEWER = ErrorShape("detail", engine_away="server not initialized")


@dataclass(frozen=True, slots=True)
class Policy:
    level: Level
    shape: ErrorShape
    admin_with: str = ""

    def level_for(self, request: Request) -> Level:
        """The level of this request; an empty parameter is none."""
        return Level.ADMIN if self.admin_with and any(request.args.getlist(self.admin_with)) else self.level


def policy(level: Level, shape: ErrorShape, *, admin_with: str = "") -> Callable[[View], View]:
    """Declares the policy of a view. `admin_with`: the query parameter that makes a request one for admins."""

    def declare(view: View) -> View:
        setattr(view, _ATTRIBUTE, Policy(level, shape, admin_with))
        return view

    return declare


def collect_policies(app: Flask) -> dict[str, Policy]:
    """Endpoint -> policy, for every route of the app. Raises ValueError for a view that declares none."""
    policies = {}
    for endpoint, view in app.view_functions.items():
        declared = getattr(view, _ATTRIBUTE, None)
        if declared is None:
            raise ValueError(
                f"the view {endpoint} in {view.__module__} does not say who may call it; decorate it with @policy"
            )
        policies[endpoint] = declared
    return policies
