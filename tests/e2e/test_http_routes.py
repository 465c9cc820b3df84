"""The HTTP API of a real stack: gunicorn with two workers, Redis, the engine."""

import http.client
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from contract.keys import Keys
from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.stack import STOP_TIMEOUT_S, EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for


class Stack:
    def __init__(self, redis: RedisServer, engine: EngineProcess, web: WebProcess) -> None:
        self.redis, self.engine, self.web = redis, engine, web
        self.http = web.http


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("http")
    with (
        start_redis("redis", directory / "redis") as redis,
        EngineProcess(directory / "larder", redis.url, eviction_policy="IsolatedLRU") as engine,
        WebProcess(directory / "larder", redis.url, eviction_policy="IsolatedLRU") as web,
    ):
        wait_for(lambda: len(psutil.Process(web.pid).children()) == 2, 10, "two workers")
        yield Stack(redis, engine, web)


def test_the_fixed_keys_of_status(stack: Stack) -> None:
    answer = stack.http("GET", "/status")

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    kinds = {
        "is_healthy": bool,
        "engine_type": str,
        "chunk_size": int,
        "hash_algorithm": str,
        "active_sessions": int,
        "frozen": bool,
        "hot_cache": bool,
        "registered_gpu_ids": list,
        "cache_context_meta": dict,
        "active_prefetch_jobs": int,
        "storage_manager": dict,
    }
    status = answer.json()
    assert {name: type(status[name]) for name in kinds} == kinds
    assert status["is_healthy"] is status["storage_manager"]["is_healthy"] is True


def test_conf_of_a_real_engine(stack: Stack) -> None:
    answer = stack.http("GET", "/conf")

    conf = answer.json()
    assert answer.body.startswith(b'{\n  "')
    assert {"mp", "storage_manager", "observability"} <= conf.keys()
    assert conf["mp"]["http_port"] == stack.web.settings["http_port"]
    assert conf["storage_manager"]["eviction_config"]["eviction_policy"] == "IsolatedLRU"


def test_put_then_get_agrees_whichever_worker_answers(stack: Stack) -> None:
    for limit_gb in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert stack.http("PUT", "/quota/agree", {"limit_gb": limit_gb}).status == 200
        assert {stack.http("GET", "/quota/agree").json()["limit_gb"] for _ in range(6)} == {limit_gb}
        assert {stack.http("GET", "/quota").json()["users"]["agree"]["limit_gb"] for _ in range(6)} == {limit_gb}
    assert stack.http("DELETE", "/quota/agree").json()["status"] == "removed"
    assert {stack.http("GET", "/quota/agree").json()["exists"] for _ in range(6)} == {False}
    assert stack.http("DELETE", "/quota/agree").json()["status"] == "not_found"


def test_the_empty_salt_over_the_whole_way(stack: Stack) -> None:
    stack.http("PUT", "/quota/_default", {"limit_gb": 0.5})

    assert stack.http("GET", "/quota/_default").json()["limit_gb"] == 0.5
    assert stack.http("DELETE", "/quota/_default").json() == {"cache_salt": "_default", "status": "removed"}


def test_a_clear_is_seen_at_once(stack: Stack) -> None:
    stack.http("PUT", "/quota/_default", {"limit_gb": 0.01})
    address = f"tcp://127.0.0.1:{stack.engine.port}"
    with SharedKV([(2, 32, 16, 1, 8)]) as memory, LarderClient(address, "http/model") as client:
        client.register_shared(memory)
        client.store(list(range(256)), [list(range(16))], "request-1")
        wait_for(lambda: l1_objects(stack) == 1, 10, "the stored object is shown")
        usage = wait_for(lambda: stack.http("GET", "/quota/_default").json()["l1_usage_gb"], 10, "usage is shown")

        answer = stack.http("POST", "/clear-cache")

        assert answer.body == b'{"status":"ok"}'
        assert usage > 0
        assert {l1_objects(stack) for _ in range(6)} == {0}
        wait_for(lambda: not stack.http("GET", "/quota/_default").json()["l1_usage_gb"], 10, "usage goes")
        assert stack.http("GET", "/status").json()["registered_gpu_ids"] == [client.instance_id]
    stack.http("DELETE", "/quota/_default")


