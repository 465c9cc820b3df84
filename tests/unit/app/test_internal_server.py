"""The server of an internal API: where it listens, what it survives, whom it lets in."""

import asyncio
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.internal_server import InternalAPIServer
from contract.log_levels import APPLIED
from tests.e2e.raw_http import exchange, request
from tests.internal_client import Manager, Side, ask, server
from tests.stack import free_port
from tests.waiting import wait_for

TOKEN = {"Authorization": "Bearer admin-secret"}


@pytest.fixture
def port() -> Iterator[int]:
    """A server on TCP without tokens."""
    number = free_port()
    running = server(port_start=number)
    running.start()
    yield number
    running.stop()


# ---- where it listens


@pytest.mark.parametrize(
    ("config", "runs"),
    [
        ({}, True),
        ({"include_index_list": ()}, True),
        ({"include_index_list": (0, 2)}, True),
        ({"include_index_list": (1,)}, False),
        ({"enabled": False}, False),
        ({"enabled": False, "include_index_list": (2,)}, False),
    ],
)
def test_it_runs_where_it_is_enabled_and_its_index_is_listed(config: dict[str, object], runs: bool) -> None:
    start = free_port() - 2
    one = server(2, port_start=start, **config)
    one.start()
    one.start()
    try:
        assert one.enabled is runs
        if runs:
            assert ask(start + 2, "GET", "/conf").json() == {"name": "server 2"}
        else:
            with pytest.raises(ConnectionRefusedError):
                ask(start + 2, "GET", "/conf")
    finally:
        one.stop()
        one.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(start + 2, "GET", "/conf")


def test_a_socket_is_made_with_its_directories_for_this_user_alone_and_removed(tmp_path: Path) -> None:
    one = server(1, socket_path_prefix=str(tmp_path / "a" / "b" / "socket"), port_start=6999)
    path = tmp_path / "a" / "b" / "socket_7000"
    one.start()
    try:
        assert one.socket_path == str(path)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
        assert ask(path, "GET", "/threads").status == 200
    finally:
        one.stop()
    assert not path.exists()
    one.start()
    assert ask(path, "GET", "/conf").json() == {"name": "server 1"}
    one.stop()


def test_a_stale_socket_goes_and_one_that_answers_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket_6999"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    one, other = (server(socket_path_prefix=str(tmp_path / "socket")) for _ in range(2))
    one.start()
    try:
        with pytest.raises(OSError, match="in use"):
            other.start()
        assert ask(path, "GET", "/conf").status == 200
        path.unlink()
        path.write_text("somebody's")
    finally:
        other.stop()
        one.stop()
    assert path.read_text() == "somebody's"
    with pytest.raises(OSError, match="in use"):
        one.start()


def test_a_port_in_use_is_an_error_of_the_start(port: int) -> None:
    other = server(port_start=port)
    with pytest.raises(OSError, match="in use"):
        other.start()
    other.stop()
    assert ask(port, "GET", "/conf").status == 200


def test_servers_of_one_process_keep_separate_state(port: int) -> None:
    number = free_port()
    second = server(0, port_start=number, admin_token="admin-secret")
    second.start()
    try:
        ask(port, "GET", "/version")
        counted = b'_count{method="GET",route="/version",status="200"} 1.0'
        assert [counted in ask(where, "GET", "/metrics").body for where in (port, number)] == [True, False]
        assert [ask(where, "GET", "/threads").status for where in (port, number)] == [200, 401]
    finally:
        second.stop()
    assert ask(port, "GET", "/conf").status == 200


def test_servers_of_one_process_share_its_log_levels(port: int) -> None:
    number, name = free_port(), "tests.shared_level"
    second = server(1, port_start=number - 1)
    second.start()
    try:
        assert ask(port, "GET", f"/loglevel?logger_name={name}&level=DEBUG").status == 200
        for where in (number, port):
            assert ask(where, "GET", f"/loglevel?logger_name={name}").body == f"{name}: DEBUG".encode()
            assert f"{name}: DEBUG\n".encode() in ask(where, "GET", "/loglevel").body
        assert ask(number, "GET", f"/loglevel?logger_name={name}.other&level=ERROR").status == 200
        assert logging.getLogger(name).level == logging.DEBUG
        # A level that this process took from elsewhere is no business of theirs either.
        APPLIED.sync(lambda: {name: "CRITICAL"})
        ask(port, "GET", "/loglevel")
        assert logging.getLogger(name).level == logging.CRITICAL
    finally:
        second.stop()
        APPLIED.sync(dict)
    assert logging.getLogger(name).level == logging.NOTSET


