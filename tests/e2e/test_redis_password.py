"""The launcher's own Redis lets nobody in but who can read its password's file; and nothing else tells the password."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from contract.redis_client import open_redis
from tests.stack import EngineProcess, Larder, RedisServer, embedded_redis_binary, need, redis62_binary
from tests.waiting import wait_for

pytestmark = pytest.mark.redis
BINARIES: dict[str, Callable[[], str | None]] = {"redis": embedded_redis_binary, "redis62": redis62_binary}
SHOWN = [
    "/status", "/conf", "/env", "/metrics", "/threads", "/periodic-threads", "/loglevel", "/quota", "/l2/adapters",
    "/jobs/prefetch", "/version", "/openapi.json",
]  # fmt: skip


def password_file(larder: Larder) -> Path:
    return Path(str(larder.settings["data_dir"])) / "run" / "redis.password"


def password_of(larder: Larder) -> str:
    return password_file(larder).read_text().strip()


@contextmanager
def redis_of(larder: Larder, password: str = "", user: str = "") -> Iterator[redis.Redis]:
    client = open_redis(f"redis://{user}:{password}@127.0.0.1:{larder.settings['redis_port']}/0", timeout_s=10)
    try:
        yield client
    finally:
        client.close()


def lets_in(larder: Larder, password: str = "", user: str = "") -> bool:
    with redis_of(larder, password, user) as client:
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return False


def server_pid(larder: Larder) -> int:
    """The process of the embedded Redis that answers now; 0 when none does."""
    with redis_of(larder, password_of(larder)) as client:
        try:
            return int(client.info("server")["process_id"])
        except redis.ConnectionError:
            return 0


def takes_quotas(larder: Larder) -> bool:
    try:
        return larder.http("PUT", "/quota/alice", {"limit_gb": 1.5}).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module", params=list(BINARIES))
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Larder]:
    """The whole, once with each version of the server that it may start, for tests that leave it as it is."""
    binary = BINARIES[request.param]()
    need(request.param, binary is not None, "its server binary is not installed (requirements-dev.txt brings it)")
    assert binary is not None
    whole = Larder(tmp_path_factory.mktemp("guarded"), log_level="DEBUG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(binary).parent}:{os.environ['PATH']}")
        whole.start()
    try:
        with redis_of(whole, password_of(whole)) as client:
            assert client.info("server")["executable"] == binary
        yield whole
    finally:
        whole.stop()


def test_a_stranger_on_this_machine_cannot_command_it(guarded: Larder) -> None:
    password = password_of(guarded)

    with redis_of(guarded) as stranger, pytest.raises(redis.AuthenticationError, match="Authentication required"):
        stranger.xadd("larder:{default}:commands", {"op": "clear"})
    assert not lets_in(guarded)
    assert not lets_in(guarded, password + "x")
    assert not lets_in(guarded, password, user="larder")
    assert lets_in(guarded, password)
    assert password_file(guarded).stat().st_mode & 0o777 == 0o600
    assert takes_quotas(guarded)


def test_the_password_stands_in_its_file_alone(guarded: Larder) -> None:
    password = password_of(guarded)
    assert takes_quotas(guarded)
    answers = [guarded.http("GET", path) for path in SHOWN]
    frozen = server_pid(guarded)
    os.kill(frozen, signal.SIGSTOP)
    try:
        failed = guarded.http("GET", "/quota/alice")
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert [answer.status for answer in answers] == [200] * len(SHOWN)
    assert (failed.status, b"Redis does not answer" in failed.body) == (503, True)
    assert [answer.body for answer in [*answers, failed] if password.encode() in answer.body] == []
    assert b"***@127.0.0.1" in answers[SHOWN.index("/env")].body
    command_lines = [part for process in psutil.process_iter() for part in command_line(process)]
    assert [part for part in command_lines if password in part] == []
    files = [file for file in guarded.directory.rglob("*") if file.is_file()]
    assert [file for file in files if password.encode() in read(file)] == [password_file(guarded)]
    told = f":***@127.0.0.1:{guarded.settings['redis_port']}/0, started here, password in {password_file(guarded)}"
    assert told in guarded.log_path.read_text()


def read(file: Path) -> bytes:
    """Its content; nothing where it was replaced meanwhile."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_it_outlives_the_server_and_the_launcher(larder: Larder) -> None:
    password, engine = password_of(larder), larder.engine_pid()
    assert takes_quotas(larder)
    before = server_pid(larder)

    os.kill(before, signal.SIGKILL)

    wait_for(lambda: server_pid(larder) not in (0, before), 40, "another server lets in who has the same password")
    wait_for(lambda: takes_quotas(larder), 20, "the engine and the web tier that lived on are let in too")
    assert larder.engine_pid() == engine
    assert not lets_in(larder)
    assert larder.stop() == 0
    assert password_of(larder) == password
    larder.start()
    assert password_of(larder) == password
    assert lets_in(larder, password)
    assert larder.http("GET", "/quota/alice").json()["limit_gb"] == 1.5


