"""Who may call, seen from outside: as an operator, as a stranger, as a web page, through a proxy."""

import socket
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.access import Gate, Refused
from app.policy import Level
from contract.loopback import is_loopback_address, is_loopback_host
from tests.unit.app.memory_backend import MemoryBackend

ADMIN_ROUTES = [
    ("POST", "/clear-cache", "reason"),
    ("PUT", "/quota/alice", "error"),
    ("DELETE", "/quota/alice", "error"),
    ("GET", "/kvcache/check", "error"),
    ("POST", "/cache/checksums", "detail"),
]
READ_ROUTES = ["/status", "/conf", "/quota", "/quota/alice"]
OPEN_ROUTES = ["/", "/healthcheck", "/version", "/lmc_version", "/commit_id", "/metrics"]


def call(app: Flask, method: str, path: str, *, peer: str = "127.0.0.1", **headers: str) -> TestResponse:
    named = {name.replace("_", "-"): value for name, value in {"Host": "127.0.0.1:8080", **headers}.items()}
    return app.test_client().open(path, method=method, headers=named, environ_base={"REMOTE_ADDR": peer})


@pytest.mark.parametrize(("method", "path", "field"), ADMIN_ROUTES)
def test_a_stranger_is_refused_before_anything_else_is_judged(
    make_app: Callable[..., Flask], backend: MemoryBackend, method: str, path: str, field: str
) -> None:
    backend.engine = None

    answer = call(make_app(), method, path, peer="192.0.2.7")

    assert answer.status_code == 403
    assert "same machine" in answer.get_json()[field]
    assert backend.commands == []


@pytest.mark.parametrize("path", READ_ROUTES + OPEN_ROUTES)
def test_without_a_token_anybody_may_read(make_app: Callable[..., Flask], path: str) -> None:
    assert call(make_app(), "GET", path, peer="192.0.2.7", Host="cache.example:8080").status_code == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8080"])
def test_the_same_machine_may_administer(make_app: Callable[..., Flask], peer: str, host: str) -> None:
    assert call(make_app(), "POST", "/clear-cache", peer=peer, Host=host).status_code == 200


@pytest.mark.parametrize(
    "peer", ["", "10.0.0.1", "::ffff:10.0.0.1", "128.0.0.1", "::2", "localhost", "0.0.0.0", "junk"]
)
def test_a_peer_elsewhere_or_unknown_may_not(make_app: Callable[..., Flask], peer: str) -> None:
    assert call(make_app(), "POST", "/clear-cache", peer=peer).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:127.0.0.1",
        "user@127.0.0.1",
        "127.0.0.1@evil.example",
        "127.0.0.1,evil.example",
        "127.1",
        "0177.0.0.1",
        "2130706433",
        "0.0.0.0",
        "[::1",
        "[::1]evil.example",
        "[127.0.0.1]:80",
        "localhost:80:80",
        "localhost:",
        "localhost:x",
        "localhost:٣",
        "::1",
    ],
)
def test_a_name_that_was_rebound_to_loopback_does_not_open_the_door(host: str) -> None:
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": host, "wsgi.url_scheme": "http"}

    with pytest.raises(Refused) as refused:
        Gate("", "").admit(Level.ADMIN, environ)

    assert refused.value.status == 403


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Anything",
        "X-Real-IP",
        "X-Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Envoy-External-Address",
        "x-original-forwarded-for",
    ],
)
def test_what_a_proxy_passed_on_is_not_from_this_machine(make_app: Callable[..., Flask], header: str) -> None:
    answer = call(make_app(), "POST", "/clear-cache", **{header: "127.0.0.1"})

    assert answer.status_code == 403
    assert answer.get_json()["status"] == "error"
    assert header.lower() in answer.get_json()["reason"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Referer": "http://evil.example/"},
        {"Referer": "http://127.0.0.1:8080.evil.example/"},
        {"Referer": "http://127.0.0.1:80801/docs"},
        {"Referer": "http://127.0.0.1:8080", "Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://127.0.0.1:8080"},
        {"Origin": "http://127.0.0.1:8080.evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_cannot_use_the_browser_of_this_machine(
    make_app: Callable[..., Flask], headers: dict[str, str]
) -> None:
    assert call(make_app(), "PUT", "/quota/alice", **headers).status_code == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_page_may(make_app: Callable[..., Flask], site: str) -> None:
    page = {"Origin": "http://127.0.0.1:8080", "Referer": "http://127.0.0.1:8080/docs"}

    assert call(make_app(), "POST", "/clear-cache", Sec_Fetch_Site=site, **page).status_code == 200


def test_a_unix_socket_needs_no_host_but_passes_nothing_on() -> None:
    near, far = socket.socketpair(socket.AF_UNIX)
    environ = {"REMOTE_ADDR": "", "HTTP_HOST": "anything", "gunicorn.socket": near, "wsgi.url_scheme": "http"}
    gate = Gate("", "")

    with near, far:
        assert gate.admit(Level.ADMIN, environ) == "unix socket"
        with pytest.raises(Refused):
            gate.admit(Level.ADMIN, {**environ, "HTTP_X_FORWARDED_FOR": "192.0.2.7"})
        with pytest.raises(Refused):
            gate.admit(Level.ADMIN, {**environ, "HTTP_ORIGIN": "http://evil.example"})


def test_an_admin_token_closes_the_local_door_too(make_app: Callable[..., Flask]) -> None:
    app = make_app(admin_token="s3cret")

    refused = call(app, "POST", "/clear-cache")

    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert call(app, "POST", "/clear-cache", peer="192.0.2.7", Authorization="Bearer s3cret").status_code == 200
    assert call(app, "POST", "/clear-cache", peer="192.0.2.7", Authorization="bearer  s3cret ").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer S3CRET", "Bearer é"],
)
def test_a_wrong_token_is_401(make_app: Callable[..., Flask], authorization: str) -> None:
    app = make_app(admin_token="s3cret", read_token="reader")

    assert call(app, "POST", "/clear-cache", Authorization=authorization).status_code == 401
    assert call(app, "GET", "/status", Authorization=authorization).status_code == 401


