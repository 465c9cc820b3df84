"""Who may call a route. Decided before anything else is looked at, from the connection and the headers alone.

Without an admin token, admin routes are for the same machine: a loopback peer that names a loopback host (a web page
that rebinds its DNS name does not), that no proxy stands in front of (its peer address would be the proxy's), and
that no foreign web page sent. Or for a Unix socket, whose file mode says who may.
Tokens come as `Authorization: Bearer TOKEN` and are compared in constant time.
"""

import hashlib
import hmac
import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from app.policy import Level
from contract.loopback import is_loopback_address, is_loopback_host

#: In the environ of a request that came over a Unix socket of our own; headers cannot set it.
ON_UNIX_SOCKET = "larder.unix_socket"

ANYBODY = "anybody"
SAME_MACHINE = "same machine"
UNIX_SOCKET = "unix socket"
READ_TOKEN = "read token"
ADMIN_TOKEN = "admin token"

# What a proxy, a load balancer or a CDN adds to a request that it passes on.
_FORWARDING_PREFIXES = (
    "HTTP_X_FORWARDED",
    "HTTP_X_ORIGINAL_",
    "HTTP_X_ENVOY_",
    "HTTP_X_APPENGINE_",
    "HTTP_X_AZURE_",
    "HTTP_CF_",
    "HTTP_FASTLY_",
)
_FORWARDING_HEADERS = frozenset(
    {
        "HTTP_FORWARDED",
        "HTTP_VIA",
        "HTTP_CLIENT_IP",
        "HTTP_TRUE_CLIENT_IP",
        "HTTP_X_CLIENT_IP",
        "HTTP_X_CLUSTER_CLIENT_IP",
        "HTTP_X_HOST",
        "HTTP_X_PROXYUSER_IP",
        "HTTP_X_REAL_IP",
    }
)


class Refused(Exception):
    """The caller may not: 401 when a token would help, else 403."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Gate:
    """Lets callers through or raises Refused. Holds only digests of the tokens; safe from any thread."""

    def __init__(self, admin_token: str, read_token: str) -> None:
        self._admin = _digest(admin_token.encode()) if admin_token else None
        self._read = _digest(read_token.encode()) if read_token else None

    def admit(self, level: Level, environ: Mapping[str, Any]) -> str:
        """How the caller was recognised. Raises Refused."""
        if level is Level.OPEN:
            return ANYBODY
        if level is Level.READ:
            return ANYBODY if self._read is None else self._admit_reader(environ)
        return _admit_same_machine(environ) if self._admin is None else self._admit_admin(environ)

    def _admit_reader(self, environ: Mapping[str, Any]) -> str:
        is_admin, is_reader = self._recognise(environ)
        if is_admin or is_reader:
            return ADMIN_TOKEN if is_admin else READ_TOKEN
        raise Refused(401, "this route needs the read or the admin token")

    def _admit_admin(self, environ: Mapping[str, Any]) -> str:
        is_admin, is_reader = self._recognise(environ)
        if is_admin:
            return ADMIN_TOKEN
        if is_reader:
            raise Refused(403, "the read token does not open this route, the admin token does")
        raise Refused(401, "this route needs the admin token")

    def _recognise(self, environ: Mapping[str, Any]) -> tuple[bool, bool]:
        """Whether the request shows the admin token, and the read token. Both are always compared."""
        presented = _digest(_bearer_token(environ.get("HTTP_AUTHORIZATION", "")))
        is_admin = self._admin is not None and hmac.compare_digest(presented, self._admin)
        is_reader = self._read is not None and hmac.compare_digest(presented, self._read)
        return is_admin, is_reader


def _admit_same_machine(environ: Mapping[str, Any]) -> str:
    reason = "this route is for the same machine as long as no admin token is configured; "
    on_unix_socket = _is_unix_socket(environ)
    if not on_unix_socket:
        if not is_loopback_address(environ.get("REMOTE_ADDR", "")):
            raise Refused(403, reason + "the connection comes from elsewhere")
        if not _names_loopback(environ.get("HTTP_HOST", "")):
            raise Refused(403, reason + "the Host header names another one")
    forwarded = next((name for name in environ if _is_forwarding(name)), None)
    if forwarded is not None:
        header = forwarded.removeprefix("HTTP_").replace("_", "-").title()
        raise Refused(403, reason + f"the header {header} says that the request was passed on")
    if _is_sent_by_foreign_page(environ):
        raise Refused(403, reason + "a web page of another origin sent this request")
    return UNIX_SOCKET if on_unix_socket else SAME_MACHINE


def _is_unix_socket(environ: Mapping[str, Any]) -> bool:
    if environ.get(ON_UNIX_SOCKET) is True:
        return True
    connection = environ.get("gunicorn.socket")
    return isinstance(connection, socket.socket) and connection.family == socket.AF_UNIX


@lru_cache(maxsize=256)
def _names_loopback(host_header: str) -> bool:
    """Whether a Host header (a name, perhaps in brackets, perhaps with a port) names this machine."""
    if host_header.startswith("["):
        name, bracket, rest = host_header[1:].partition("]")
        if not bracket or ":" not in name:
            return False
    else:
        name, colon, port = host_header.partition(":")
        rest = colon + port
    if rest and not (rest[0] == ":" and rest[1:].isascii() and rest[1:].isdigit()):
        return False
    return is_loopback_host(name)


def _is_forwarding(environ_name: str) -> bool:
    return environ_name in _FORWARDING_HEADERS or environ_name.startswith(_FORWARDING_PREFIXES)


def _is_sent_by_foreign_page(environ: Mapping[str, Any]) -> bool:
    """Browsers name the sending page in Origin, and how far away it is in Sec-Fetch-Site (also without Origin). Older
    ones fetch an image, say, with neither, but with Referer."""
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        return True
    own = f"{environ.get('wsgi.url_scheme')}://{environ.get('HTTP_HOST')}"
    origin, referer = environ.get("HTTP_ORIGIN"), environ.get("HTTP_REFERER")
    return (origin is not None and origin != own) or (referer is not None and not f"{referer}/".startswith(f"{own}/"))


def _bearer_token(authorization: str) -> bytes:
    """The token of an Authorization header, b"" without one. WSGI hands header bytes over as latin-1."""
    scheme, _, token = authorization.partition(" ")
    return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""


def _digest(token: bytes) -> bytes:
    """Fixed length, so that a comparison says nothing about the length of the secret."""
    return hashlib.sha256(token).digest()