def test_run_serves_until_it_is_cancelled_and_returns_where_nothing_runs() -> None:
    number = free_port()

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", number)) == 0

    async def serve() -> int:
        await server(enabled=False).run()
        task = asyncio.create_task(server(port_start=number).run())
        await asyncio.to_thread(wait_for, listens, 10, "it listens")
        answer = await asyncio.to_thread(ask, number, "GET", "/conf")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return answer.status

    assert asyncio.run(serve()) == 200
    with pytest.raises(ConnectionRefusedError):
        ask(number, "GET", "/conf")


def test_all_its_threads_are_daemons(port: int) -> None:
    ours = [thread for thread in threading.enumerate() if "internal-api" in thread.name]
    assert len(ours) > 1
    assert all(thread.daemon for thread in ours)


# ---- whom it lets in


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "read_token": "read-secret"}, True),
        ({"host": "0.0.0.0", "admin_token": "admin-secret"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0", "socket_path_prefix": "socket"}, False),
    ],
)
def test_an_open_door_is_announced(
    config: dict[str, str],
    warns: bool,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    one = server(1, port_start=(start := free_port() - 1), **config)
    one.start()
    one.stop()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == warns
    assert all(f"server 1 listens on http://0.0.0.0:{start + 1} without an admin token" in line for line in said)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"X-Real-IP": "127.0.0.1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_no_caller_from_elsewhere_gets_at_an_admin_route(port: int, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/threads"), ("POST", "/conf"), ("PUT", "/freeze/enable"), ("DELETE", "/cache/clear")):
        answer = ask(port, method, path, headers=headers)
        assert answer.status == 403, (method, path, answer.body)
    refusal = ask(port, "PUT", "/freeze/enable", headers=headers).json()
    assert refusal["error"] == "freeze API refused the caller"
    assert ask(port, "GET", "/metrics", headers=headers).status == 200


def test_the_socket_serves_no_page_of_a_browser(tmp_path: Path) -> None:
    one = server(socket_path_prefix=str(tmp_path / "socket"))
    one.start()
    try:
        assert ask(one.socket_path, "GET", "/threads").status == 200
        assert ask(one.socket_path, "GET", "/threads", headers={"Origin": "https://evil.example"}).status == 403
        assert ask(one.socket_path, "GET", "/threads", headers={"X-Forwarded-For": "10.0.0.1"}).status == 403
    finally:
        one.stop()


def test_tokens_count_on_tcp_and_on_the_socket(tmp_path: Path) -> None:
    number = free_port()
    on_tcp = server(port_start=number, admin_token="admin-secret", read_token="read-secret")
    on_socket = server(
        socket_path_prefix=str(tmp_path / "socket"), admin_token="admin-secret", read_token="read-secret"
    )
    for one, where in ((on_tcp, number), (on_socket, on_socket.socket_path)):
        one.start()
        try:
            read = {"Authorization": "Bearer read-secret"}
            assert [ask(where, "GET", "/conf", headers=shown).status for shown in ({}, read, TOKEN)] == [401, 200, 200]
            assert [ask(where, "GET", "/threads", headers=shown).status for shown in ({}, read, TOKEN)] == [
                401,
                403,
                200,
            ]
            assert ask(where, "GET", "/controller/workers").status == 401
            assert ask(where, "GET", "/threads?token=admin-secret").status == 401
            assert ask(where, "GET", "/metrics").status == 200
        finally:
            one.stop()


# ---- what it survives


def test_a_head_that_is_too_long_is_refused(port: int) -> None:
    assert ask(port, "GET", "/version", headers={"X-Long": "x" * 40_000}).status == 413
    assert ask(port, "GET", "/version?" + "x" * 40_000).status in (413, 414)
    assert ask(port, "GET", "/version").status == 200


