"""Each route's answer and each of its errors, body by body."""

import io
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from app.autoload import load_blueprints
from app.config import AppConfig
from app.policy import collect_policies
from contract.commands import ChecksumBlocks, ClearCache
from contract.errors import (
    CommandFailed,
    ContractError,
    DeadlinePassed,
    OutcomeUnknown,
    QueueFull,
    RedisAway,
)
from contract.version import VERSION, commit_id
from tests.unit.app.memory_backend import MemoryBackend, record

CHECK = "/kvcache/check?block_ids=0,[2,5],8&chunk_size=2&instance_id=7"
NO_ENGINE = "engine not initialized"

ENGINE_AWAY_BODIES: list[tuple[str, str, dict[str, str]]] = [
    ("GET", "/healthcheck", {"status": "unhealthy", "reason": NO_ENGINE}),
    ("POST", "/clear-cache", {"status": "error", "reason": NO_ENGINE}),
    ("GET", "/status", {"error": NO_ENGINE}),
    ("GET", CHECK, {"error": NO_ENGINE}),
    ("GET", "/kvcache/check", {"error": NO_ENGINE}),
    ("GET", "/quota", {"error": NO_ENGINE}),
    ("GET", "/quota/alice", {"error": NO_ENGINE}),
    ("PUT", "/quota/alice", {"error": NO_ENGINE}),
    ("DELETE", "/quota/alice", {"error": NO_ENGINE}),
    ("POST", "/cache/checksums", {"detail": "server not initialized"}),
]


def ask(client: FlaskClient, method: str, path: str) -> TestResponse:
    return client.open(path, method=method, json={} if path == "/cache/checksums" else None)


@pytest.mark.parametrize("state", [None, "starting", "draining", "failed", "dead"])
@pytest.mark.parametrize(("method", "path", "body"), ENGINE_AWAY_BODIES)
def test_without_a_ready_engine_each_route_has_its_own_503(
    client: FlaskClient, backend: MemoryBackend, state: str | None, method: str, path: str, body: dict[str, str]
) -> None:
    backend.engine = record("ready", age_s=3.1) if state == "dead" else record(state) if state else None

    answer = ask(client, method, path)

    assert (answer.status_code, answer.get_json()) == (503, body)
    assert answer.content_type == "application/json"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RedisAway("no route"), 503, "Redis does not answer: no route"),
        (QueueFull("1000 commands", 1.2), 503, "1000 commands"),
        (DeadlinePassed("no reply"), 503, "may still take effect"),
        (OutcomeUnknown("twice"), 503, "look before you repeat it"),
        (CommandFailed("bad_request", "block 9 of 4"), 400, "block 9 of 4"),
        (CommandFailed("not_found", "instance_id 7 not registered"), 404, "instance_id 7 not registered"),
        (CommandFailed("unsupported", "layout"), 501, "layout"),
        (CommandFailed("conflict", "busy"), 409, "busy"),
        (CommandFailed("internal", "bug"), 500, "bug"),
        (CommandFailed("unheard of", "bug"), 500, "bug"),
    ],
)
def test_what_the_engine_and_the_queue_say_reaches_the_caller_in_the_shape_of_the_route(
    client: FlaskClient, backend: MemoryBackend, error: ContractError, status: int, words: str
) -> None:
    for command in ("cache.clear", "kvcache.check"):
        backend.replies[command] = error

    answers = [
        (client.get(CHECK), "error"),
        (client.post("/clear-cache"), "reason"),
        (client.post("/cache/checksums", json={"block_ids": [1], "chunk_size": 1}), "detail"),
    ]

    for answer, field in answers:
        assert answer.status_code == status
        assert words in answer.get_json()[field]
        assert answer.headers.get("Retry-After") == ("2" if isinstance(error, QueueFull) else None)


@pytest.mark.parametrize("path", ["/status", "/conf", "/quota", "/quota/alice"])
def test_a_silent_redis_is_named(client: FlaskClient, backend: MemoryBackend, path: str) -> None:
    backend.fails = RedisAway("timed out")

    answer = client.get(path)

    assert (answer.status_code, answer.get_json()) == (503, {"error": "Redis does not answer: timed out"})


