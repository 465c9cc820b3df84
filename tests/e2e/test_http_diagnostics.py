"""Looking into a real stack of two gunicorn workers and an engine, and changing log levels in all of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.keys import Keys
from tests.conftest import start_redis
from tests.stack import EngineProcess, Larder, RedisServer, WebProcess
from tests.waiting import wait_for

KEYS = Keys("default")
PROCESS = re.compile(r"^=== Process: (\S+) \(pid \d+\) ===$", re.MULTILINE)
TOTAL = re.compile(r"^Total threads: (\d+)$", re.MULTILINE)


class Stack:
    def __init__(self, redis: RedisServer, engine: EngineProcess, web: WebProcess) -> None:
        self.redis, self.engine, self.web = redis, engine, web

    def get(self, path: str, status: int = 200) -> str:
        answer = self.web.http("GET", path)
        assert answer.status == status, answer.body
        return answer.body.decode()

    def from_each_worker(self, path: str) -> set[str]:
        """The answers to as many requests as it takes until both workers have answered one."""
        answers, workers = set(), set()

        def ask() -> bool:
            answers.add(self.get(path))
            workers.update(PROCESS.findall(self.get("/threads?name=nobody")))
            return {"larder-web-0", "larder-web-1"} <= workers

        wait_for(ask, 20, "both workers answer")
        for _ in range(8):
            answers.add(self.get(path))
        return answers


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("diagnostics")
    with (
        start_redis("redis", directory / "redis") as redis,
        EngineProcess(directory / "larder", redis.url) as engine,
        WebProcess(directory / "larder", redis.url) as web,
    ):
        yield Stack(redis, engine, web)


def test_a_level_reaches_every_process_and_is_read_back_the_same(stack: Stack) -> None:
    assert stack.get("/loglevel?logger_name=workers.command_loop") == "workers.command_loop: INFO"

    answer = stack.get("/loglevel?logger_name=workers.command_loop&level=debug")

    assert answer == "Set workers.command_loop level to DEBUG (including all handlers)"
    assert stack.from_each_worker("/loglevel?logger_name=workers.command_loop") == {"workers.command_loop: DEBUG"}
    # The engine says at DEBUG that it ran a command.
    wait_for(lambda: stack.get("/threads") and "command engine.threads" in stack.engine.log_path.read_text(), 20,
             "the engine logs at DEBUG")  # fmt: skip

    redis = stack.redis.client()
    assert redis.hgetall(KEYS.loglevels) == {"workers.command_loop": "DEBUG"}
    redis.delete(KEYS.loglevels)
    redis.close()
    assert stack.from_each_worker("/loglevel?logger_name=workers.command_loop") == {"workers.command_loop: INFO"}


def test_the_list_has_web_tier_and_engine(stack: Stack) -> None:
    lines = stack.get("/loglevel").splitlines()

    assert {"root: INFO", "app.errors: INFO", "engine.engine: INFO"} <= set(lines)
    assert stack.get("/loglevel?logger_name=app&level=BASIC_FORMAT", 400) == "Invalid log level: BASIC_FORMAT"
    assert stack.get("/loglevel?level=DEBUG") == "null"


def test_threads_of_both_processes_under_their_names(stack: Stack) -> None:
    text = stack.get("/threads")

    assert len(PROCESS.findall(text)) == 2
    assert PROCESS.findall(text)[1] == "larder-engine"
    assert text.count("Thread: <") == text.count("Stack trace:") == int(TOTAL.findall(text)[0])
    assert "larder-command-loop" in text
    assert "larder-web-follower" in text

    loop = re.search(r"Thread: <Thread\(larder-command-loop, started daemon (\d+)\)>", text)
    assert loop is not None
    assert TOTAL.findall(stack.get(f"/threads?thread_id={loop[1]}&name=COMMAND-loop")) == ["1"]
    assert TOTAL.findall(stack.get("/threads?name=nobody")) == ["0"]


def test_loops_of_engine_and_web_tier(stack: Stack) -> None:
    body = stack.web.http("GET", "/periodic-threads").json()

    names = {loop["name"] for loop in body["threads"]}
    assert {"heartbeat", "publisher", "command-loop", "l1-eviction", "web-follower", "log-levels"} <= names
    assert body["summary"]["total_count"] == len(names) == body["summary"]["running_count"]
    assert stack.web.http("GET", "/periodic-threads/heartbeat").json()["interval"] == 1.0
    wait_for(lambda: stack.web.http("GET", "/periodic-threads-health").json()["healthy"], 20, "all loops are healthy")


def test_the_environment_of_a_worker(stack: Stack) -> None:
    text = stack.get("/env")

    assert '"LARDER_REDIS_URL": "redis://127.0.0.1' in text


def test_without_the_engine_and_after_it(tmp_path: Path, redis_server: RedisServer) -> None:
    with (
        EngineProcess(tmp_path / "larder", redis_server.url) as engine,
        WebProcess(tmp_path / "larder", redis_server.url) as web,
    ):
        own = Stack(redis_server, engine, web)
        engine.kill()
        wait_for(lambda: web.http("GET", "/healthcheck").status == 503, 20, "the engine is missing")

        assert PROCESS.findall(threads := own.get("/threads"))[0].startswith("larder-web-")
        assert "The engine's threads are missing here: engine missing" in threads
        assert [loop["name"] for loop in web.http("GET", "/periodic-threads").json()["threads"]] == ["web-follower"]
        health = web.http("GET", "/periodic-threads-health").json()
        assert (health["healthy"], health["unhealthy_threads"][0]["name"]) == (False, "engine")
        own.get("/loglevel?logger_name=workers.command_loop&level=DEBUG")
        assert own.from_each_worker("/loglevel?logger_name=workers.command_loop") == {"workers.command_loop: DEBUG"}

        engine.start()
        wait_for(lambda: own.get("/threads") and "command engine.threads" in engine.log_path.read_text(), 20,
                 "the new engine logs at DEBUG")  # fmt: skip

        redis_server.kill()
        assert own.get("/env").startswith("{")
        assert TOTAL.findall(own.get("/threads?name=nobody")) == ["0"]
        assert own.get("/loglevel?logger_name=workers.command_loop") == "workers.command_loop: DEBUG"
        assert own.get("/loglevel?logger_name=a&level=INFO", 503).startswith("Redis does not answer")
        assert web.http("GET", "/periodic-threads-health").json()["unhealthy_threads"][0]["name"] == "engine"
        redis_server.start()


def test_levels_end_with_the_run_of_the_launcher(tmp_path: Path) -> None:
    whole = Larder(tmp_path)
    with whole:
        whole.http("GET", "/loglevel?logger_name=engine&level=ERROR")
        assert whole.http("GET", "/loglevel?logger_name=engine").body == b"engine: ERROR"
        whole.stop()
        whole.start()

        assert whole.http("GET", "/loglevel?logger_name=engine").body == b"engine: INFO"
