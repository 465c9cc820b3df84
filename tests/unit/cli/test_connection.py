"""Addresses, the reasons in error bodies, and servers that do not behave."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cli.connection import MAX_REASON_CHARACTERS, Address, Answer, BadAddress, Connection, reason_in
from cli.data_plane import NotKnown, address_in, ping
from cli.errors import Refused, Unhealthy, Unreachable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:8080", ("127.0.0.1", 8080, "", False)),
        ("localhost:99", ("localhost", 99, "", False)),
        ("http://[::1]:8080/", ("::1", 8080, "", False)),
        ("https://kv.example/larder/", ("kv.example", 443, "/larder", True)),
        ("kv", ("kv", 80, "", False)),
    ],
)
def test_an_address_is_read(url: str, place: tuple[str, int, str, bool]) -> None:
    address = Address.parse(url)

    assert (address.host, address.port, address.base_path, address.is_tls) == place


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "http://", "http://host:port", "http://h:99999", "unix:relative", "http://h/?a=b", "http://h/#x"],
)
def test_what_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(BadAddress):
        Address.parse(url)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadAddress, match="LARDER_ADMIN_TOKEN") as refused:
        Address.parse("http://admin:hush@host")

    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error":"no"}', "no"),
        (b'{"status":"error","reason":"engine not initialized"}', "engine not initialized"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["query","limit"],"msg":"not from 1"}]}', "query.limit: not from 1"),
        (b"Invalid log level: X", "Invalid log level: X"),
        (b"", "without a reason"),
        (b"[1]", "[1]"),
        (b"<!DOCTYPE HTML>\n<html><h1>Not here</h1>", "with an HTML page for a reason; is this a Larder?"),
        (b"one\ntwo\x1b[0m", "one two\\x1b[0m"),
    ],
)
def test_the_reason_is_found_in_every_shape_and_is_one_line(body: bytes, reason: str) -> None:
    assert reason_in(Answer(400, "", body)) == reason


def test_a_long_reason_is_cut() -> None:
    assert len(reason_in(Answer(500, "", b"x" * 10_000))) < MAX_REASON_CHARACTERS + 10


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[tuple[Connection, list[bytes]]]:
    """One connection is taken, its request read and answered by `answer`; gives a client and what it sent."""
    seen: list[bytes] = []

    def serve() -> None:
        taken, _ = listener.accept()
        with taken:
            taken.settimeout(10)
            seen.append(taken.recv(65536))
            try:
                answer(taken)
            except OSError:
                pass  # the client had enough

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        tokens = {"LARDER_ADMIN_TOKEN": "boss", "LARDER_READ_TOKEN": "guest"}
        try:
            yield Connection(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"), 1.0, tokens), seen
        finally:
            thread.join(20)
            assert not thread.is_alive()


def test_an_answer_without_end_is_cut_off_at_the_deadline() -> None:
    def drip(taken: socket.socket) -> None:
        taken.sendall(HEAD + b"\r\n")
        while not _readable(taken, 0.05):
            taken.sendall(b"x")

    with server(drip) as (client, _), pytest.raises(Unreachable, match="within 1 s"):
        client.text("/metrics")


def test_a_head_that_comes_byte_by_byte_is_cut_off_at_the_deadline() -> None:
    def drip(taken: socket.socket) -> None:
        taken.sendall(HEAD)
        while not _readable(taken, 0.05):
            taken.sendall(b"X")

    with server(drip) as (client, _), pytest.raises(Unreachable, match="within 1 s"):
        client.get("/status")


def test_silence_is_cut_off_at_the_deadline() -> None:
    with server(lambda taken: _until_closed(taken)) as (client, _), pytest.raises(Unreachable, match="within 1 s"):
        client.get("/status")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", Unreachable),
        (b"", Unreachable),
        (HEAD + b"Content-Length: 5\r\n\r\n<htm", Unreachable),
        (HEAD + b"Content-Length: 6\r\n\r\n<html>", Unreachable),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", Refused),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Refused),
        (b"HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n", Refused),
        (b'HTTP/1.1 503 No\r\nContent-Length: 37\r\n\r\n{"detail":"no L2 adapter configured"}', Refused),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", Unhealthy),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", Unhealthy),
    ],
)
def test_each_kind_of_failure_has_its_error(answer: bytes, error: type[Exception]) -> None:
    with server(lambda taken: taken.sendall(answer)) as (client, _), pytest.raises(error):
        client.get("/status")


@pytest.mark.parametrize(("admin", "token"), [(True, b"boss"), (False, b"guest")])
def test_a_request_shows_the_token_that_it_needs_and_no_other(admin: bool, token: bytes) -> None:
    with server(lambda taken: taken.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")) as (client, seen):
        client.get("/x", {"a": "1 &", "left out": None}, admin=admin)

    assert seen[0].startswith(b"GET /x?a=1+%26 HTTP/1.1\r\n")
    assert [line for line in seen[0].split(b"\r\n") if b"uthorization" in line] == [b"Authorization: Bearer " + token]


def test_where_the_data_plane_is_seen_from_here() -> None:
    near, far = Address.parse("localhost:8080"), Address.parse("http://kv.example")
    everywhere, loopback = {"mp": {"host": "0.0.0.0", "port": 5555}}, {"mp": {"host": "127.0.0.1", "port": 5555}}

    assert address_in(everywhere, far) == "tcp://kv.example:5555"
    assert address_in(loopback, near) == "tcp://127.0.0.1:5555"
    assert address_in({"mp": {"host": "::", "port": 1}}, Address.parse("http://[fd00::1]:1")) == "tcp://[fd00::1]:1"
    for conf, address in ((loopback, far), ({}, near)):
        with pytest.raises(NotKnown):
            address_in(conf, address)


def test_a_data_plane_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="did not answer"):
        ping("tcp://127.0.0.1:1", 0.2)
    with pytest.raises(Unreachable):
        ping("nonsense", 0.2)


def _readable(taken: socket.socket, within_s: float) -> bool:
    taken.settimeout(within_s)
    try:
        taken.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    return True


def _until_closed(taken: socket.socket) -> None:
    while taken.recv(1024):
        pass
