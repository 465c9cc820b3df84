"""What a route says of itself for the API document, right above its view, so that a new endpoint is one file.

    @router.put("/quota/<cache_salt>")
    @policy(Level.ADMIN, ERROR)
    @in_path(cache_salt=("alice", "The tenant; `_default` is the empty salt."))
    @reads(QuotaLimit, example={"limit_gb": 10})
    @answers(200, QuotaSet, example={"cache_salt": "alice", "limit_gb": 10.0, "status": "ok"})
    @refuses(400, "invalid JSON body", "limit_gb must be numeric")
    @refuses(503)
    def set_quota(cache_salt: str) -> dict[str, Any]:
        \"\"\"Registers or replaces a limit. The rest of the docstring is the description.\"\"\"

What need not be said: the summary and description (the docstring), query parameters (@takes_query), the body of
@takes_body but for its example, 401 and 403 (the level), 413 and 422 (query and body), and the form of a refusal
(the policy's ErrorShape). Decorators of one status add up: its bodies are alternatives, and each has its example.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from marshmallow import Schema

View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"
PLAIN = "text/plain"
MULTIPART = "multipart/form-data"

_ATTRIBUTE = "larder_declaration"


@dataclass(frozen=True, slots=True)
class Answer:
    """One form that the answer of a status has. `body` is a type that app.json_schema reads, None: the refusal of the
    route's shape, with `example` as its reason."""

    status: int
    body: Any
    example: Any
    says: str = ""
    content: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries. `form` is a marshmallow schema, or a type that app.json_schema reads."""

    form: Any
    example: Any
    content: str = JSON
    required: bool = True


@dataclass(frozen=True, slots=True)
class Declaration:
    answers: tuple[Answer, ...] = ()
    query: type[Schema] | None = None
    body: Body | None = None
    #: Name of a path parameter -> an example and a description.
    path: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: Whether the form of query or body is checked, so that 422 can be the answer.
    is_checked: bool = False


def declaration_of(view: Callable[..., Any]) -> Declaration:
    found: Declaration = getattr(view, _ATTRIBUTE, Declaration())
    return found


def declare(view: View, **changes: Any) -> View:
    """Changes what the view says of itself. For decorators; wrappers made with functools.wraps keep what was said."""
    setattr(view, _ATTRIBUTE, replace(declaration_of(view), **changes))
    return view


def answers(
    status: int,
    body: Any,
    *,
    example: Any,
    says: str = "",
    content: str = JSON,
    headers: Mapping[str, str] | None = None,
) -> Callable[[View], View]:
    """An answer with a body of this type, such as a TypedDict, `str`, or `list[int]`. `headers`: name -> example."""
    return _adds(Answer(status, body, example, says, content, headers or {}))


def refuses(status: int, *reasons: str, headers: Mapping[str, str] | None = None) -> Callable[[View], View]:
    """Refusals in the route's own shape, with examples of their reasons. 503 without any: the engine or Redis away."""
    if not reasons:
        if status != 503:
            raise ValueError(f"name a reason for {status}")
        return _adds(Answer(status, None, None))
    return _adds(*(Answer(status, None, reason, headers=headers or {}) for reason in reasons))


def reads(form: Any, *, example: Any, content: str = JSON, checked: bool = False) -> Callable[[View], View]:
    """The request's body, for a view that reads it by itself. `checked`: a wrong form is 422."""
    body = Body(form, example, content)
    return lambda view: declare(view, body=body, is_checked=checked or declaration_of(view).is_checked)


def in_path(**parameters: tuple[str, str]) -> Callable[[View], View]:
    """Each parameter of the path, with an example and a description."""
    return lambda view: declare(view, path=parameters)


def like(other: Callable[..., Any]) -> Callable[[View], View]:
    """All that another view says: this one serves the same under another name."""

    def say(view: View) -> View:
        setattr(view, _ATTRIBUTE, declaration_of(other))
        return view

    return say


def _adds(*more: Answer) -> Callable[[View], View]:
    # Decorators are applied from the last to the first; the document has them in the order of reading.
    return lambda view: declare(view, answers=(*more, *declaration_of(view).answers))
