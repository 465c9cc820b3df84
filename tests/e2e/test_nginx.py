"""nginx in front, as deploy/nginx.conf sets it up: slow clients, limits, and rules of access that hold behind it."""

import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from contract.keys import Keys
from tests.conftest import start_redis
from tests.e2e.raw_http import exchange, request
from tests.e2e.route_table import Caller, all_requests
from tests.stack import ROOT, Answer, EngineProcess, Part, RedisServer, WebProcess, answers, free_port, http, need
from tests.waiting import wait_for

CONF = ROOT / "deploy" / "nginx.conf"
SLOW_CLIENTS = 32
ADMIN = "s3cret-admin"
SHOWS_ADMIN = {"Authorization": f"Bearer {ADMIN}"}
HOST = "Host: cache.example"


class Nginx(Part):
    """The file that is shipped, with ports and paths of this test; `changes`: another `rate` and `burst`."""

    name = "nginx"

    def __init__(self, directory: Path, binary: str, web: WebProcess, **changes: str) -> None:
        super().__init__(directory)
        self.binary = binary
        self.port = free_port()
        self.settings = {"http_port": self.port}
        self.url = f"http://127.0.0.1:{self.port}"
        replaced = {
            "rate=200r/s": changes.get("rate", "rate=200r/s"),
            "burst=400": changes.get("burst", "burst=400"),
            "worker_processes auto;": "worker_processes 1; daemon off;",
            "listen 8088;": f"listen 127.0.0.1:{self.port};",
            "127.0.0.1:8080": f"127.0.0.1:{web.settings['http_port']}",
            "/run/larder-nginx.pid": str(directory / "nginx.pid"),
            "/var/tmp/larder-nginx": str(directory / "tmp"),
        }
        head, mark, text = CONF.read_text().partition("worker_processes")
        text = mark + text
        for old, new in replaced.items():
            assert old in text, old
            text = text.replace(old, new)
        self.conf = directory / "nginx.conf"
        self.conf.write_text(head + text)

    def command(self) -> Sequence[str]:
        return [self.binary, "-e", "stderr", "-p", str(self.directory), "-c", str(self.conf)]

    def is_ready(self) -> bool:
        return answers(self.url)

    def http(self, method: str, path: str, body: object = None, **options: object) -> Answer:
        return http(method, self.url + path, body, **options)  # type: ignore[arg-type]  # handed on as they are


class Stack:
    def __init__(self, redis: RedisServer, web: WebProcess, nginx: Nginx) -> None:
        self.redis, self.web, self.nginx = redis, web, nginx


def nginx_binary() -> str:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    need("nginx", binary is not None, "it is not installed")
    assert binary is not None
    return binary


