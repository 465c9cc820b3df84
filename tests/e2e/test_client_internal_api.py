"""The internal API server in the process of a cache client: index 1 + worker id, and no Redis anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.internal_server import InternalAPIConfig
from engine.dataplane.client import LarderClient, ServerAway, SharedKV
from tests.e2e.served_engine import CHUNK, ServedEngine
from tests.internal_client import ask
from workers.client_api import internal_api_of

SHAPE = (2, 8, 4, 2, 8)
ENGINE_ONLY = "this process has a cache client; ask the internal API server of the engine, index 0"


@pytest.fixture
def engine() -> Iterator[ServedEngine]:
    with ServedEngine() as served:
        yield served


@pytest.fixture
def client(engine: ServedEngine) -> Iterator[LarderClient]:
    url = f"tcp://127.0.0.1:{engine.port}"
    with LarderClient(url, "model", world_size=4, worker_id=2, timeout_s=5.0) as client:
        yield client


@pytest.fixture
def socket_path(client: LarderClient, tmp_path: Path) -> Iterator[Path]:
    config = InternalAPIConfig(enabled=True, socket_path_prefix=str(tmp_path / "socket"))
    with internal_api_of(client, config) as server:
        assert server.socket_path == str(tmp_path / "socket_7002")
        yield Path(server.socket_path)


def test_the_process_can_be_looked_into(socket_path: Path) -> None:
    threads = ask(socket_path, "GET", "/threads").body.decode()
    assert "test_the_process_can_be_looked_into" in threads
    assert "are missing" not in threads
    metrics = ask(socket_path, "GET", "/metrics").body.decode()
    for series in ("larder_engine_up 1.0", "process_resident_memory_bytes", "larder_http_request"):
        assert series in metrics
    assert ask(socket_path, "GET", "/periodic-threads-health").json()["healthy"] is True
    assert ask(socket_path, "GET", "/periodic-threads").json()["threads"] == []
    assert ask(socket_path, "POST", "/metrics/reset").body == b"ok"
    for path in ("/env", "/version", "/loglevel"):
        assert ask(socket_path, "GET", path).status == 200
    assert ask(socket_path, "GET", "/", headers={}).status == 404


def test_levels_set_here_count_here(socket_path: Path) -> None:
    name = "tests.client_internal_api"
    assert ask(socket_path, "GET", f"/loglevel?logger_name={name}&level=error").status == 200
    assert ask(socket_path, "GET", f"/loglevel?logger_name={name}").body.decode() == f"{name}: ERROR"


def test_the_client_tells_what_it_has_registered(socket_path: Path, client: LarderClient) -> None:
    assert ask(socket_path, "GET", "/cache/kvcache/info").status == 404
    assert ask(socket_path, "GET", "/inference_info").json() == {}
    assert json.loads(ask(socket_path, "GET", "/meta?names=kv_shape,kv_dtype").body) == {
        "kv_shape": [],
        "kv_dtype": None,
    }
    with SharedKV([SHAPE] * 3, "bfloat16") as kv:
        client.register_shared(kv)
        assert client.chunk_size == CHUNK

        facts = {"shape": list(SHAPE), "dtype": "torch.bfloat16", "device": "cpu"}
        layers = {f"layer_{number}": facts for number in range(3)}
        info = ask(socket_path, "GET", "/cache/kvcache/info").json()
        assert info == {"status": "success", "num_layers": 3, "layers": layers}
        assert ask(socket_path, "GET", "/inference_info").json() == {"num_layers": 3, "layers": layers}
        names = "model_name,world_size,worker_id,role,kv_shape,kv_dtype,is_first_rank"
        assert json.loads(ask(socket_path, "GET", f"/meta?names={names}").body) == {
            "model_name": "model", "world_size": 4, "worker_id": 2, "role": "worker", "kv_shape": [3, 2, CHUNK, 2, 8],
            "kv_dtype": "torch.bfloat16", "is_first_rank": False,
        }  # fmt: skip
        client.unregister()
    assert ask(socket_path, "GET", "/lookup/info").json() == {"client": "LarderClient", "server": "None"}


def test_its_patience_can_be_changed(socket_path: Path, client: LarderClient) -> None:
    body = b'{"timeout_s": 7, "url": "tcp://x", "nothing": 1}'
    reply = ask(socket_path, "POST", "/conf", body).json()
    errors = {"url": "Config is not mutable at runtime", "nothing": "Unknown config"}
    assert reply == {"updated": {"timeout_s": 7.0}, "errors": errors}
    assert client.timeout_s == 7.0
    for value in (b"0", b"true", b"-1", b'"7"', b"NaN", b"1e9"):
        assert ask(socket_path, "POST", "/conf", b'{"timeout_s": %s}' % value).status == 400
    shown = json.loads(ask(socket_path, "GET", "/conf?names=timeout_s,url,internal_api_server_port_start").body)
    assert shown == {"timeout_s": 7.0, "url": client.url, "internal_api_server_port_start": 6999}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/backends", 501),
        ("GET", "/bypass/list", 501),
        ("PUT", "/bypass/add?backend_name=x", 501),
        ("GET", "/freeze/status", 501),
        ("PUT", "/freeze/enable", 501),
        ("PUT", "/hot_cache/disable", 501),
        ("GET", "/hot_cache/status", 501),
        ("DELETE", "/cache/clear", 501),
        ("GET", "/cache/kvcache/check?slot_mapping=1", 501),
        ("POST", "/cache/kvcache/record_slot?enabled=true", 501),
        ("POST", "/chunk_statistics/start", 400),
        ("GET", "/chunk_statistics/status", 501),
    ],
)
def test_what_the_engine_alone_can_do_names_the_engine(socket_path: Path, method: str, path: str, status: int) -> None:
    answer = ask(socket_path, method, path)
    assert (answer.status, answer.json()["message"][-len(ENGINE_ONLY) :]) == (status, ENGINE_ONLY)


def test_scripts_run_in_the_engine_alone(client: LarderClient, tmp_path: Path) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="script"; filename="s.py"\r\n\r\nresult = 1\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    config = InternalAPIConfig(enabled=True, socket_path_prefix=str(tmp_path / "socket"), run_script_enabled=True)
    with internal_api_of(client, config) as server:
        answer = ask(server.socket_path, "POST", "/run_script", form, headers=headers)

    assert (answer.status, answer.body.decode()) == (501, ENGINE_ONLY)


def test_a_server_that_does_not_answer_shows(socket_path: Path, engine: ServedEngine, client: LarderClient) -> None:
    engine.server.stop()
    client.timeout_s = 0.2
    with pytest.raises(ServerAway):
        client.ping()

    assert json.loads(ask(socket_path, "GET", "/meta?names=server_answers").body) == {"server_answers": False}
    assert "larder_engine_up 0.0" in ask(socket_path, "GET", "/metrics").body.decode()
    assert ask(socket_path, "GET", "/periodic-threads-health").json()["unhealthy_threads"][0]["name"] == "engine"


def test_without_the_switch_nothing_listens(
    client: LarderClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMCACHE_INTERNAL_API_SERVER_SOCKET_PATH_PREFIX", str(tmp_path / "socket"))
    with internal_api_of(client):
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LMCACHE_INTERNAL_API_SERVER_ENABLED", "true")
    monkeypatch.setenv("LMCACHE_INTERNAL_API_SERVER_INCLUDE_INDEX_LIST", "[0, 3]")
    with internal_api_of(client):
        assert [path.name for path in tmp_path.iterdir()] == ["socket_7002"]
    with internal_api_of(client, index=0):
        assert [path.name for path in tmp_path.iterdir()] == ["socket_6999"]
    with internal_api_of(client, index=2):
        assert list(tmp_path.iterdir()) == []