def l1_objects(stack: Stack) -> int:
    return int(stack.http("GET", "/status").json()["storage_manager"]["l1_manager"]["total_object_count"])


def test_checksums_of_registered_memory_in_both_forms(stack: Stack) -> None:
    address = f"tcp://127.0.0.1:{stack.engine.port}"
    with SharedKV([(2, 32, 16, 1, 8)]) as memory, LarderClient(address, "http/check") as client:
        client.register_shared(memory)
        query = f"/kvcache/check?instance_id={client.instance_id}&chunk_size=2&block_ids="
        body = {"instance_id": client.instance_id, "block_ids": [0, 2, 3, 4], "chunk_size": 2}

        by_query = stack.http("GET", query + "0,[2,4]")
        by_body = stack.http("POST", "/cache/checksums", body)
        by_layer = stack.http("GET", query + "0,1&layerwise=true")

        assert by_query.status == 200
        assert by_query.json() == by_body.json()
        assert by_query.json()["num_chunks"] == len(by_query.json()["chunk_checksums"]) == 2
        assert by_query.json()["block_id_ranges"] == "0,[2,4]"
        assert list(by_layer.json()["chunk_checksums"]) == ["layer_0"]
        assert stack.http("GET", query + "99").status == 400
        assert stack.http("GET", query + "[").status == 400


def test_checksums_of_nobody(stack: Stack) -> None:
    for query in ("block_ids=0&chunk_size=1", "block_ids=[&chunk_size=0"):
        answer = stack.http("GET", f"/kvcache/check?instance_id=424242&{query}")
        assert (answer.status, answer.json()) == (404, {"error": "instance_id 424242 not registered"})
    answer = stack.http("POST", "/cache/checksums", {"instance_id": 424242, "block_ids": [0], "chunk_size": 1})
    assert (answer.status, answer.json()) == (404, {"detail": "instance_id 424242 not registered"})


def test_error_bodies_over_the_wire(stack: Stack) -> None:
    assert stack.http("GET", "/nope").json() == {"detail": "Not Found"}
    wrong = stack.http("POST", "/status")
    assert (wrong.status, wrong.json()) == (405, {"detail": "Method Not Allowed"})
    assert "GET" in wrong.headers["Allow"]
    invalid = stack.http("GET", "/kvcache/check?chunk_size=x")
    assert invalid.status == 422
    assert invalid.json()["detail"][0]["loc"] == ["query", "chunk_size"]
    assert stack.http("PUT", "/quota/alice", {"limit_gb": -1}).json() == {"error": "limit_gb must be non-negative"}


def raw(stack: Stack, *lines: str) -> int:
    """The status that exactly these header lines get."""
    port = int(str(stack.web.settings["http_port"]))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        with answer:
            return answer.status


@pytest.mark.parametrize(
    "headers",
    [
        ("Host: evil.example",),
        ("Host: 127.0.0.1", "X-Forwarded-For: 127.0.0.1"),
        ("Host: 127.0.0.1", "X_Forwarded_For: 127.0.0.1"),
        ("Host: 127.0.0.1", "X-Forwarded-Proto: https"),
        ("Host: 127.0.0.1", "Origin: http://evil.example"),
        ("Host: 127.0.0.1", "Host: evil.example"),
        ("Host: evil.example", "X-Forwarded-Host: 127.0.0.1"),
        ("Host: 127.0.0.1", "SCRIPT_NAME: /clear-cache"),
    ],
)
def test_gunicorn_lets_no_header_open_an_admin_route(stack: Stack, headers: Sequence[str]) -> None:
    assert raw(stack, "POST /clear-cache HTTP/1.1", *headers) in (400, 403)