def test_data_of_a_server_that_had_no_password_is_taken_over(tmp_path: Path) -> None:
    binary = embedded_redis_binary()
    need("redis", binary is not None, "its server binary is not installed")
    assert binary is not None
    with RedisServer(tmp_path / "larder" / "data" / "redis", binary) as before:
        client = before.client()
        client.hset("larder:{default}:quota", "alice", str(3 * 1024**3))
        client.close()
    (before.directory / "redis.log").unlink()
    password = tmp_path / "larder" / "data" / "run" / "redis.password"
    password.parent.mkdir()
    password.write_text("no such password")

    with Larder(tmp_path / "larder") as larder:
        assert larder.http("GET", "/quota/alice").json()["limit_gb"] == 3.0
        assert not lets_in(larder)
        assert lets_in(larder, password_of(larder))
        assert password.stat().st_mode & 0o777 == 0o600


def test_a_server_left_behind_with_another_password_is_in_the_way_until_it_ends(larder: Larder) -> None:
    assert takes_quotas(larder)
    old, left_behind = password_of(larder), psutil.Process(server_pid(larder))
    others = [process for process in psutil.Process(larder.pid).children(recursive=True) if process != left_behind]
    left_behind.suspend()
    try:
        larder.kill()
        psutil.wait_procs(others, timeout=30)
        password_file(larder).unlink()

        larder.launch()
        assert larder.process is not None
        assert larder.process.wait(60) == 1
        assert f"redis_port: got {larder.settings['redis_port']}, but" in larder.log_tail()
    finally:
        left_behind.resume()
    wait_for(lambda: not left_behind.is_running(), 30, "what was left behind ends")

    larder.start()

    assert password_of(larder) != old
    assert lets_in(larder, password_of(larder))
    assert larder.http("GET", "/quota/alice").json()["limit_gb"] == 1.5
    assert old not in larder.log_tail(10_000)


def test_an_open_redis_is_told_by_the_engine(tmp_path: Path, redis_server: RedisServer) -> None:
    far = redis_server.url.replace("127.0.0.1", "0.0.0.0")  # reached all the same, and no name of this machine
    for name, url, level in (("near", redis_server.url, "INFO"), ("far", far, "WARNING")):
        with EngineProcess(tmp_path / name, url, instance_id=name) as engine:
            lines = [line for line in engine.log_tail(1000).splitlines() if "has no password" in line]
            assert [level in line and url in line for line in lines] == [True]


@pytest.mark.parametrize("given", ["", ":not-the-password@"])
def test_an_external_redis_that_does_not_let_us_in_stops_the_start_at_once(
    tmp_path: Path, redis_server: RedisServer, given: str
) -> None:
    client = redis_server.client()
    client.config_set("requirepass", "hush-hush")
    client.close()
    url = redis_server.url.replace("//", f"//{given}")

    larder = Larder(tmp_path / "larder", redis_url=url)
    larder.launch()

    assert larder.process is not None
    assert larder.process.wait(60) == 1
    shown = redis_server.url.replace("//", f"//{given and ':***@'}")
    assert f"redis_url: got '{shown}', which does not let us in: AuthenticationError: " in larder.log_tail()
    assert "not-the-password" not in larder.log_tail()