@pytest.mark.parametrize("headers", [{"Content-Length": str(5 << 20)}, {"Transfer-Encoding": "chunked"}])
def test_a_body_that_is_too_long_is_refused(port: int, headers: dict[str, str]) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        lines = [f"{name}: {value}" for name, value in {"Host": "localhost", **headers}.items()]
        raw.sendall("\r\n".join(["POST /conf HTTP/1.1", *lines, "", ""]).encode())
        try:
            if "Content-Length" not in headers:
                for _ in range(80):
                    raw.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                raw.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it stopped reading
        try:
            assert raw.recv(100).split(b" ")[1] in (b"413", b"400")
        except ConnectionResetError:
            pass
    assert ask(port, "GET", "/version").status == 200


@pytest.mark.parametrize(
    "chunks",
    [b"2;" + b"x" * (5 << 20) + b"\r\n{}\r\n0\r\n\r\n", (b"1;" + b"x" * 30_000 + b"\r\n \r\n") * 200],
)
def test_chunks_that_are_none_are_the_callers_mistake(port: int, chunks: bytes) -> None:
    answers = exchange(port, request("POST", "/conf", "Host: localhost", "Transfer-Encoding: chunked", body=chunks))

    assert answers.statuses in ([400], [413])


def test_callers_who_take_their_time_keep_nobody_waiting(port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(32)]
    try:
        for connection in slow:
            connection.sendall(b"GET /thr")
        began = time.monotonic()
        assert ask(port, "GET", "/version").status == 200
        assert time.monotonic() - began < 2.0
    finally:
        for connection in slow:
            connection.close()


def test_a_caller_who_takes_his_time_alone_is_cut_off_in_the_end(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(b"GET /thr")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_one_connection_serves_many_requests(port: int) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(20):
        connection.request("GET", "/version")
        reply = connection.getresponse()
        assert (reply.status, len(reply.read()) > 2) == (200, True)
    connection.close()


@pytest.mark.parametrize(
    "path", ["/../conf", "//conf", "/conf/", "/CONF", "/%2e%2e/conf", "/conf%00", "/", "/healthcheck"]
)
def test_only_its_own_paths_are_there(port: int, path: str) -> None:
    answer = ask(port, "GET", path)
    assert answer.status in (400, 404), answer.body


def test_scripts_are_off_unless_they_are_switched_on(port: int) -> None:
    answer = ask(port, "POST", "/run_script")
    assert (answer.status, answer.body[:26]) == (404, b"run_script is switched off")


# ---- its log


def test_requests_are_logged_where_the_level_lets_them(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def lines_of(index: int, **config: object) -> list[str]:
        one = server(index, socket_path_prefix=str(tmp_path / "s"), **config)
        one.start()
        caplog.clear()
        ask(one.socket_path, "GET", "/version%0Aforged")
        one.stop()
        return [record.message for record in caplog.records if record.name == f"app.internal_server.{index}"]

    caplog.set_level(logging.NOTSET)
    assert lines_of(1, log_level="INFO") == ["unix GET '/version\\nforged' 404 NOT FOUND"]
    assert lines_of(2, log_level="WARNING") == []
    assert lines_of(3, log_level="INFO", access_log=False) == []


# ---- its end


class Hanging(Side):
    """A process whose settings can be seen once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.gate = threading.Event(), threading.Event()

    def snapshot(self, name: str) -> object:
        self.entered.set()
        self.gate.wait(30)
        return {}


def test_an_answer_that_takes_too_long_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http_server.STOP_TIMEOUT_S", 0.5)
    number, side = free_port(), Hanging()
    one = InternalAPIServer(Manager(server(port_start=number).config, side=side))
    one.start()
    with socket.create_connection(("127.0.0.1", number), timeout=20) as caller:
        caller.sendall(b"GET /conf HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert side.entered.wait(10)
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 10
        side.gate.set()


def test_a_socket_that_systemd_gave_to_the_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    number = free_port()
    one = server(port_start=number)
    one.start()
    assert ask(number, "GET", "/conf").status == 200
    one.stop()
