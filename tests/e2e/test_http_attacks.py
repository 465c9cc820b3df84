"""What an attacker sends to a server that has a token, without it: paths and requests bent until something gives.

The server has no Redis: who gets in to change something gets 503, which no test here may see.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.raw_http import exchange, request
from tests.stack import WebProcess

HOST = "Host: 127.0.0.1"
SAME_ROUTE = [  # spelled in other ways, which Werkzeug undoes before it looks for the route
    "/clear-cache",
    "/clear-cache?x=1",
    "/clear%2dcache",
    "/%63lear-cache",
    "/%63%6c%65%61%72%2d%63%61%63%68%65",
    "http://127.0.0.1/clear-cache",
    "HTTP://127.0.0.1/clear-cache",
    "http://evil.example/clear-cache",
    "http://user:password@127.0.0.1/clear-cache",
    "http:///clear-cache",
    "file:///clear-cache",
]
NO_ROUTE = [
    "//clear-cache",
    "///clear-cache",
    "/./clear-cache",
    "/x/../clear-cache",
    "/%2e/clear-cache",
    "/x/%2e%2e/clear-cache",
    "/healthcheck/../clear-cache",
    "/healthcheck/..%2fclear-cache",
    "/healthcheck%2f..%2fclear-cache",
    "/%2fclear-cache",
    "%2f%2fclear-cache",
    "http://127.0.0.1//clear-cache",
    "/clear-cache/",
    "/clear-cache%2f",
    "/clear-cache%00",
    "/clear-cache%20",
    "/clear-cache;x=1",
    "/clear-cache%3fx",
    "/clear-cache%23",
    "/Clear-Cache",
    "/CLEAR-CACHE",
    "/clear%252dcache",
    "/clear-cach%c3%a9",
    "/clear-cach%ff",
    "\\clear-cache",
    "/\\clear-cache",
    "clear-cache",
    "*",
    "127.0.0.1:80",
    "//127.0.0.1/clear-cache",
]
TRICKS = {
    "length and chunks": ["Content-Length: 6", "Transfer-Encoding: chunked"],
    "chunks and length": ["Transfer-Encoding: chunked", "Content-Length: 6"],
    "two lengths": ["Content-Length: 5", "Content-Length: 6"],
    "a list of lengths": ["Content-Length: 5, 6"],
    "a signed length": ["Content-Length: +6"],
    "a negative length": ["Content-Length: -1"],
    "a hexadecimal length": ["Content-Length: 0x6"],
    "a spaced length": ["Content-Length: 1 0"],
    "a length with an underscore": ["Content_Length: 6"],
    "an enormous length": ["Content-Length: " + "9" * 5000],
    "chunked twice": ["Transfer-Encoding: chunked, chunked"],
    "chunked in two headers": ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    "chunked not last": ["Transfer-Encoding: chunked, identity"],
    "an unknown coding": ["Transfer-Encoding: xchunked"],
    "a coding with a tab": ["Transfer-Encoding:\x0bchunked"],
    "a blank before the colon": ["Transfer-Encoding : chunked"],
    "a folded header": ["X-Folded: a", " Transfer-Encoding: chunked"],
    "an empty name": [": chunked"],
    "no colon": ["Transfer-Encoding chunked"],
    "NUL in a value": ["X-Nul: a\0b"],
    "a bare CR": ["X-CR: a\rTransfer-Encoding: chunked"],
    "a bare LF": ["X-LF: a\nTransfer-Encoding: chunked"],
    "a header with an underscore": ["X_Forwarded_For: 127.0.0.1"],
    "a path prefix": ["SCRIPT_NAME: /clear-cache"],
    "a remote user": ["REMOTE_USER: admin"],
    "a remote address": ["REMOTE_ADDR: 127.0.0.1"],
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    with WebProcess(tmp_path_factory.mktemp("attacked"), "redis://127.0.0.1:1/0", admin_token="s3cret") as process:
        yield process
        assert process.http("GET", "/").status == 200, "it still serves"
        log = Path(process.log_path).read_text()
        assert "Traceback" not in log, process.log_tail()


@pytest.fixture
def port(web: WebProcess) -> int:
    return int(str(web.settings["http_port"]))


@pytest.mark.parametrize("target", SAME_ROUTE)
def test_other_spellings_of_a_route_are_the_route(port: int, target: str) -> None:
    answers = exchange(port, request("POST", target, HOST))

    assert answers.statuses == [401]
    assert b'{"status":"error","reason":"this route needs the admin token"}' in answers.raw


@pytest.mark.parametrize("target", NO_ROUTE)
def test_what_only_looks_like_a_route_is_none(port: int, target: str) -> None:
    for method in ("POST", "GET"):
        answers = exchange(port, request(method, target, HOST))
        assert answers.statuses in ([400], [404]), (method, target)
        assert answers.statuses == [400] or answers.raw.endswith(b'\r\n\r\n{"detail":"Not Found"}')


@pytest.mark.parametrize("method", ["post", "POST\t", "PO ST", "POST\0", "", "X" * 200, "CONNECT", "TRACE", "PATCH"])
def test_odd_methods_do_nothing(port: int, method: str) -> None:
    statuses = exchange(port, request(method, "/clear-cache", HOST)).statuses

    assert len(statuses) == 1
    assert statuses[0] in (400, 401, 404, 405, 501), statuses


@pytest.mark.parametrize(
    "header",
    ["X-HTTP-Method-Override: POST", "X-Method-Override: POST", "X-Original-URL: /clear-cache", "X-Rewrite-URL: /env"],
)
def test_no_header_changes_method_or_path(port: int, header: str) -> None:
    assert exchange(port, request("GET", "/healthcheck", HOST, header)).statuses == [503]
    assert exchange(port, request("GET", "/", HOST, header)).raw.endswith(
        b'{"status":"ok","service":"LMCache HTTP API"}'
    )


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_is_smuggled_behind_another_request(port: int, name: str) -> None:
    """The second request shows the token, as one of a proxy's next caller would; nobody may get its answer."""
    hidden = request("GET", "/commit_id", HOST, "Authorization: Bearer s3cret")
    head = "\r\n".join(["POST / HTTP/1.1", HOST, *TRICKS[name], "", ""]).encode("latin-1")

    answers = exchange(port, head, b"0\r\n\r\n", hidden, silence_s=5)

    assert answers.closed
    # A server that reads the body in another way than a proxy would show the second answer.
    assert len(answers.statuses) <= 1, answers.raw
    assert answers.statuses in ([], [400], [405], [413], [431], [501]), answers.raw