@contextmanager
def start_stack(directory: Path, **tokens: str) -> Iterator[Stack]:
    binary = nginx_binary()
    with (
        start_redis("redis", directory / "redis") as redis,
        EngineProcess(directory / "larder", redis.url),
        WebProcess(directory / "larder", redis.url, **tokens) as web,
        Nginx(directory / "nginx", binary, web) as nginx,
    ):
        yield Stack(redis, web, nginx)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With an admin token, as it should be behind a proxy."""
    with start_stack(tmp_path_factory.mktemp("token"), admin_token=ADMIN) as made:
        yield made


@pytest.fixture(scope="module")
def open_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """By somebody who forgot the token."""
    with start_stack(tmp_path_factory.mktemp("open")) as made:
        yield made


@pytest.fixture(scope="module", params=["stack", "open_stack"])
def any_stack(request: pytest.FixtureRequest) -> Stack:
    made: Stack = request.getfixturevalue(request.param)
    return made


def has_token(stack: Stack) -> bool:
    return "admin_token" in stack.web.settings


def drip(connections: list[socket.socket], message: bytes, at: int) -> None:
    """The next byte of each; those that were cut off meanwhile are passed over."""
    for connection in connections:
        try:
            connection.sendall(message[at : at + 1])
        except OSError:
            continue


@pytest.mark.parametrize("part", ["head", "body"])
def test_clients_that_send_a_byte_a_second_hold_up_nobody(stack: Stack, part: str) -> None:
    slow_head = b"GET /healthcheck HTTP/1.1\r\nHost: cache.example\r\nX-Slow: " + b"a" * 100
    head = b"PUT /quota/slow HTTP/1.1\r\nHost: cache.example\r\nContent-Length: 200\r\n\r\n"
    message, begin = (slow_head, 1) if part == "head" else (head + b" " * 200, len(head))
    took = []
    with ExitStack() as held:
        connections = [
            held.enter_context(socket.create_connection(("127.0.0.1", stack.nginx.port), timeout=10))
            for _ in range(SLOW_CLIENTS)
        ]
        for connection in connections:
            connection.sendall(message[:begin])
        for second in range(4):
            next_at = time.monotonic() + 1.0
            began = time.monotonic()
            answer = stack.nginx.http("GET", "/healthcheck", timeout_s=15)
            took.append(time.monotonic() - began)
            assert answer.status == 200
            wait_for(lambda at=next_at: time.monotonic() >= at, 3, "the next second")
            drip(connections, message, begin + second)

    assert max(took) < 1.0, took


def test_clients_that_do_not_read_their_answer_hold_up_nobody(stack: Stack) -> None:
    ask = request("GET", "/openapi.json", HOST)
    with ExitStack() as held:
        for _ in range(SLOW_CLIENTS):
            connection = held.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(10)
            connection.connect(("127.0.0.1", stack.nginx.port))
            connection.sendall(ask)
        began = time.monotonic()
        answer = stack.nginx.http("GET", "/healthcheck", timeout_s=15)
        took_s = time.monotonic() - began

    assert answer.status == 200
    assert took_s < 1.0


def test_what_comes_through_is_never_of_the_same_machine(any_stack: Stack) -> None:
    """Whatever a client claims; every admin route there is."""
    for claims in (
        {},
        {"X_Forwarded_For": "127.0.0.1", "Host": "127.0.0.1"},
        {"X_Forwarded_For": "", "Forwarded": "for=127.0.0.1", "X_Real_IP": "127.0.0.1", "Host": "localhost"},
        {"Connection": "close, X-Forwarded-For", "Host": "localhost"},
    ):
        caller = Caller(any_stack.nginx, **claims)  # type: ignore[arg-type]  # has the settings that are asked for
        for asked in all_requests():
            if asked.level.value == "admin":
                assert caller.send(asked).status == (401 if has_token(any_stack) else 403), (str(asked), claims)


def test_the_token_opens_and_the_audit_has_the_callers_address(stack: Stack) -> None:
    answer = stack.nginx.http("PUT", "/quota/through", {"limit_gb": 1}, headers={**SHOWS_ADMIN, "X-Forwarded-For": "x"})
    assert answer.status == 200
    client = stack.redis.client()
    try:

        def noted() -> list[dict[str, str]]:
            entries = [fields for _, fields in client.xrange(Keys("default").audit)]
            return [fields for fields in entries if fields["action"] == "PUT /quota/through"]

        [entry] = wait_for(noted, 10, "the action is in the audit stream")
    finally:
        client.close()
    assert (entry["caller"], entry["address"], entry["forwarded_for"]) == ("admin token", "127.0.0.1", "127.0.0.1")


def test_paths_are_judged_by_larder_alone(any_stack: Stack) -> None:
    refused = 401 if has_token(any_stack) else 403
    for target, status in {
        "/clear-cache": refused,
        "/%63lear-cache": refused,
        "//clear-cache": 404,
        "/x/../clear-cache": 404,
        "/clear-cache/": 404,
        "/clear-cache%2f": 404,
        "/healthcheck%2f..%2fclear-cache": 404,
        "/quota/a%2fb": 404,
    }.items():
        assert exchange(any_stack.nginx.port, request("POST", target, HOST)).statuses == [status], target


def test_nothing_is_smuggled_through(stack: Stack) -> None:
    hidden = request("GET", "/commit_id", HOST)
    for headers in (
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Transfer-Encoding : chunked"],
    ):
        head = "\r\n".join(["POST / HTTP/1.1", HOST, *headers, "", ""]).encode()
        answers_ = exchange(stack.nginx.port, head, b"0\r\n\r\n", hidden, silence_s=5)
        assert answers_.statuses in ([], [400], [501], [405]), (headers, answers_.raw)


def test_a_body_of_unknown_length_arrives_whole(stack: Stack) -> None:
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (b'{"limit_', b'gb": 2}')) + b"0\r\n\r\n"
    headers = [HOST, "Transfer-Encoding: chunked", f"Authorization: Bearer {ADMIN}"]

    reply = exchange(stack.nginx.port, request("PUT", "/quota/chunked", *headers, body=chunked))

    assert reply.statuses == [200]
    assert b'"limit_gb":2' in reply.raw


def test_too_much_is_refused(stack: Stack) -> None:
    big = exchange(stack.nginx.port, request("PUT", "/quota/a", HOST, f"Content-Length: {18 * 2**20}"), silence_s=1)
    assert big.statuses == [413]
    assert exchange(stack.nginx.port, request("GET", "/" + "a" * 9000, HOST)).statuses in ([414], [400])
    with ExitStack() as held:
        # Requests at work: their bodies are on the way.
        head = b"PUT /quota/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
        for _ in range(80):
            connection = socket.create_connection(("127.0.0.1", stack.nginx.port), timeout=10)
            held.enter_context(connection).sendall(head)
        wait_for(lambda: stack.nginx.http("GET", "/").status == 429, 5, "as many are at work as may")
        refused = stack.nginx.http("GET", "/")
    assert refused.json() == {"detail": "too many requests from this address"}
    assert refused.headers["Retry-After"] == "1"
    wait_for(lambda: stack.nginx.http("GET", "/").status == 200, 10, "there is room again")


def test_more_a_second_than_may_is_429(tmp_path: Path) -> None:
    binary = nginx_binary()
    with (
        WebProcess(tmp_path / "larder", "redis://127.0.0.1:1/0") as web,
        Nginx(tmp_path, binary, web, rate="rate=1r/s", burst="burst=5") as nginx,
    ):
        got = [nginx.http("GET", "/version") for _ in range(30)]

    refused = [answer for answer in got if answer.status == 429]
    assert {answer.status for answer in got} <= {200, 429}
    assert refused
    assert refused[0].headers["Retry-After"] == "1"


def test_while_gunicorn_is_away_the_answer_is_503(tmp_path: Path) -> None:
    with WebProcess(tmp_path / "larder", "redis://127.0.0.1:1/0") as web, Nginx(tmp_path, nginx_binary(), web) as nginx:
        web.stop()
        answer = nginx.http("GET", "/healthcheck")

    assert (answer.status, answer.json()) == (503, {"detail": "Larder does not answer"})
    assert answer.headers["Retry-After"] == "1"


def test_the_file_says_what_the_page_says() -> None:
    """Limits of the proxy must not undercut those of the server."""
    text = CONF.read_text()

    assert int(re.findall(r"client_max_body_size\s+(\d+)m", text)[0]) > 16
    assert int(re.findall(r"proxy_read_timeout\s+(\d+)s", text)[0]) > 120
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in text
