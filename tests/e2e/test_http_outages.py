"""What HTTP says while the engine or Redis is away, how fast, and that all works again after."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.stack import EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for

BEATS_S = 3.0
NO_ENGINE = "engine not initialized"
NEEDS_REDIS = [
    ("GET", "/status", None, "error"),
    ("GET", "/conf", None, "error"),
    ("GET", "/quota", None, "error"),
    ("GET", "/quota/alice", None, "error"),
    ("PUT", "/quota/alice", {"limit_gb": 1}, "error"),
    ("DELETE", "/quota/alice", None, "error"),
    ("POST", "/clear-cache", None, "reason"),
    ("GET", "/kvcache/check?block_ids=0&chunk_size=1", None, "error"),
    ("POST", "/cache/checksums", {"block_ids": [0], "chunk_size": 1}, "detail"),
    ("GET", "/config", None, "error"),
    ("GET", "/config/adapters", None, "detail"),
    ("POST", "/cache/clear", None, "detail"),
    ("GET", "/cache/objects", None, "detail"),
    ("DELETE", "/cache/objects", {"keys": [], "tier": "all"}, "detail"),
    ("POST", "/cache/prefetches", {"model_name": "m", "world_size": 1, "token_ids": []}, "detail"),
    ("GET", "/reconfigure/dax/l2/status", None, "error"),
    ("POST", "/reconfigure/dax/l2/add", {"device_path": "/x", "size": 1}, "error"),
]


def metric(web: WebProcess, name: str) -> float:
    lines = web.http("GET", "/metrics").body.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_a_killed_engine(engine_process: EngineProcess, web_process: WebProcess) -> None:
    assert web_process.http("GET", "/healthcheck").status == 200
    engine_process.kill()
    killed_at = time.monotonic()

    wait_for(lambda: web_process.http("GET", "/healthcheck").status == 503, 20, "/healthcheck is 503")

    # A beat may have been written just before the kill; the rest is room for a slow machine.
    assert time.monotonic() - killed_at < BEATS_S + 2
    assert web_process.http("GET", "/healthcheck").json() == {"status": "unhealthy", "reason": NO_ENGINE}
    assert web_process.http("GET", "/status").json() == {"error": NO_ENGINE}
    assert web_process.http("PUT", "/quota/alice", {"limit_gb": 1}).json() == {"error": NO_ENGINE}
    assert web_process.http("POST", "/clear-cache").json() == {"status": "error", "reason": NO_ENGINE}
    assert web_process.http("GET", "/conf").json()["mp"]["chunk_size"] == 256
    assert metric(web_process, "engine_up") == metric(web_process, "larder_engine_up") == 0.0
    assert metric(web_process, "larder_redis_up") == 1.0

    engine_process.start()
    wait_for(lambda: web_process.http("GET", "/status").status == 200, 20, "/status is back")
    assert web_process.http("PUT", "/quota/alice", {"limit_gb": 1}).status == 200
    assert metric(web_process, "engine_up") == 1.0


def test_no_engine_ever(web_process: WebProcess) -> None:
    answer = web_process.http("GET", "/conf")

    assert (answer.status, answer.json()) == (503, {"error": "configs not initialized"})
    assert web_process.http("GET", "/status").json() == {"error": NO_ENGINE}
    assert web_process.http("GET", "/healthcheck").status == 503
    assert web_process.http("GET", "/").status == 200


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "killed"])
def test_a_redis_outage(
    redis_server: RedisServer, engine_process: EngineProcess, web_process: WebProcess, frozen: bool
) -> None:
    web_process.http("PUT", "/quota/alice", {"limit_gb": 1})
    redis_server.freeze() if frozen else redis_server.kill()
    try:
        with ThreadPoolExecutor(40) as pool:
            crowd = [pool.submit(web_process.http, "GET", "/status") for _ in range(40)]
            began = time.monotonic()
            health = web_process.http("GET", "/healthcheck")
            health_took_s = time.monotonic() - began
            assert {answer.result().status for answer in crowd} == {503}
        for method, path, body, field in NEEDS_REDIS:
            began = time.monotonic()
            answer = web_process.http(method, path, body)
            took_s = time.monotonic() - began
            assert answer.status == 503, f"{method} {path}: {answer.body!r}"
            assert answer.json()[field].startswith("Redis does not answer"), f"{method} {path}: {answer.body!r}"
            assert took_s < 2, f"{method} {path} took {took_s:.1f} s"
        assert metric(web_process, "larder_redis_up") == 0.0
        assert metric(web_process, "larder_engine_up") == 1.0
        assert web_process.http("GET", "/version").status == 200
        later = web_process.http("GET", "/healthcheck")
    finally:
        redis_server.thaw() if frozen else redis_server.start()

    assert health.status == later.status == 200
    assert health_took_s < 1.5
    # Each worker finds out for itself that Redis is back.
    wait_for(lambda: {web_process.http("GET", "/status").status for _ in range(8)} == {200}, 20, "/status is back")
    wait_for(lambda: web_process.http("PUT", "/quota/bob", {"limit_gb": 2}).status == 200, 20, "commands work again")
    assert web_process.http("GET", "/quota/bob").json()["limit_gb"] == 2
    assert web_process.http("GET", "/quota/alice").json()["limit_gb"] == 1


def test_after_a_flushall_http_recovers_by_itself(
    engine_process: EngineProcess, web_process: WebProcess, redis_server: RedisServer
) -> None:
    redis = redis_server.client()
    redis.flushall()
    redis.close()

    wait_for(lambda: web_process.http("GET", "/status").status == 200, 20, "snapshots are written again")
    wait_for(lambda: web_process.http("PUT", "/quota/alice", {"limit_gb": 1}).status == 200, 20, "and commands taken")
