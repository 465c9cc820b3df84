"""Addresses: may somebody listen there, and does the web server answer there. A host may be `unix:/path`."""

import socket

from workers.errors import CannotStart

UNIX_PREFIX = "unix:"
#: Where to reach, from this machine, a server that listens on all addresses.
NEAR = {"0.0.0.0": "127.0.0.1", "::": "::1"}
ANSWER_TIMEOUT_S = 1.0


def check_port(setting: str, host: str, port: int) -> None:
    """Raises CannotStart, naming the setting, when nobody could listen there now. Port 0 is always free."""
    if port == 0 or host.startswith(UNIX_PREFIX):
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotStart(f"{setting}: got {port}, but {host}:{port} cannot be listened on: {reason}") from error


def answers_http(host: str, port: int) -> bool:
    """Whether a web server answers a request for `/`, with whatever status."""
    try:
        with _connect(host, port) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def _connect(host: str, port: int) -> socket.socket:
    if not host.startswith(UNIX_PREFIX):
        return socket.create_connection((NEAR.get(host, host), port), ANSWER_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.connect(host.removeprefix(UNIX_PREFIX))
    except OSError:
        connection.close()
        raise
    return connection


def http_url(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens on `host`."""
    if host.startswith(UNIX_PREFIX):
        return host
    near = NEAR.get(host, host)
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