def test_an_absolute_target_names_its_host(stack: Stack) -> None:
    assert raw(stack, "POST http://evil.example/clear-cache HTTP/1.1", "Host: evil.example") == 403


def test_admin_actions_are_found_in_redis(stack: Stack) -> None:
    client = stack.redis.client()
    try:
        stack.http("DELETE", "/quota/audited")

        def actions() -> list[str]:
            return [fields["action"] for _, fields in client.xrevrange(Keys("default").audit, count=20)]

        wait_for(lambda: "DELETE /quota/audited" in actions(), 10, "the action is in the audit stream")
    finally:
        client.close()


class TokenWeb(WebProcess):
    name = "token-web"


class SocketWeb(WebProcess):
    """On a Unix socket; ready when the socket is there."""

    name = "socket-web"

    @property
    def socket_path(self) -> Path:
        return self.directory / "larder.sock"

    def command(self) -> Sequence[str]:
        return [*super().command(), "--bind", f"unix:{self.socket_path}"]

    def is_ready(self) -> bool:
        return self.socket_path.exists() and "Booting worker" in self.log_tail()

    def ask(self, method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket_path))
        try:
            connection.request(method, path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


def test_tokens_from_the_environment(tmp_path: Path) -> None:
    with TokenWeb(tmp_path, "redis://127.0.0.1:1/0", admin_token="s3cret", read_token="reader") as web:
        assert web.http("GET", "/").status == 200
        assert web.http("GET", "/status").status == 401
        assert web.http("POST", "/clear-cache").status == 401
        assert web.http("POST", "/clear-cache", headers={"Authorization": "Bearer reader"}).status == 403
        # Let in, it finds no Redis.
        assert web.http("POST", "/clear-cache", headers={"Authorization": "Bearer s3cret"}).status == 503
        assert "s3cret" not in web.log_tail()


def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    with SocketWeb(tmp_path, "redis://127.0.0.1:1/0") as web:
        mode = stat.S_IMODE(os.stat(web.socket_path).st_mode)

        assert oct(mode) == "0o600"
        assert web.ask("POST", "/clear-cache") == 503
        assert web.ask("POST", "/clear-cache", **{"X-Forwarded-For": "192.0.2.7"}) == 403


def test_an_open_door_is_announced(tmp_path: Path) -> None:
    with WebProcess(tmp_path / "open", "redis://127.0.0.1:1/0", http_host="0.0.0.0") as web:
        assert "LARDER_ADMIN_TOKEN is not set" in web.log_tail()
    with WebProcess(tmp_path / "closed", "redis://127.0.0.1:1/0", http_host="0.0.0.0", admin_token="x") as web:
        assert "LARDER_ADMIN_TOKEN is not set" not in web.log_tail()


def test_a_bad_setting_stops_the_start(tmp_path: Path) -> None:
    web = WebProcess(tmp_path, "redis://127.0.0.1:1/0", web_threads=1)
    web.launch()
    assert web.process is not None

    assert web.process.wait(STOP_TIMEOUT_S) != 0
    assert "web_threads" in web.log_tail()
    assert "Traceback" not in web.log_tail()


def test_nothing_of_torch_or_the_engine_is_in_the_web_tier() -> None:
    code = (
        "import json, sys, wsgi\n"
        "packages = {name.split('.')[0] for name in sys.modules}\n"
        "print(json.dumps(sorted(packages & {'torch', 'zmq', 'engine', 'workers'})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )

    assert json.loads(done.stdout) == []


def test_the_commit_is_read_when_the_application_is_loaded(tmp_path: Path) -> None:
    program = (
        "import os; os.environ['LARDER_COMMIT_ID'] = 'earlier'; import wsgi; from contract.version import commit_id; "
        "os.environ['LARDER_COMMIT_ID'] = 'later'; print(commit_id()); from app import close_app; close_app(wsgi.app)"
    )
    environ = {**os.environ, "LARDER_DATA_DIR": str(tmp_path)}

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)

    assert ran.stdout == "earlier\n"
