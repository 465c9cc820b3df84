"""Every request that the URL map of the web tier allows, made from the map itself, so that new routes are in it."""

import http.client
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from app import close_app, create_app
from app.config import AppConfig
from app.declarations import declaration_of
from app.errors import POLICIES
from app.policy import ErrorShape, Level
from tests.stack import WebProcess
from tests.unit.app.memory_backend import MemoryBackend

_PARAMETER = re.compile(r"<(?:[^:<>]+:)?([^<>]+)>")


@dataclass(frozen=True)
class Request:
    """A request with the examples of its route, and what the route promises."""

    method: str
    path: str
    body: bytes | None
    content_type: str
    level: Level
    shape: ErrorShape
    #: Names of the query's parameters, and the values in the path that stand for its own.
    query: tuple[str, ...] = ()
    in_path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def all_requests() -> list[Request]:
    """One for each method of each route, and one more where a query parameter makes it one for admins."""
    app = create_app(AppConfig(http_host="0.0.0.0", http_port=8080), MemoryBackend(), ("common", "mp"))
    try:
        found = []
        for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
            policy, view = app.extensions[POLICIES][rule.endpoint], app.view_functions[rule.endpoint]
            said = declaration_of(view)
            path = _PARAMETER.sub(lambda found, said=said: said.path[found[1]][0], rule.rule)
            is_json = said.body is not None and said.body.content == "application/json"
            body = json.dumps(said.body.example).encode() if is_json and said.body else None
            content_type = "application/json" if body else ""
            names = tuple(said.query().fields) if said.query is not None else ()
            values = tuple(said.path[name][0] for name in _PARAMETER.findall(rule.rule))
            for method in sorted((rule.methods or set()) - {"OPTIONS"}):
                usual = Request(method, path, body, content_type, policy.level, policy.shape, names, values)
                found.append(usual)
                if policy.admin_with:
                    found.append(replace(usual, path=f"{path}?{policy.admin_with}=x", level=Level.ADMIN))
        return found
    finally:
        close_app(app)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def reason(self, shape: ErrorShape) -> str:
        """The reason in a refusal of this shape; AssertionError if it has another."""
        if not shape.field:
            assert self.headers["content-type"].startswith("text/plain")
            return self.body.decode()
        members = json.loads(self.body)
        assert list(members) == ([shape.field] if shape.status is None else ["status", shape.field])
        return str(members[shape.field])


class Caller:
    """Sends requests to one server, each with these headers besides its own. A header `Host` replaces the usual one."""

    def __init__(self, web: WebProcess, **headers: str) -> None:
        self._address = ("127.0.0.1", int(str(web.settings["http_port"])))
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def send(self, request: Request, *, path: str = "", body: bytes | None = None) -> Reply:
        connection = http.client.HTTPConnection(*self._address, timeout=15)
        own: dict[str, Any] = {"Content-Type": request.content_type} if request.content_type else {}
        try:
            payload = request.body if body is None else body
            connection.request(request.method, path or request.path, body=payload, headers={**own, **self._headers})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, headers, answer.read())
        finally:
            connection.close()
