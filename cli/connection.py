"""One request to the server, answered or failed within a deadline.

address                         meaning
------------------------------  -----------------------------------------------------
http://host:port, host:port     TCP; a path after it is put before every route
https://host:port               the same with TLS, the certificate is checked
unix:/path/to/socket            a Unix socket

Tokens come from the environment alone: LARDER_ADMIN_TOKEN opens everything, LARDER_READ_TOKEN what changes nothing. A
request carries one of them, no redirect is followed and no proxy is used, so a token goes where the address says.
"""

import http.client
import json
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cli.errors import BadToken, Refused, Unhealthy, Unreachable
from cli.text import duration, printable

ADMIN_TOKEN_VARIABLE = "LARDER_ADMIN_TOKEN"
READ_TOKEN_VARIABLE = "LARDER_READ_TOKEN"
CONNECT_TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 64 << 20
MAX_REASON_CHARACTERS = 500
_PIECE = 1 << 16
#: By which the server says that it does not hear from its engine.
_ENGINE_AWAY = ("engine not initialized", "server not initialized")
#: A 503 of a server that is well, and was started without what is asked for.
_NOT_THERE = "no L2 adapter configured"
#: What the server takes for one.
_TOKEN = re.compile(r"[!-~]{1,512}")


class BadAddress(ValueError):
    """The text names no server; says why, without repeating what may be a secret."""


@dataclass(frozen=True)
class Address:
    """Where the server is. `socket_path` "" means TCP."""

    shown: str
    host: str
    port: int
    base_path: str = ""
    is_tls: bool = False
    socket_path: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises BadAddress."""
        if url.startswith("unix:"):
            path = url.removeprefix("unix:")
            if not path.startswith("/"):
                raise BadAddress("unix: wants an absolute path after it, as in unix:/run/larder.sock")
            return cls(url, "localhost", 0, socket_path=path)
        full = url if "://" in url else "http://" + url
        try:
            parts = urlsplit(full)
            port = parts.port
        except ValueError as error:
            raise BadAddress(f"no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadAddress("wanted http://host:port, https://host:port or unix:/path")
        if parts.username is not None or parts.password is not None:
            raise BadAddress(f"no user or password belongs into it; a token goes into {ADMIN_TOKEN_VARIABLE}")
        if parts.query or parts.fragment:
            raise BadAddress("neither a query nor a fragment belongs into it")
        is_tls = parts.scheme == "https"
        place = full.rstrip("/")
        return cls(place, parts.hostname, port or (443 if is_tls else 80), parts.path.rstrip("/"), is_tls)


@dataclass(frozen=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    content_type: str
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Connection:
    """Asks one server; each request opens a connection of its own. To be used by one thread.

    Raises BadToken when it is made with a token that no server can have.
    """

    def __init__(self, address: Address, timeout_s: float, environ: Mapping[str, str]) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._admin_token = _token_in(environ, ADMIN_TOKEN_VARIABLE)
        self._read_token = _token_in(environ, READ_TOKEN_VARIABLE)

    def get(self, path: str, query: Mapping[str, object] | None = None, *, admin: bool = False) -> Any:
        """The JSON of a GET. Raises Refused, Unhealthy, Unreachable."""
        return self.json("GET", path, query, admin=admin)

    def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        *,
        admin: bool = True,
        patience_s: float = 0.0,
    ) -> Any:
        """The JSON that the server answers with success. Raises Refused, Unhealthy, Unreachable."""
        answer = self.ask(method, path, query, body, admin=admin, patience_s=patience_s)
        self._raise_unless_good(answer, method, path)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise Unreachable(f"{self.named(method, path)}: the answer is no JSON; is this a Larder?") from error

    def text(self, path: str, query: Mapping[str, object] | None = None, *, admin: bool = False) -> Answer:
        """The successful answer to a GET of a route that answers in plain text."""
        answer = self.ask("GET", path, query, admin=admin)
        self._raise_unless_good(answer, "GET", path)
        return answer

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        *,
        admin: bool = True,
        patience_s: float = 0.0,
    ) -> Answer:
        """Any answer at all, within the timeout and `patience_s` more. Raises Unreachable."""
        wanted = {name: value for name, value in (query or {}).items() if value is not None}
        target = self.address.base_path + quote(path, safe="/%") + (f"?{urlencode(wanted)}" if wanted else "")
        headers = {"Accept": "application/json, text/plain", "Connection": "close", **self._authorization(admin=admin)}
        if body is not None:
            headers["Content-Type"] = "application/json"
        limit_s = self.timeout_s + patience_s
        connection = self._open(method, path)
        # Socket timeouts bound each read; the whole exchange is ended by closing the socket under it.
        out_of_time = threading.Event()
        ender = threading.Timer(limit_s, _end, (connection.sock, out_of_time))
        ender.name = "larder-deadline"
        ender.start()
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            content = _read(response)
            if out_of_time.is_set():
                raise TimeoutError
            return Answer(response.status, response.headers.get("Content-Type", ""), content)
        except (OSError, http.client.HTTPException) as error:
            late = f"no answer within {limit_s:g} s" if out_of_time.is_set() else _reason_of_failure(error)
            raise self._unreachable(method, path, late) from error
        finally:
            ender.cancel()
            ender.join()
            connection.close()

    def named(self, method: str, path: str) -> str:
        """The request as messages name it: no query, since a query may hold what is nobody's business."""
        return f"{method} {printable(self.address.shown)}{printable(path)}"

    def _open(self, method: str, path: str) -> http.client.HTTPConnection:
        """Connected, with the socket's timeout set for what follows."""
        address = self.address
        connect_s = min(CONNECT_TIMEOUT_S, self.timeout_s)
        kind = http.client.HTTPSConnection if address.is_tls else http.client.HTTPConnection
        connection = kind(address.host, address.port, timeout=connect_s)
        try:
            if address.socket_path:
                connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.sock.settimeout(connect_s)
                connection.sock.connect(address.socket_path)
            else:
                connection.connect()
        except TimeoutError as error:
            connection.close()
            raise self._unreachable(method, path, f"no connection within {connect_s:g} s") from error
        except (OSError, UnicodeError) as error:
            connection.close()
            raise self._unreachable(method, path, _reason_of_failure(error)) from error
        connection.sock.settimeout(None)
        return connection

    def _authorization(self, *, admin: bool) -> dict[str, str]:
        first, second = self._read_token, self._admin_token
        token = (second or first) if admin else (first or second)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _unreachable(self, method: str, path: str, why: str) -> Unreachable:
        return Unreachable(f"{self.named(method, path)}: {why}")

    def _raise_unless_good(self, answer: Answer, method: str, path: str) -> None:
        if 200 <= answer.status < 300:
            return
        reason = reason_in(answer)
        line = f"{self.named(method, path)}: {answer.status} {reason}"
        if answer.status == 401:
            line += f"; {self._what_was_shown()}"
        if reason in _ENGINE_AWAY:
            line += self._last_sign_of_the_engine()
        if answer.status >= 500 and answer.status != 501 and reason != _NOT_THERE:
            raise Unhealthy(line)
        raise Refused(line, answer.status)

    def _what_was_shown(self) -> str:
        tokens = {ADMIN_TOKEN_VARIABLE: self._admin_token, READ_TOKEN_VARIABLE: self._read_token}
        given = [name for name, token in tokens.items() if token]
        return f"not what {' or '.join(given)} holds" if given else f"{' and '.join(tokens)} are not set"

    def _last_sign_of_the_engine(self) -> str:
        """When it was heard of last, in brackets, "" when the server does not say: one that hangs is not one that was
        never there."""
        try:
            sick = json.loads(self.ask("GET", "/periodic-threads-health", admin=False).body)["unhealthy_threads"]
            ago_s = next(entry["last_run_ago"] for entry in sick if entry["name"] == "engine")
            return " (it has not been heard of)" if ago_s is None else f" (last heard of {duration(float(ago_s))} ago)"
        except (Unreachable, ValueError, KeyError, TypeError, StopIteration, RecursionError):
            return ""


