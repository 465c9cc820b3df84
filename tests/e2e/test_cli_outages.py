"""`larder` with a server that has no engine, wants tokens, or listens on a Unix socket."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.e2e.cli_runner import Terminal, larder
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

ADMIN, READ = "admin-secret-4711", "read-secret-4711"

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def without_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    place = tmp_path_factory.mktemp("no-engine")
    with start_redis("redis", place / "redis") as redis, WebProcess(place / "larder", redis.url) as web:
        yield web


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """A whole server with both tokens."""
    place = tmp_path_factory.mktemp("guarded")
    with (
        start_redis("redis", place / "redis") as redis,
        EngineProcess(place / "larder", redis.url),
        WebProcess(place / "larder", redis.url, admin_token=ADMIN, read_token=READ) as web,
    ):
        yield web


NEEDS_ENGINE = [
    ("status",),
    ("describe", "server"),
    ("describe", "adapter", "fs"),
    ("quota", "list"),
    ("quota", "get", "alice"),
    ("quota", "set", "alice", "1"),
    ("quota", "delete", "alice"),
    ("keys",),
    ("prefetch", "--model", "m"),
    ("clear",),
    ("scrub", "start"),
    ("scrub", "state"),
    ("scrub", "stop"),
    ("top",),
]


@pytest.mark.parametrize("words", NEEDS_ENGINE, ids=" ".join)
def test_without_an_engine_it_ends_with_4_and_the_server_s_reason(
    without_engine: WebProcess, words: tuple[str, ...]
) -> None:
    ended = larder(*words, "--url", without_engine.url, stdin="1 2 3")

    assert (ended.code, ended.out) == (4, "")
    assert without_engine.url in ended.error_line()
    assert ended.error_line().endswith("503 engine not initialized (it has not been heard of)")


def test_what_needs_no_engine_answers_without_one(without_engine: WebProcess) -> None:
    ping = larder("ping", "--url", without_engine.url, "--json")

    assert ping.code == 4
    assert ping.json()["http"]["state"] == "unhealthy"
    assert "engine not initialized" in ping.json()["http"]["reason"]
    assert ping.json()["data_plane"]["state"] == "skipped"
    for words in (("threads",), ("threads", "--periodic"), ("loglevel",)):
        assert larder(*words, "--url", without_engine.url).code == 0
    assert "loops are missing" in larder("threads", "--periodic", "--url", without_engine.url).error_line()


def test_an_engine_that_hangs_was_heard_of_a_while_ago(tmp_path: Path) -> None:
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url) as engine,
        WebProcess(tmp_path / "larder", redis.url) as web,
    ):
        assert larder("threads", "--periodic", "--url", web.url).err == ""
        engine.send(signal.SIGSTOP)

        ended = wait_for(lambda: (now := larder("status", "--url", web.url)).code == 4 and now, 30, "it is away")

        assert re.search(r"503 engine not initialized \(last heard of [\d.]+ s ago\)$", ended.error_line())


def test_a_live_view_waits_for_an_engine_that_is_away(without_engine: WebProcess) -> None:
    with Terminal("top", "--interval", "0.5", "--count", "3", "--url", without_engine.url) as terminal:
        terminal.wait_for("asking again")
        assert terminal.end() == 4
        assert "engine not initialized" in terminal.text


@pytest.mark.parametrize(
    ("tokens", "words", "code", "reason"),
    [
        ({}, ("status",), 1, "LARDER_ADMIN_TOKEN and LARDER_READ_TOKEN are not set"),
        ({}, ("clear",), 1, "401 "),
        ({"LARDER_READ_TOKEN": READ}, ("status",), 0, ""),
        ({"LARDER_READ_TOKEN": READ}, ("clear",), 1, "403 "),
        ({"LARDER_ADMIN_TOKEN": ADMIN}, ("status",), 0, ""),
        ({"LARDER_ADMIN_TOKEN": ADMIN}, ("clear",), 0, ""),
        ({"LARDER_ADMIN_TOKEN": ADMIN}, ("loglevel", "tests.guarded", "INFO"), 0, ""),
        ({"LARDER_ADMIN_TOKEN": ADMIN}, ("threads",), 0, ""),
        ({"LARDER_ADMIN_TOKEN": "wrong"}, ("clear",), 1, "not what LARDER_ADMIN_TOKEN holds"),
        ({"LARDER_READ_TOKEN": "wrong", "LARDER_ADMIN_TOKEN": ADMIN}, ("quota", "set", "a", "1"), 0, ""),
    ],
)
def test_tokens_come_from_the_environment(
    guarded: WebProcess, tokens: dict[str, str], words: tuple[str, ...], code: int, reason: str
) -> None:
    ended = larder(*words, "--url", guarded.url, environ=tokens)

    assert ended.code == code, ended.err
    assert reason in ended.err
    assert not any(secret in ended.out + ended.err for secret in (ADMIN, READ, "wrong"))


@pytest.mark.parametrize("token", ["hush hush", "hush\nX: y", "hüsh→", "hush" * 200])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    ended = larder("status", environ={"LARDER_ADMIN_TOKEN": token})

    assert (ended.code, ended.out) == (2, "")
    assert "LARDER_ADMIN_TOKEN" in ended.error_line()
    assert "sh" not in ended.err


def test_a_line_end_after_a_token_does_no_harm(guarded: WebProcess) -> None:
    assert larder("clear", "--url", guarded.url, environ={"LARDER_ADMIN_TOKEN": f"{ADMIN}\n"}).code == 0


def test_there_is_no_flag_for_a_token(guarded: WebProcess) -> None:
    for words in (("--token", ADMIN), ("--url", f"http://admin:{ADMIN}@127.0.0.1:1")):
        ended = larder("status", *words)

        assert ended.code == 2
        assert ADMIN not in ended.out + ended.err


def test_a_server_whose_data_plane_is_unknown_is_pinged_over_http(guarded: WebProcess) -> None:
    ended = larder("ping", "--url", guarded.url)

    assert ended.code == 0
    assert "healthy" in ended.out
    assert "its address is not known" in ended.out


def test_a_sick_part_ends_with_4_and_is_named(tmp_path: Path) -> None:
    files = {"type": "fs", "base_path": str(tmp_path / "objects")}
    broken = json.dumps({"type": "fault", "inner": files, "error_rate": 1.0})
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url, l2_adapter=broken) as engine,
        WebProcess(tmp_path / "larder", redis.url) as web,
        SharedKV([(2, 256, 16, 1, 8)]) as memory,
        LarderClient(f"tcp://127.0.0.1:{engine.port}", "m") as client,
    ):
        client.register_shared(memory)
        client.store(list(range(16 * 256)), list(range(256)), "r")
        wait_for(lambda: larder("status", "--url", web.url).code == 4, 30, "the breaker opens", every_s=0.2)

        for words in (("status",), ("top",), ("describe", "server"), ("describe", "adapter", "fault")):
            ended = larder(*words, "--url", web.url)
            assert (ended.code, ended.err) == (4, "")
            assert "fault" in ended.out
        assert larder("status", "--url", web.url, "--json").json()["is_healthy"] is False
        assert "SICK" in larder("status", "--url", web.url).out


class OnASocket(WebProcess):
    """gunicorn on a Unix socket; ready when the command says so."""

    @property
    def address(self) -> str:
        return str(self.settings["http_host"])

    def is_ready(self) -> bool:
        return larder("ping", "--http-only", "--url", self.address).code == 0 and self.has_all_web_workers()


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url),
        OnASocket(tmp_path / "larder", redis.url, http_host=f"unix:{tmp_path}/http.sock") as web,
    ):
        assert larder("clear", "--url", web.address, "--json").json() == {"status": "ok"}
        assert json.loads(larder("ping", "--url", web.address, "--json").out)["data_plane"]["state"] == "healthy"

    gone = larder("status", "--url", web.address)
    assert gone.code == 3
    assert f"{tmp_path}/http.sock" in gone.error_line()
