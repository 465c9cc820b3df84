"""What an operator changes through the engine's own server while Redis and gunicorn are stopped, and what becomes of it
once they are back."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.internal_client import ask
from tests.stack import Answer, EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for

ALONE = r" in this process alone; the others follow when Redis answers again \(.+\)"
WRITTEN = "lmcache_mp_l1_write_chunks_total"
LOGGER = "engine.dataplane"


class Server:
    """Redis, an engine with a server of its own, and gunicorn."""

    def __init__(self, redis: RedisServer, engine: EngineProcess, web: WebProcess) -> None:
        self.redis, self.engine, self.web = redis, engine, web
        self.socket = f"{engine.settings['internal_api_server_socket_path_prefix']}_6999"

    def own(self, method: str, path: str) -> Answer:
        """What the engine's own server answers."""
        return ask(self.socket, method, path)

    def store(self, first: int, chunks: int) -> None:
        with (
            SharedKV([(2, 64, 16, 1, 8)]) as memory,
            LarderClient(f"tcp://127.0.0.1:{self.engine.port}", "alone/model") as client,
        ):
            client.register_shared(memory)
            tokens = range(first, first + 256 * chunks)
            client.store(list(tokens), [list(range(16 * chunks))], f"request-{first}")

    def lose_redis_and_gunicorn(self) -> None:
        self.web.kill()
        self.redis.kill()

    def get_them_back(self) -> None:
        self.redis.start()
        self.web.start()
        wait_for(lambda: self.web.http("GET", "/healthcheck").status == 200, 30, "it is well again")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    settings = {
        "internal_api_server_enabled": "true",
        "internal_api_server_socket_path_prefix": str(tmp_path / "sockets" / "api"),
    }
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url, **settings) as engine,
        WebProcess(tmp_path / "larder", redis.url) as web,
    ):
        yield Server(redis, engine, web)


def value(answer: Answer, series: str) -> float | None:
    """What a /metrics answer says of a series without labels."""
    found = re.search(rf"^{series} (\S+)$", answer.body.decode(), re.MULTILINE)
    return None if found is None else float(found[1])


def says(get: Callable[[], Answer], text: str) -> Callable[[], bool]:
    return lambda: get().body.decode() == text


def test_a_level_set_alone_is_everywhere_once_redis_is_back(server: Server) -> None:
    set_it, read_it = f"/loglevel?logger_name={LOGGER}&level=error", f"/loglevel?logger_name={LOGGER}"
    before = server.web.http("GET", f"/loglevel?logger_name={LOGGER}&level=WARNING")
    assert before.body.decode() == f"Set {LOGGER} level to WARNING (including all handlers)"
    wait_for(says(lambda: server.own("GET", read_it), f"{LOGGER}: WARNING"), 10, "the engine has it")
    server.lose_redis_and_gunicorn()

    answer = server.own("GET", set_it)

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert re.fullmatch(rf"Set {LOGGER} level to ERROR \(including all handlers\){ALONE}", answer.body.decode())
    assert server.own("GET", read_it).body.decode() == f"{LOGGER}: ERROR"
    assert f"{LOGGER}: ERROR\n" in server.own("GET", "/loglevel").body.decode()
    assert server.own("GET", f"/loglevel?logger_name={LOGGER}&level=LOUD").status == 400

    server.get_them_back()
    wait_for(says(lambda: server.web.http("GET", read_it), f"{LOGGER}: ERROR"), 20, "the web tier has it")
    assert server.own("GET", read_it).body.decode() == f"{LOGGER}: ERROR"
    later = server.own("GET", f"/loglevel?logger_name={LOGGER}&level=info")
    assert later.body.decode() == f"Set {LOGGER} level to INFO (including all handlers)"
    assert server.web.http("GET", read_it).body.decode() == f"{LOGGER}: INFO"


def test_a_reset_alone_is_everywhere_once_redis_is_back(server: Server) -> None:
    server.store(0, 3)
    wait_for(lambda: value(server.own("GET", "/metrics"), WRITTEN) == 3.0, 10, "they are counted")
    assert server.web.http("POST", "/metrics/reset").body == b"ok"
    server.store(5000, 2)
    wait_for(lambda: value(server.own("GET", "/metrics"), WRITTEN) == 2.0, 10, "those after it are counted")
    server.lose_redis_and_gunicorn()

    answer = server.own("POST", "/metrics/reset")

    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert re.fullmatch(f"ok{ALONE}", answer.body.decode())
    shown = server.own("GET", "/metrics")
    assert (value(shown, WRITTEN), value(shown, "larder_redis_up")) == (0.0, 0.0)
    server.store(10_000, 1)
    wait_for(lambda: value(server.own("GET", "/metrics"), WRITTEN) == 1.0, 10, "what comes after it counts")

    server.get_them_back()
    wait_for(lambda: value(server.web.http("GET", "/metrics"), WRITTEN) == 1.0, 20, "the web tier shows the same")
    assert value(server.own("GET", "/metrics"), WRITTEN) == 1.0
    assert server.own("POST", "/metrics/reset").body == b"ok"
    wait_for(lambda: value(server.web.http("GET", "/metrics"), WRITTEN) == 0.0, 10, "a later reset is one for all")


def test_the_web_tier_does_neither_without_redis(server: Server) -> None:
    server.redis.kill()

    for method, path in (("POST", "/metrics/reset"), ("GET", f"/loglevel?logger_name={LOGGER}&level=ERROR")):
        answer = server.web.http(method, path)
        assert (answer.status, answer.body.startswith(b"Redis does not answer: ")) == (503, True)
    assert server.own("GET", f"/loglevel?logger_name={LOGGER}").body.decode() == f"{LOGGER}: INFO"
