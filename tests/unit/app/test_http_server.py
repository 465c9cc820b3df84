"""The small HTTP server under the internal API servers."""

import http.client
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

from app.http_server import BoundedServer


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = BoundedServer(listener, hello, name="test", max_body_bytes=100, log=logging.getLogger("test"))
    server.begin()
    client = http.client.HTTPConnection(*listener.getsockname()[:2], timeout=5)
    try:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        for _ in range(3):
            client.request("GET", "/")
            assert client.getresponse().read() == b"hello"
    finally:
        client.close()
        server.end()
