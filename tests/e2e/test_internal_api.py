"""The engine's own internal API server, asked while Redis and gunicorn are gone: every route and what it answers."""

import json
import subprocess
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.internal_client import ask
from tests.stack import Answer, EngineProcess, RedisServer, WebProcess, free_port
from tests.waiting import wait_for

CHUNK, BLOCK, LAYERS = 16, 4, 2
SHAPE = (2, 32, BLOCK, 2, 8)
TOKENS = list(range(1, 4 * CHUNK + 1))
BLOCKS = list(range(1, 17))
SUCCESS = {"status": "success"}


class Alone:
    """An engine with a worker of a model, whose Redis and web tier were killed after it became ready."""

    def __init__(self, engine: EngineProcess, kv: SharedKV, client: LarderClient) -> None:
        self.engine, self.kv, self.client = engine, kv, client
        self.socket = engine.settings["internal_api_server_socket_path_prefix"] + "_6999"  # type: ignore[operator]

    def ask(self, method: str, path: str, status: int = 200, body: bytes | None = None) -> Answer:
        answer = ask(self.socket, method, path, body)
        assert answer.status == status, (method, path, answer.body)
        return answer

    def json(self, method: str, path: str, status: int = 200, body: bytes | None = None) -> Any:
        """The body of a JSON reply, which is indented."""
        answer = self.ask(method, path, status, body)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.body.decode() == json.dumps(answer.json(), indent=2, ensure_ascii=False)
        return answer.json()


