"""The small HTTP server under the internal API servers."""

import http.client
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from app.http_server import THREADS, BoundedServer
from tests.waiting import wait_for

LARGE = b"x" * (1 << 20)
GET_LARGE = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = LARGE if environ["PATH_INFO"] == "/large" else b"hello"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def server() -> Iterator[BoundedServer]:
    """One that answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    one = BoundedServer(listener, hello, name="test", max_body_bytes=100, log=logging.getLogger("test"))
    one.begin()
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    yield one
    one.end()


@pytest.fixture
def address(server: BoundedServer) -> tuple[str, int]:
    """Where it answers."""
    host, port = server.bind_addr
    return host, port


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(address: tuple[str, int]) -> None:
    client = http.client.HTTPConnection(*address, timeout=5)
    try:
        for _ in range(3):
            client.request("GET", "/")
            assert client.getresponse().read() == b"hello"
    finally:
        client.close()


def test_clients_that_do_not_read_their_answers_keep_nobody_waiting(address: tuple[str, int]) -> None:
    deaf = [socket.create_connection(address) for _ in range(2 * THREADS)]
    caller = http.client.HTTPConnection(*address, timeout=20)
    try:
        for connection in deaf:
            connection.sendall(50 * GET_LARGE)
        began = time.monotonic()
        for _ in range(3):
            caller.request("GET", "/")
            assert caller.getresponse().read() == b"hello"
        assert time.monotonic() - began < 7.0
    finally:
        caller.close()
        for connection in deaf:
            connection.close()


def test_who_lets_an_answer_wait_gets_it_whole_but_no_further_ones(
    server: BoundedServer, address: tuple[str, int]
) -> None:
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(100 * GET_LARGE)
        workers = server.requests._threads
        wait_for(lambda: any(worker.conn and worker.conn.was_blocked for worker in workers), 10, "it is blocked")
        received = bytearray()
        while chunk := client.recv(1 << 20):
            received += chunk
    answers = received.count(b"200 OK")
    assert 1 <= answers < 100
    assert received.count(b"x" * len(LARGE)) == answers


def test_a_client_that_reads_gets_all_that_it_asked_for_at_once(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(3 * b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while received.count(b"hello") < 3:
            received += client.recv(65536)
    assert received.count(b"200 OK") == 3


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Host: localhost\r\nX-A: 1\r\nX-A: 2\r\n", b"200"),
        (b"Host: localhost\r\nHost: evil.example\r\n", b"400"),
        (b"Host: localhost\r\nhost: localhost\r\n", b"400"),
        (b"Host: localhost\r\n evil.example\r\n", b"400"),
        (b"Host: localhost\r\nAuthorization: Bearer a\r\nX-A: 1\r\nAuthorization: Bearer b\r\n", b"400"),
        (b"Host: localhost\r\nContent-Length: 0\r\nContent-Length: 5\r\n", b"400"),
        (b"Host: localhost\r\nOrigin: http://evil.example\r\nOrigin: http://localhost\r\n", b"400"),
        (b"Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none\r\n", b"400"),
        (b"Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec_Fetch_Site: none\r\n", b"400"),
    ],
)
def test_headers_that_a_request_has_once_are_refused_twice(
    address: tuple[str, int], head: bytes, status: bytes
) -> None:
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + head + b"\r\n")
        assert client.recv(65536).split(b" ")[1] == status


NEXT = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: -1\r\n\r\n", b"400"),
        (b"Content-Length: +1\r\n\r\n", b"400"),
        (b"Content-Length: 1_0\r\n\r\n0123456789", b"400"),
        (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"200"),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"200"),
    ],
)
def test_what_follows_a_body_whose_end_is_not_sure_is_no_request(
    address: tuple[str, int], head: bytes, status: bytes
) -> None:
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + head + NEXT)
        received = b""
        try:
            while chunk := client.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass  # what it did not read was still under way
    assert received.startswith(b"HTTP/1.1 " + status)
    assert received.count(b"HTTP/1.1 ") == 1