def _token_in(environ: Mapping[str, str], name: str) -> str:
    """A line end after it, as a file mounted as a secret often has one, is no part of a token. Raises BadToken."""
    token = environ.get(name, "").strip()
    if token and not _TOKEN.fullmatch(token):
        raise BadToken(f"{name}: allowed are 1 to 512 visible ASCII characters without spaces")
    return token


def reason_in(answer: Answer) -> str:
    """Why the server said no, in one printable line, whichever shape the route's errors have."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    reason: object = answer.text.strip() or "without a reason"
    if isinstance(body, dict):
        reason = next((body[name] for name in ("error", "reason", "detail") if body.get(name)), reason)
    if isinstance(reason, list):
        reason = "; ".join(_problem(entry) for entry in reason)
    line = " ".join(printable(str(reason), keep="\n\t").split())
    if line.startswith("<"):
        return "with an HTML page for a reason; is this a Larder?"
    return line if len(line) <= MAX_REASON_CHARACTERS else line[:MAX_REASON_CHARACTERS] + " ..."


def _problem(entry: object) -> str:
    """An entry of a 422."""
    if not isinstance(entry, dict):
        return str(entry)
    place = ".".join(str(step) for step in entry.get("loc", ()))
    return f"{place}: {entry.get('msg', 'not valid')}"


def _read(response: http.client.HTTPResponse) -> bytes:
    pieces, total = [], 0
    while piece := response.read(_PIECE):
        pieces.append(piece)
        total += len(piece)
        if total > MAX_ANSWER_BYTES:
            raise http.client.HTTPException(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(pieces)


def _end(connected: socket.socket, out_of_time: threading.Event) -> None:
    """Makes whoever reads from the socket, or writes to it, return. With TLS too: no farewell is sent."""
    out_of_time.set()
    try:
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
    except OSError:
        pass  # ended by itself a moment ago


def _reason_of_failure(error: Exception) -> str:
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return printable(f"no HTTP answer ({type(error).__name__}: {error})"[:200])
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text or type(error).__name__)
