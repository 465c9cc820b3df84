"""POST /run_script through gunicorn, Redis and the engine's process."""

import http.client
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for

PEER_SCRIPT = """
engine = app.state.lmcache_adapter.lmcache_engine
backend = engine.storage_manager.storage_backends["LocalCPUBackend"]
meta = engine.metadata
result = dict(worker=meta.worker_id, model=meta.model_name, shape=meta.kv_shape, first=meta.is_first_rank(),
              hot=backend.use_hot)
"""


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[EngineProcess]:
    directory = tmp_path_factory.mktemp("scripts")
    allowed = {"run_script_enabled": True, "script_allowed_imports": "math, os"}
    with EngineProcess(directory / "larder", redis_server.url, **allowed) as process:
        yield process


@pytest.fixture
def web(engine: EngineProcess, redis_server: RedisServer) -> Iterator[WebProcess]:
    with WebProcess(engine.directory, redis_server.url, run_script_enabled="true") as process:
        yield process


def run(web: WebProcess, source: str, timeout_s: float = 60.0) -> tuple[int, str]:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="script"; filename="s.py"\r\n\r\n'
    connection = http.client.HTTPConnection("127.0.0.1", int(str(web.settings["http_port"])), timeout=timeout_s)
    try:
        connection.request("POST", "/run_script", f"{head}{source}\r\n--{boundary}--\r\n".encode(),
                           {"Content-Type": f"multipart/form-data; boundary={boundary}"})  # fmt: skip
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_scripts_run_in_the_engine(engine: EngineProcess, web: WebProcess) -> None:
    assert run(web, "import os\nresult = os.getpid()") == (200, str(engine.pid))
    assert run(web, "from math import pi\nx = pi") == (200, "Script executed successfully")
    assert run(web, "result = app.state.engine.boot_id") == (200, engine.record()["boot_id"])
    assert run(web, "import json") == (
        500, "Error executing script: import of 'json' is not allowed (script_allowed_imports)",
    )  # fmt: skip
    assert run(web, PEER_SCRIPT) == (200, "{'worker': 0, 'model': '', 'shape': (), 'first': True, 'hot': True}")

    address = f"tcp://127.0.0.1:{engine.port}"
    with SharedKV([(2, 32, 16, 4, 8)] * 3) as memory, LarderClient(address, "script/model") as client:
        client.register_shared(memory)
        assert run(web, PEER_SCRIPT)[1] == (
            "{'worker': 0, 'model': 'script/model', 'shape': (3, 2, 256, 4, 8), 'first': True, 'hot': True}"
        )
    conf = web.http("GET", "/conf").json()["mp"]
    assert (conf["run_script_enabled"], conf["script_allowed_imports"]) == (True, ["math", "os"])


def test_a_script_that_takes_the_engine_along_is_not_run_again(engine: EngineProcess, web: WebProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run, web, "import os\nos.kill(os.getpid(), 9)")
        assert engine.process is not None
        engine.process.wait(20)
        engine.start()
        status, text = answer.result()

    assert (status, text.startswith("nobody knows whether the command took effect")) == (503, True)
    assert run(web, "result = 1") == (200, "1")


def test_without_the_engine_or_redis(engine: EngineProcess, web: WebProcess, redis_server: RedisServer) -> None:
    engine.kill()
    wait_for(lambda: web.http("GET", "/healthcheck").status == 503, 20, "the engine is missing")
    assert run(web, "") == (503, "engine not initialized")
    redis_server.kill()
    wait_for(lambda: run(web, "")[1].startswith("Redis does not answer"), 20, "Redis is missing")
    redis_server.start()
    engine.start()  # which removes the pool that the killed one left


def test_each_process_has_its_own_switch(engine_process: EngineProcess, redis_server: RedisServer) -> None:
    with WebProcess(engine_process.directory, redis_server.url, run_script_enabled="true") as only_web:
        assert run(only_web, "") == (404, "run_script is switched off in the engine (--run-script-enabled)")