def fill(kv: SharedKV) -> None:
    """Here, so that nobody keeps one of the arrays."""
    for number, layer in enumerate(kv.layers):
        layer[:] = np.random.default_rng(number).random(SHAPE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    directory = tmp_path_factory.mktemp("alone")
    prefix = str(directory / "run" / "socket")
    settings = {
        "internal_api_server_enabled": "true",
        "internal_api_server_socket_path_prefix": prefix,
        "chunk_size": CHUNK,
        "l2_adapter": '{"type": "memory"}',
        "run_script_enabled": "true",
        "script_allowed_imports": "math",
    }
    redis = start_redis("redis", directory).start()
    try:
        with EngineProcess(directory, redis.url, **settings) as engine:
            web = WebProcess(directory, redis.url).start()
            web.kill()
            redis.kill()
            shapes = [SHAPE] * LAYERS
            with SharedKV(shapes) as kv, LarderClient(f"tcp://127.0.0.1:{engine.port}", "model") as client:
                client.register_shared(kv)
                fill(kv)
                yield Alone(engine, kv, client)
    finally:
        redis.kill()
    assert list(Path(prefix).parent.iterdir()) == []


def test_curl_sees_threads_settings_and_metrics(alone: Alone) -> None:
    def curl(path: str) -> str:
        command = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--unix-socket",
            alone.socket,
            "http://localhost" + path,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    threads = curl("/threads")
    assert "=== Process: larder-engine" in threads
    assert "larder-command-loop" in threads
    assert json.loads(curl("/conf"))["chunk_size"] == CHUNK
    metrics = curl("/metrics")
    for series in ("larder_engine_up 1.0", "larder_redis_up 0.0", "lmcache_mp_l1_usage_ratio", "larder_http_request"):
        assert series in metrics


def test_common_routes_are_those_of_the_web_tier(alone: Alone) -> None:
    assert alone.ask("GET", "/loglevel?logger_name=engine").body == b"engine: INFO"
    assert "PATH" in json.loads(alone.ask("GET", "/env").body)
    assert alone.ask("GET", "/version").json().startswith("0")
    names = {loop["name"] for loop in alone.ask("GET", "/periodic-threads").json()["threads"]}
    assert {"l1-eviction", "command-loop", "heartbeat"} <= names
    assert alone.ask("GET", "/periodic-threads/l1-eviction").json()["name"] == "l1-eviction"
    assert alone.ask("GET", "/periodic-threads-health").json()["healthy"] in (True, False)
    assert alone.ask("POST", "/run_script", 400).body == b"No script file provided"
    assert alone.ask("POST", "/metrics/reset").body.startswith(b"ok in this process alone; ")
    for path in ("/", "/healthcheck", "/status", "/quota"):
        assert alone.ask("GET", path, 404).json() == {"detail": "Not Found"}


def test_a_script_sees_the_engine(alone: Alone) -> None:
    source = b"import math\nresult = math.floor(app.state.engine.chunk_size)"
    form = b'--x\r\nContent-Disposition: form-data; name="script"; filename="s.py"\r\n\r\n%s\r\n--x--\r\n' % source
    answer = ask(alone.socket, "POST", "/run_script", form, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (answer.status, answer.body) == (200, str(CHUNK).encode())


def test_settings_are_shown_as_text(alone: Alone) -> None:
    answer = alone.ask("GET", "/conf?names=chunk_size,%20nothing,instance_id")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body.decode() == '{\n  "chunk_size": 16,\n  "instance_id": "default"\n}'
    assert json.loads(alone.ask("GET", "/conf?names=nothing").body) == {}


def test_settings_that_can_change_do(alone: Alone) -> None:
    body = b'{"l1_read_ttl_seconds": 42, "chunk_size": 1, "nothing": 1, "eviction_ratio": 2, "log_level": []}'
    reply = alone.json("POST", "/conf", body=body)
    assert reply["updated"] == {"l1_read_ttl_seconds": 42.0}
    errors = reply["errors"]
    assert errors["chunk_size"] == "Config is not mutable at runtime"
    assert errors["nothing"] == "Unknown config"
    assert all(errors[name].startswith("Failed to set config value: ") for name in ("eviction_ratio", "log_level"))
    assert json.loads(alone.ask("GET", "/conf?names=l1_read_ttl_seconds").body) == {"l1_read_ttl_seconds": 42.0}
    assert alone.json("POST", "/conf", 200, b'{"log_level": "debug"}') == {"updated": {"log_level": "DEBUG"}}
    assert alone.ask("GET", "/loglevel?logger_name=root").body == b"root: DEBUG"
    assert "errors" not in alone.json("POST", "/conf", body=b'{"log_level": "INFO"}')


def test_what_is_no_change_of_settings_is_refused(alone: Alone) -> None:
    assert alone.json("POST", "/conf", 400, b'{"chunk_size": 1}') == {
        "updated": {},
        "errors": {"chunk_size": "Config is not mutable at runtime"},
    }
    assert alone.json("POST", "/conf", 400, b"{}") == {"updated": {}}
    assert alone.json("POST", "/conf", 400, b"{")["error"] == "Invalid JSON body"
    assert alone.json("POST", "/conf", 400)["error"] == "Invalid JSON body"
    assert alone.json("POST", "/conf", 400, b"[]") == {"error": "Request body must be a JSON object"}


def test_what_is_known_of_the_model(alone: Alone) -> None:
    answer = alone.ask("GET", "/meta?names=model_name,worker_id,role,kv_shape")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    meta = json.loads(answer.body)
    assert meta == {"model_name": "model", "worker_id": 0, "role": "server", "kv_shape": [LAYERS, 2, CHUNK, 2, 8]}
    assert set(json.loads(alone.ask("GET", "/meta").body)) > set(meta)
    assert alone.json("GET", "/inference_info?format=x")["registered_gpu_ids"] == [alone.client.instance_id]
    assert alone.json("GET", "/inference_version") == {"vllm_version": None}
    assert alone.json("GET", "/lookup/info") == {"client": "None", "server": "DataPlaneServer"}


def test_an_adapter_is_bypassed_and_in_service_again(alone: Alone) -> None:
    assert alone.json("GET", "/backends") == {"LocalCPUBackend": "L1Cache", "0-memory": "MemoryAdapter"}
    name = {"backend_name": "0-memory"}
    added = alone.json("PUT", "/bypass/add?backend_name=0-memory")
    assert added == {
        **SUCCESS, **name, "bypassed": True, "was_already_bypassed": False, "bypassed_backends": ["0-memory"],
    }  # fmt: skip
    assert alone.json("PUT", "/bypass/add?backend_name=memory")["was_already_bypassed"] is True
    shown = {"bypassed_backends": ["0-memory"], "all_backends": ["LocalCPUBackend", "0-memory"]}
    assert alone.json("GET", "/bypass/list") == {**SUCCESS, **shown}
    removed = alone.json("PUT", "/bypass/remove?backend_name=0-memory")
    assert removed == {**SUCCESS, **name, "bypassed": False, "was_bypassed": True, "bypassed_backends": []}
    assert alone.json("PUT", "/bypass/remove?backend_name=0-memory")["was_bypassed"] is False
    for query in ("", "?backend_name=", "?backend_name=nothing", "?backend_name=LocalCPUBackend"):
        assert set(alone.json("PUT", "/bypass/add" + query, 400)) == {"error", "message"}


def test_a_frozen_cache_stores_nothing(alone: Alone) -> None:
    assert alone.json("DELETE", "/cache/clear")["status"] == "success"
    frozen = alone.json("PUT", "/freeze/enable")
    assert frozen == {**SUCCESS, "freeze": True, "message": "Frozen: nothing is stored, and only L1 answers"}
    alone.client.store([7, *TOKENS], BLOCKS, "frozen")
    assert alone.client.lookup([7, *TOKENS], "frozen") == 0
    assert alone.json("GET", "/freeze/status")["freeze"] is True

    assert alone.json("PUT", "/freeze/disable") == {**SUCCESS, "freeze": False, "message": "Not frozen"}
    alone.client.store([7, *TOKENS], BLOCKS, "thawed")
    assert alone.client.lookup([7, *TOKENS], "thawed") == len(TOKENS)
    alone.client.free([7, *TOKENS], "thawed")
    assert alone.json("GET", "/freeze/status")["freeze"] is False


def test_l1_lets_go_of_what_is_stored_and_is_cleared(alone: Alone) -> None:
    assert alone.json("PUT", "/hot_cache/disable")["hot_cache"] is False
    alone.json("DELETE", "/cache/clear?locations=LocalCPUBackend")
    alone.client.store([8, *TOKENS], BLOCKS, "cold")

    def gauge(name: str) -> float:
        lines = alone.ask("GET", "/metrics").body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    wait_for(lambda: gauge("lmcache_mp_l1_memory_usage_bytes") == 0, 10, "all of it is in L2 alone")
    assert gauge("larder_hot_cache") == 0
    assert alone.json("PUT", "/hot_cache/enable")["hot_cache"] is True
    assert gauge("larder_hot_cache") == 1
    assert alone.json("GET", "/hot_cache/status")["message"] == "Objects stay in L1 once they are stored in L2"
    alone.client.store([9, *TOKENS], BLOCKS, "hot")
    assert alone.json("DELETE", "/cache/clear") == {**SUCCESS, "num_removed": 4}
    assert alone.json("DELETE", "/cache/clear") == {**SUCCESS, "num_removed": 0}
    for location, reason in (("0-memory", "is an L2 adapter"), ("memory", "is an L2 adapter"), ("no", "unknown")):
        query = f"?locations=LocalCPUBackend&locations={location}"
        assert reason in alone.json("DELETE", f"/cache/clear{query}", 400)["message"]


def test_slots_of_registered_memory_are_hashed(alone: Alone) -> None:
    layers = alone.json("GET", "/cache/kvcache/info")
    facts = {"shape": list(SHAPE), "dtype": "torch.float16", "device": "cpu"}
    assert layers == {**SUCCESS, "num_layers": 2, "layers": {"layer_0": facts, "layer_1": facts}}

    reply = alone.json("GET", "/cache/kvcache/check?slot_mapping=5,[8,11],3&chunk_size=4")
    flat = [layer.reshape(2, -1, 2, 8) for layer in alone.kv.layers]
    sums = [
        md5(b"".join(layer[:, chunk].tobytes() for layer in flat)).hexdigest() for chunk in ([5, 8, 9, 10], [11, 3])
    ]
    assert reply == {
        **SUCCESS, "slot_mapping_ranges": [5, [8, 11], 3], "chunk_size": 4, "num_chunks": 2, "chunk_checksums": sums,
        "layerwise": False,
    }  # fmt: skip
    by_layer = alone.json("GET", "/cache/kvcache/check?slot_mapping=0,1&chunk_size=9&layerwise=true")["chunk_checksums"]
    assert by_layer["layer_1"] == [md5(flat[1][:, :2].tobytes()).hexdigest()]
    unchunked = alone.json("GET", "/cache/kvcache/check?slot_mapping=0,1")
    assert (unchunked["num_chunks"], unchunked["chunk_checksums"], unchunked["chunk_size"]) == (0, [], None)
    for query in ("", "slot_mapping=", "slot_mapping=x", "slot_mapping=128", "slot_mapping=[3,1]"):
        alone.json("GET", f"/cache/kvcache/check?{query}", 400)
    alone.json("GET", "/cache/kvcache/check?slot_mapping=1&chunk_size=0", 400)
    assert alone.ask("GET", "/cache/kvcache/check?slot_mapping=1&chunk_size=x", 422).json()["detail"]


def test_blocks_of_transfers_are_logged_while_that_is_on(alone: Alone) -> None:
    on = alone.json("POST", "/cache/kvcache/record_slot?enabled=true")
    assert on == {**SUCCESS, "kvcache_check_log_enabled": True}
    alone.client.store([10, *TOKENS], BLOCKS, "told")
    off = alone.json("POST", "/cache/kvcache/record_slot?enabled=FALSE")
    assert off == {**SUCCESS, "kvcache_check_log_enabled": False}
    alone.client.store([11, *TOKENS], BLOCKS, "untold")
    log = alone.engine.log_path.read_text()
    assert "store 'told' tokens [0, 64)" in log
    assert "'untold'" not in log
    for query in ("", "?enabled=", "?enabled=1"):
        alone.json("POST", "/cache/kvcache/record_slot" + query, 400)


def test_looked_up_chunks_are_counted(alone: Alone) -> None:
    words = {"start": "Started", "stop": "Stopped", "reset": "Reset"}
    assert alone.json("POST", "/chunk_statistics/start") == {**SUCCESS, "message": words["start"]}
    for request_id in ("a", "b"):
        alone.client.lookup([12, *TOKENS], request_id)
    assert alone.json("POST", "/chunk_statistics/stop") == {**SUCCESS, "message": words["stop"]}
    shown = alone.json("GET", "/chunk_statistics/status")
    assert (shown["total_requests"], shown["total_chunks"], shown["unique_chunks"]) == (2, 8, 4)
    assert {"timestamp", "auto_exit_enabled", "auto_exit_timeout_hours", "auto_exit_target_unique_chunks"} < set(shown)
    assert alone.json("POST", "/chunk_statistics/reset") == {**SUCCESS, "message": words["reset"]}
    assert alone.json("GET", "/chunk_statistics/status")["total_chunks"] == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/backends/0-memory"),
        ("POST", "/backends/0-memory/recreate"),
        ("POST", "/cache/load-fs-chunks"),
        ("POST", "/lookup/close"),
        ("POST", "/lookup/create?dryrun=true"),
        ("POST", "/lookup/recreate"),
    ],
)
def test_what_has_no_meaning_here_says_so(alone: Alone, method: str, path: str) -> None:
    body = alone.json(method, path, 501)
    assert set(body) == {"error", "message"}
    assert body["error"].endswith("API is not supported")