def test_two_authorizations_are_none(port: int) -> None:
    both = ["Authorization: Bearer wrong", "Authorization: Bearer s3cret"]

    for headers in (both, both[::-1]):
        [status] = exchange(port, request("POST", "/clear-cache", HOST, *headers)).statuses
        assert status in (400, 401)


def test_pipelined_requests_are_judged_one_by_one(port: int) -> None:
    allowed = b"POST /clear-cache HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\nContent-Length: 0\r\n\r\n"

    answers = exchange(port, allowed, request("POST", "/clear-cache", HOST))

    assert answers.statuses in ([503, 401], [503]), "the token opens its own request only"


@pytest.mark.parametrize(
    "head", [b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 100, b"\r\n" * 50]
)
def test_what_is_not_http_is_turned_away(port: int, head: bytes) -> None:
    answers = exchange(port, head, b"\r\n\r\n", silence_s=8)

    assert answers.closed
    assert all(status in (400, 505) for status in answers.statuses)


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/2.0", "HTTP/1.10", "HTTP/1.1x", "http/1.1", ""])
def test_odd_versions_open_nothing(port: int, version: str) -> None:
    statuses = exchange(port, f"POST /clear-cache {version}\r\n{HOST}\r\nConnection: close\r\n\r\n".encode()).statuses

    assert statuses[:1] in ([], [400], [401], [505])


def test_long_lines_and_many_headers_are_refused_at_once(port: int) -> None:
    for message in (
        request("GET", "/" + "a" * 9000, HOST),
        request("GET", "/?" + "a" * 100_000, HOST),
        request("GET", "/", HOST, "X-Long: " + "a" * 9000),
        request("GET", "/", HOST, "Authorization: Bearer " + "a" * 100_000),
        request("GET", "/", HOST, *(f"X-{number}: a" for number in range(200))),
    ):
        answers = exchange(port, message)
        assert answers.closed
        assert answers.statuses in ([400], [414], [431]), message[:60]


@pytest.mark.parametrize("length", [4 * 1024 * 1024 + 1, 2**31, 2**63, 10**30])
def test_a_body_that_is_announced_too_large_is_not_waited_for(port: int, length: int) -> None:
    """The one who may not is told so, and the one who may that it is too much; neither has to send it."""
    headers = [HOST, "Content-Type: application/json", f"Content-Length: {length}"]

    assert exchange(port, request("DELETE", "/l2", *headers)).statuses == [401]
    allowed = exchange(port, request("DELETE", "/l2", *headers, "Authorization: Bearer s3cret"))
    assert allowed.statuses in ([413], [400])


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}}}\r\n0\r\n\r\n",
        b"2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
        b"0\r\n" + b"X-Trailer: x\r\n" * 10_000 + b"\r\n",
    ],
)
def test_chunks_that_are_none_are_the_callers_mistake(port: int, chunks: bytes) -> None:
    headers = [HOST, "Content-Type: application/json", "Transfer-Encoding: chunked", "Authorization: Bearer s3cret"]

    assert exchange(port, request("DELETE", "/l2", *headers, body=chunks)).statuses in ([400], [422])