def test_health_does_not_need_redis(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.fails = RedisAway("timed out")
    assert client.get("/healthcheck").status_code == 200

    backend.engine = None
    assert client.get("/healthcheck").get_json() == {"status": "unhealthy", "reason": NO_ENGINE}


def test_root_is_static(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine, backend.fails = None, RedisAway("gone")

    assert client.get("/").data == b'{"status":"ok","service":"LMCache HTTP API"}'


def test_a_healthy_engine(client: FlaskClient) -> None:
    assert client.get("/healthcheck").data == b'{"status":"healthy"}'


def test_status_is_the_published_text(client: FlaskClient, backend: MemoryBackend) -> None:
    answer = client.get("/status")

    assert answer.get_json() == backend.bodies["status"]
    assert answer.content_type == "application/json"


def test_conf_is_indented_and_knows_the_web_address(client: FlaskClient) -> None:
    answer = client.get("/conf")

    assert answer.text.startswith('{\n  "mp": {\n    "host": "127.0.0.1"')
    assert answer.get_json()["mp"]["http_host"] == "0.0.0.0"
    assert answer.get_json()["mp"]["http_port"] == 8080


def test_conf_needs_no_engine_but_one_that_once_was(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None
    assert client.get("/conf").status_code == 200

    del backend.bodies["conf"]
    answer = client.get("/conf")
    assert (answer.status_code, answer.get_json()) == (503, {"error": "configs not initialized"})


def test_conf_masks_secrets(client: FlaskClient, backend: MemoryBackend) -> None:
    adapter = {"secret_access_key": "S3CRET", "url": "redis://user:S3CRET@host/0?password=S3CRET&db=1"}
    backend.bodies["conf"] = {"mp": {"admin_token": "S3CRET"}, "storage_manager": {"adapters": [adapter]}}

    text = client.get("/conf").text

    assert "S3CRET" not in text
    assert "secret_access_key" in text
    assert "redis://user:***@host/0?password=***&db=1" in text


def test_versions_are_bare_strings(client: FlaskClient) -> None:
    assert client.get("/lmc_version").get_json() == VERSION
    assert client.get("/commit_id").get_json() == commit_id()
    assert client.get("/version").get_json() == f"{VERSION}-{commit_id() or 'NA'}"


def test_clear_takes_everything_whatever_the_body(client: FlaskClient, backend: MemoryBackend) -> None:
    answers = [client.post("/clear-cache", data=data) for data in (None, b"\xff{", b'{"force": false}')]

    assert [answer.data for answer in answers] == [b'{"status":"ok"}'] * 3
    assert backend.commands == [ClearCache(force=True)] * 3


def test_checksums(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["kvcache.check"] = {"num_chunks": 3, "chunk_checksums": ["a", "b", "c"]}

    by_query = client.get(CHECK)
    by_body = client.post("/cache/checksums", json={"block_ids": [0, 2, 3, 4, 5, 8], "chunk_size": 2, "instance_id": 7})

    assert by_query.get_json() == {
        "status": "success",
        "chunk_size": 2,
        "num_chunks": 3,
        "chunk_checksums": ["a", "b", "c"],
        "layerwise": False,
        "block_id_ranges": "0,[2,5],8",
    }
    assert by_body.get_json() == by_query.get_json()
    assert backend.commands == [ChecksumBlocks(7, (0, 2, 3, 4, 5, 8), 2, False)] * 2


def test_checksums_by_layer(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["kvcache.check"] = {"num_chunks": 1, "chunk_checksums": {"layer_0": ["a"]}}

    answer = client.get("/kvcache/check?block_ids=1&chunk_size=1&layerwise=TRUE&block_size=junk").get_json()

    assert answer["chunk_checksums"] == {"layer_0": ["a"]}
    assert answer["layerwise"] is True
    assert backend.commands == [ChecksumBlocks(0, (1,), 1, True)]


@pytest.mark.parametrize(
    ("query", "status", "error"),
    [
        ("instance_id=7&chunk_size=2", 400, "block_ids is required"),
        ("instance_id=7&chunk_size=2&block_ids=", 400, "block_ids is required"),
        ("instance_id=7&chunk_size=2&block_ids=[", 400, "Invalid block_ids format"),
        ("instance_id=7&block_ids=1", 400, "chunk_size must be positive"),
        ("instance_id=7&block_ids=1&chunk_size=0", 400, "chunk_size must be positive"),
        ("instance_id=7&block_ids=1&chunk_size=-1", 400, "chunk_size must be positive"),
        ("instance_id=8&chunk_size=0&block_ids=[", 404, "instance_id 8 not registered"),
        ("instance_id=-1&block_ids=[", 404, "instance_id -1 not registered"),
    ],
)
def test_errors_of_the_check_and_their_order(client: FlaskClient, query: str, status: int, error: str) -> None:
    answer = client.get(f"/kvcache/check?{query}")

    assert (answer.status_code, answer.get_json()) == (status, {"error": error})


def test_the_form_of_numbers_goes_before_the_engine(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None

    answer = client.get("/kvcache/check?chunk_size=x&instance_id=&layerwise=perhaps")

    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.get_json()["detail"]] == [
        ["query", "chunk_size"],
        ["query", "instance_id"],
        ["query", "layerwise"],
    ]


def test_a_server_for_engine_driven_clients_has_no_tensors(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["kvcache.check"] = CommandFailed("unsupported", "checksum not supported for this engine type")

    answer = client.get("/kvcache/check?block_ids=[")

    assert (answer.status_code, answer.get_json()) == (501, {"error": "checksum not supported for this engine type"})


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"instance_id": 7, "chunk_size": 2}, 400, "block_ids is required"),
        ({"instance_id": 7, "block_ids": [], "chunk_size": 2}, 400, "block_ids is required"),
        ({"instance_id": 7, "block_ids": [1]}, 400, "chunk_size must be positive"),
        ({"instance_id": 9, "block_ids": [1]}, 404, "instance_id 9 not registered"),
        ({"instance_id": 7, "block_ids": [1 << 64], "chunk_size": 1}, 400, "a number is beyond 64 bits"),
    ],
)
def test_errors_of_checksums(client: FlaskClient, body: dict[str, Any], status: int, detail: str) -> None:
    answer = client.post("/cache/checksums", json=body)

    assert (answer.status_code, answer.get_json()) == (status, {"detail": detail})


@pytest.mark.parametrize("path", ["/nope", "/status/", "/STATUS", "/l2/adapters/x", "/docs/"])
def test_unknown_paths(client: FlaskClient, path: str) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.get_json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/status", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/clear-cache", {"POST", "OPTIONS"}),
        ("POST", "/quota/alice", {"PUT", "GET", "DELETE", "HEAD", "OPTIONS"}),
        ("BREW", "/status", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_methods(client: FlaskClient, method: str, path: str, allowed: set[str]) -> None:
    answer = client.open(path, method=method)

    assert (answer.status_code, answer.get_json()) == (405, {"detail": "Method Not Allowed"})
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_a_body_beyond_the_limit_is_413_in_the_shape_of_the_route(client: FlaskClient) -> None:
    long = b" " * (4 * 1024 * 1024 + 1)

    quota = client.put("/quota/alice", data=long)
    checksums = client.post("/cache/checksums", data=long, content_type="application/json")

    assert (quota.status_code, quota.get_json()) == (413, {"error": "the body is larger than 4194304 bytes"})
    assert (checksums.status_code, checksums.get_json()["detail"][:8]) == (413, "the body")


def test_a_body_of_unknown_length_beyond_the_limit_is_413_too(client: FlaskClient) -> None:
    def send(path: str, length: int) -> tuple[int, bytes]:
        body = b'{"limit_gb": 1}'
        answer = client.open(
            path,
            method="PUT" if path.startswith("/quota") else "POST",
            input_stream=io.BytesIO(body + b" " * (length - len(body))),
            content_type="application/json",
            environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
        )
        return answer.status_code, answer.data

    limit = 4 * 1024 * 1024
    assert send("/quota/alice", limit - 1)[0] == 200
    assert send("/quota/alice", limit) == (413, b'{"error":"the body is larger than 4194304 bytes"}')
    assert send("/quota/alice", limit + 1)[0] == 413
    assert send("/cache/checksums", limit + 1)[0] == 413


def test_a_bug_is_500_without_its_secrets(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["cache.clear"] = RuntimeError("inner words")

    answer = client.post("/clear-cache")

    assert answer.status_code == 500
    assert answer.get_json() == {"status": "error", "reason": "internal error, the log of the web tier says more"}


def test_a_view_that_does_not_say_who_may_call_it_stops_the_start() -> None:
    app = Flask("test", static_folder=None)
    app.add_url_rule("/open", "forgotten", lambda: "")

    with pytest.raises(ValueError, match="forgotten"):
        collect_policies(app)


def test_only_the_chosen_categories_are_there(backend: MemoryBackend) -> None:
    app = create_app(AppConfig("127.0.0.1", 1), backend, ("common",))

    rules = {rule.rule for rule in app.url_map.iter_rules()}

    assert "/version" in rules
    assert "/status" not in rules
    with pytest.raises(ValueError, match="unknown route category 'nope', there are common, controller, mp, vllm"):
        load_blueprints(Flask("test"), ("nope",))