def test_there_is_no_controller(alone: Alone) -> None:
    for path in ("/controller/workers", "/controller/workers?instance_id=a&worker_id=1", "/controller/key-stats"):
        assert alone.ask("GET", path, 503).json() == {"detail": "Controller manager not available"}


def test_an_engine_that_waits_for_redis_can_be_looked_into(tmp_path: Path) -> None:
    port = free_port()
    settings = {"internal_api_server_enabled": "true", "internal_api_server_host": "127.0.0.1"}
    engine = EngineProcess(
        tmp_path,
        "redis://127.0.0.1:1/0",
        **settings,
        internal_api_server_port_start=port,
        l2_adapter='{"type": "memory"}',
    )
    engine.launch()
    try:
        wait_for(lambda: engine.record().get("error", "").startswith("Redis"), 30, "the engine waits for Redis")
        for path in ("/threads", "/conf", "/metrics", "/env", "/loglevel", "/periodic-threads", "/version"):
            assert ask(port, "GET", path).status == 200, path
        assert "larder_engine_up 0.0" in ask(port, "GET", "/metrics").body.decode()
        assert "are missing" not in ask(port, "GET", "/threads").body.decode()
        for method, path, name in (
            ("GET", "/meta", "meta"), ("GET", "/backends", "backends"), ("GET", "/freeze/status", "freeze"),
            ("PUT", "/freeze/enable", "freeze"), ("DELETE", "/cache/clear", "cache/clear"),
            ("POST", "/chunk_statistics/start", "chunk_statistics"), ("GET", "/inference_info", "inference_info"),
            ("GET", "/lookup/info", "lookup"), ("GET", "/bypass/list", "bypass"),
        ):  # fmt: skip
            answer = ask(port, method, path)
            missing = {"error": f"{name} API is unavailable", "message": "LMCache engine not configured."}
            assert (answer.status, answer.json()) == (503, missing)
        assert ask(port, "GET", "/cache/kvcache/info").status == 404
    finally:
        engine.stop()


def test_a_port_in_use_stops_the_start_with_its_name(tmp_path: Path, redis_server: RedisServer) -> None:
    port = int(redis_server.port)
    settings = {"internal_api_server_enabled": "true", "internal_api_server_port_start": port, "instance_id": "other"}
    engine = EngineProcess(tmp_path / "other", redis_server.url, **settings)
    engine.launch()
    assert engine.process is not None
    assert engine.process.wait(30) == 78
    assert f"internal_api_server: http://0.0.0.0:{port}: [Errno 98] Address already in use" in engine.log_tail()
