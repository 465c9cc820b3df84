"""Who may call each route: every row of the URL map against gunicorn, as every kind of caller. No row is written here.

The servers have neither Redis nor an engine, so nothing can be changed by those who get in.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.policy import Level
from tests.e2e.route_table import Caller, Reply, Request, all_requests
from tests.stack import WebProcess

NOWHERE = "redis://127.0.0.1:1/0"
REQUESTS = all_requests()
OF_LEVEL = {level: [request for request in REQUESTS if request.level is level] for level in Level}
ADMIN, READ = "s3cret-admin", "s3cret-read"
TOKEN_PLACES = {
    "query": (f"?token={ADMIN}&access_token={ADMIN}&Authorization=Bearer%20{ADMIN}", {}),
    "cookie": ("", {"Cookie": f"token={ADMIN}; Authorization=Bearer {ADMIN}"}),
    "own header": ("", {"X_Api_Key": ADMIN, "X_Auth_Token": ADMIN, "X_Authorization": f"Bearer {ADMIN}"}),
    "proxy": ("", {"Proxy_Authorization": f"Bearer {ADMIN}"}),
    "basic": ("", {"Authorization": f"Basic {ADMIN}"}),
    "bare": ("", {"Authorization": ADMIN}),
    "two words": ("", {"Authorization": f"Bearer x {ADMIN}"}),
    "list": ("", {"Authorization": f"Bearer x, Bearer {ADMIN}"}),
    "longer": ("", {"Authorization": f"Bearer {ADMIN}x"}),
    "case": ("", {"Authorization": f"Bearer {ADMIN.upper()}"}),
}


class TokenWeb(WebProcess):
    name = "token-web"


@pytest.fixture(scope="module")
def open_web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """No token is configured."""
    with WebProcess(tmp_path_factory.mktemp("open"), NOWHERE) as web:
        yield web


@pytest.fixture(scope="module")
def token_web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """Both tokens are configured."""
    with TokenWeb(tmp_path_factory.mktemp("token"), NOWHERE, admin_token=ADMIN, read_token=READ) as web:
        yield web


def assert_refused(reply: Reply, request: Request, status: int) -> None:
    assert reply.status == status, (str(request), reply)
    if request.method != "HEAD":
        assert reply.reason(request.shape), str(request)
    assert (reply.headers.get("www-authenticate") == 'Bearer realm="larder"') == (status == 401), str(request)


def assert_let_in(reply: Reply, request: Request) -> None:
    assert reply.status not in (401, 403), (str(request), reply)


def test_the_table_has_all_there_is() -> None:
    assert len(OF_LEVEL[Level.ADMIN]) > 25
    assert {"POST /clear-cache", "DELETE /cache/objects", "GET /env", "POST /run_script"} <= set(map(str, REQUESTS))
    assert {"GET /loglevel?level=x", "HEAD /threads", "PUT /quota/alice"} <= set(map(str, OF_LEVEL[Level.ADMIN]))
    assert {"GET /status", "GET /config"} <= set(map(str, OF_LEVEL[Level.READ]))


def test_this_machine_may_all(open_web: WebProcess) -> None:
    for request in REQUESTS:
        assert_let_in(Caller(open_web).send(request), request)


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 localhost"},
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example:8080"},
        {"Host": "127.0.0.1:8080@evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"X_Forwarded_For": "127.0.0.1", "Authorization": "Bearer "},
    ],
    ids=str,
)
def test_who_is_not_of_this_machine_may_read_and_no_more(open_web: WebProcess, headers: dict[str, str]) -> None:
    stranger = Caller(open_web, **headers)

    for request in OF_LEVEL[Level.ADMIN]:
        assert_refused(stranger.send(request), request, 403)
    for request in OF_LEVEL[Level.READ] + OF_LEVEL[Level.OPEN]:
        assert_let_in(stranger.send(request), request)


def test_no_token_and_a_wrong_one(token_web: WebProcess) -> None:
    for caller in (Caller(token_web), Caller(token_web, Authorization="Bearer wrong")):
        for request in OF_LEVEL[Level.ADMIN] + OF_LEVEL[Level.READ]:
            assert_refused(caller.send(request), request, 401)
        for request in OF_LEVEL[Level.OPEN]:
            assert_let_in(caller.send(request), request)


def test_the_read_token_reads(token_web: WebProcess) -> None:
    reader = Caller(token_web, Authorization=f"Bearer {READ}")

    for request in OF_LEVEL[Level.ADMIN]:
        assert_refused(reader.send(request), request, 403)
    for request in OF_LEVEL[Level.READ] + OF_LEVEL[Level.OPEN]:
        assert_let_in(reader.send(request), request)


def test_the_admin_token_may_all_from_anywhere(token_web: WebProcess) -> None:
    admin = Caller(token_web, Authorization=f"Bearer {ADMIN}", X_Forwarded_For="192.0.2.7", Host="cache.example")

    for request in REQUESTS:
        assert_let_in(admin.send(request), request)


@pytest.mark.parametrize("place", TOKEN_PLACES)
def test_a_token_in_the_wrong_place_is_none(token_web: WebProcess, place: str) -> None:
    query, headers = TOKEN_PLACES[place]
    caller = Caller(token_web, **headers)

    for request in OF_LEVEL[Level.ADMIN]:
        path = request.path + (query.replace("?", "&") if "?" in request.path else query)
        assert_refused(caller.send(request, path=path), request, 401)


def test_a_token_in_the_body_is_none(token_web: WebProcess) -> None:
    body = f'{{"token": "{ADMIN}", "Authorization": "Bearer {ADMIN}", "keys": []}}'.encode()

    for request in OF_LEVEL[Level.ADMIN]:
        if request.body is not None:
            assert_refused(Caller(token_web).send(request, body=body), request, 401)


def test_no_secret_is_in_the_log(token_web: WebProcess, open_web: WebProcess) -> None:
    for web in (token_web, open_web):
        log = Path(web.log_path).read_text()
        assert ADMIN not in log
        assert READ not in log
        assert "Traceback" not in log, web.log_tail()