def test_the_read_token_reads_and_does_not_administer(make_app: Callable[..., Flask]) -> None:
    app = make_app(admin_token="s3cret", read_token="reader")

    assert call(app, "GET", "/status", Authorization="Bearer reader").status_code == 200
    assert call(app, "GET", "/status", Authorization="Bearer s3cret").status_code == 200
    assert call(app, "POST", "/clear-cache", Authorization="Bearer reader").status_code == 403


def test_only_an_admin_token_leaves_reading_open(make_app: Callable[..., Flask]) -> None:
    assert call(make_app(admin_token="s3cret"), "GET", "/status", peer="192.0.2.7").status_code == 200


def test_only_a_read_token_leaves_administration_to_this_machine(make_app: Callable[..., Flask]) -> None:
    app = make_app(read_token="reader")

    assert call(app, "POST", "/clear-cache").status_code == 200
    assert call(app, "POST", "/clear-cache", peer="192.0.2.7", Authorization="Bearer reader").status_code == 403


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_probes_and_scrapes_need_no_token(make_app: Callable[..., Flask], path: str) -> None:
    assert call(make_app(admin_token="a", read_token="b"), "GET", path, peer="192.0.2.7").status_code == 200


def test_other_methods_of_an_admin_path_open_nothing(make_app: Callable[..., Flask], backend: MemoryBackend) -> None:
    app = make_app()

    assert call(app, "OPTIONS", "/clear-cache", peer="192.0.2.7").status_code == 403
    assert call(app, "HEAD", "/kvcache/check", peer="192.0.2.7").status_code == 403
    for path in ("//clear-cache", "/clear-cache/", "/Clear-Cache", "/./clear-cache", "/clear-cache%00"):
        assert call(app, "POST", path, peer="192.0.2.7").status_code == 404
    assert backend.commands == []


def test_refusals_tell_nothing_about_what_is_there(make_app: Callable[..., Flask]) -> None:
    app = make_app(read_token="reader")

    bodies = {call(app, "GET", path).data for path in ("/quota/alice", "/quota/nobody", "/quota")}

    assert len(bodies) == 1


def test_loopback_names() -> None:
    assert is_loopback_host("localhost")
    assert is_loopback_host("::1")
    assert not is_loopback_host("0.0.0.0")
    assert not is_loopback_address("localhost")


def test_admin_actions_are_noted_and_refused_ones_are_not(
    client: FlaskClient, make_app: Callable[..., Flask], backend: MemoryBackend
) -> None:
    client.delete("/quota/nobody?why=x&token=hunter2")
    client.get("/status")
    client.post("/clear-cache", headers={"X-Forwarded-For": "192.0.2.7"})
    client.application.extensions["larder_audit"].close()

    assert backend.audit == [
        {
            "action": "DELETE /quota/nobody",
            "query": "why=x&token=***",
            "caller": "same machine",
            "address": "127.0.0.1",
            "status": "200",
        }
    ]
