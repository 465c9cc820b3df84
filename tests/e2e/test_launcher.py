"""./larder server: everything up, what dies comes back, nothing is left; and what stops a start."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from contract.redis_client import open_redis
from contract.settings import load_settings
from tests.stack import ROOT, Larder, RedisServer, answers, free_port
from tests.waiting import wait_for
from workers.errors import EXIT_CANNOT_START
from workers.launcher import Launcher

pytestmark = pytest.mark.redis
READY = re.compile(r"launcher: (\w+) is ready(?: again)? after [\d.]+ s \(process (\d+)\)")


def pids(larder: Larder) -> dict[str, int]:
    """The latest process of each child, as the launcher's log tells it."""
    return {name: int(pid) for name, pid in READY.findall(larder.log_tail(1000))}


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_healthy(larder: Larder) -> bool:
    return answers(larder.url + "/healthcheck", status=200)


def set_quota(larder: Larder, salt: str, limit_gb: float) -> bool:
    try:
        return larder.http("PUT", f"/quota/{salt}", {"limit_gb": limit_gb}).status == 200
    except OSError:
        return False


def failed_start(larder: Larder, code: int = 1) -> str:
    """The log of a start that must fail with this exit code."""
    larder.launch()
    assert larder.process is not None
    assert larder.process.wait(60) == code
    return larder.log_tail(1000)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Larder]:
    """One instance for the tests that leave its processes alone."""
    with Larder(tmp_path_factory.mktemp("steady"), commit_id="0123456789abcdef") as whole:
        yield whole


def test_it_says_what_listens_where(steady: Larder) -> None:
    log = wait_for(lambda: "larder is up" in steady.log_tail() and steady.log_tail(1000), 20, "the end of the start")

    assert set(pids(steady)) == {"redis", "engine", "web"}
    assert f"HTTP       {steady.url}" in log
    assert f"data plane tcp://127.0.0.1:{steady.port}" in log
    assert f"Redis      redis://:***@127.0.0.1:{steady.settings['redis_port']}/0, started here, password in " in log
    assert f"data       {steady.settings['data_dir']}" in log
    assert steady.http("GET", "/status").json()["is_healthy"] is True


def test_the_commit_that_it_is_told_is_the_one_it_answers(steady: Larder) -> None:
    assert steady.http("GET", "/commit_id").json() == "012345678"


def test_a_clean_stop_leaves_the_data_directory_alone_and_a_start_finds_it(larder: Larder) -> None:
    assert set_quota(larder, "alice", 1.0)
    children = wait_for(lambda: len(pids(larder)) == 3 and pids(larder), 20, "all children are known")
    boot_id = larder.http("GET", "/status").json()["boot_id"]
    ports = [int(str(larder.settings[name])) for name in ("port", "http_port", "redis_port")]

    assert larder.stop() == 0

    assert [name for name, pid in children.items() if exists(pid)] == []
    assert [name for name in os.listdir("/dev/shm") if boot_id in name] == []
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    data = Path(str(larder.settings["data_dir"]))
    assert (data / "redis").stat().st_mode & 0o777 == 0o700
    assert [path for path in data.rglob("*") if stat.S_ISSOCK(path.stat().st_mode)] == []
    assert sorted(path.name for path in (data / "run").iterdir()) == ["engine.lock", "launcher.lock", "redis.password"]

    larder.start()

    assert larder.http("GET", "/quota/alice").json()["limit_gb"] == 1.0


def limit_of(larder: Larder, salt: str) -> float | None:
    """The quota as the web tier tells it; None while it does not."""
    try:
        return larder.http("GET", f"/quota/{salt}").json().get("limit_gb")
    except OSError:
        return None


def test_what_is_killed_comes_back_alone(larder: Larder) -> None:
    assert set_quota(larder, "alice", 1.5)
    wait_for(lambda: len(pids(larder)) == 3, 20, "all children are known")

    for name in ("engine", "web", "redis"):
        before = pids(larder)
        os.kill(before[name], signal.SIGKILL)
        wait_for(lambda old=before[name], name=name: pids(larder)[name] != old, 40, f"{name} is ready again")
        wait_for(lambda: is_healthy(larder), 20, "the whole is healthy again")
        wait_for(lambda name=name: set_quota(larder, name, 2.0), 20, "commands work again")
        assert [other for other, pid in pids(larder).items() if pid != before[other]] == [name]

    wait_for(lambda: limit_of(larder, "alice") == 1.5, 10, "the quotas are as before")
    wait_for(lambda: limit_of(larder, "redis") == 2.0, 10, "the last quota counts")


def test_a_killed_engine_is_unhealthy_within_three_beats(steady: Larder) -> None:
    wait_for(lambda: "engine" in pids(steady), 20, "the engine is known")
    engine = pids(steady)["engine"]
    os.kill(engine, signal.SIGSTOP)  # dead to all, yet not started again
    began = time.monotonic()

    wait_for(lambda: answers(steady.url + "/healthcheck", status=503), 10, "the health check fails")

    assert time.monotonic() - began < 4.5
    os.kill(engine, signal.SIGCONT)
    wait_for(lambda: is_healthy(steady), 20, "healthy again")


def test_an_engine_that_lives_but_is_frozen_is_started_anew(tmp_path: Path) -> None:
    name = f"larder_test_frozen_{os.getpid()}"
    with Larder(tmp_path, engine_stuck_seconds=4, shm_name=name) as whole:
        wait_for(lambda: len(pids(whole)) == 3, 20, "all children are known")
        frozen = pids(whole)["engine"]

        os.kill(frozen, signal.SIGSTOP)

        wait_for(lambda: pids(whole)["engine"] != frozen, 30, "another engine is ready")
        wait_for(lambda: is_healthy(whole), 20, "the whole is healthy again")
        assert "engine has not been sound for" in whole.log_tail(1000)
        assert "(it does not beat), killing it" in whole.log_tail(1000)
        os.kill(pids(whole)["engine"], signal.SIGKILL)
    assert not Path("/dev/shm", name).exists()


def test_children_end_with_a_killed_launcher(larder: Larder) -> None:
    children = wait_for(lambda: len(pids(larder)) == 3 and pids(larder), 20, "all children are known")

    larder.kill()

    wait_for(lambda: not any(exists(pid) for pid in children.values()), 30, "all children are gone")


def test_the_engine_gets_the_adapters_and_the_web_tier_does_not(tmp_path: Path) -> None:
    adapter = {"type": "fs", "base_path": str(tmp_path / "objects")}
    with Larder(tmp_path / "larder", l2_adapter=json.dumps(adapter)) as larder:
        family = psutil.Process(larder.pid).children(recursive=True)

        assert larder.http("GET", "/l2/adapters").json()["adapters"][0]["type_name"] == "fs"
        assert psutil.Process(larder.engine_pid()).environ()["LARDER_L2_ADAPTER"] == json.dumps([adapter])
        web = [child for child in family if "gunicorn" in child.cmdline()]
        assert web
        assert not any("LARDER_L2_ADAPTER" in child.environ() for child in web)


def test_a_stop_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    larder = Larder(tmp_path / "larder")
    larder.launch()
    wait_for(lambda: "redis" in pids(larder), 20, "the start is under way")

    assert larder.stop() == 0


def test_a_second_launcher_in_the_same_directory_is_refused(steady: Larder, tmp_path: Path) -> None:
    log = failed_start(Larder(tmp_path / "second", data_dir=steady.settings["data_dir"]))

    assert f"is in use by another larder server (process {steady.pid})" in log
    assert is_healthy(steady)


@pytest.mark.parametrize("setting", ["port", "http_port", "redis_port"])
def test_an_occupied_port_is_refused(tmp_path: Path, setting: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        log = failed_start(Larder(tmp_path / "larder", **{setting: port}))

    assert re.search(rf"{setting}: got {port}, but .*{port} cannot be listened on: Address already in use", log)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"l1_size_gb": "-1"}, "l1_size_gb: got '-1' (from LARDER_L1_SIZE_GB), allowed: a number above 0"),
        ({"eviction_policy": "FIFO"}, "allowed: one of LRU, IsolatedLRU, ARC, noop"),
        ({"redis_url": "http://x"}, "redis_url: got 'http://x' (from LARDER_REDIS_URL), allowed: a URL like redis://"),
        ({"l1_size_gbs": "1"}, "LARDER_L1_SIZE_GBS in the environment is no setting; did you mean LARDER_L1_SIZE_GB?"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, settings: dict[str, str], text: str) -> None:
    assert text in failed_start(Larder(tmp_path / "larder", **settings))


def test_a_pool_without_room_stops_the_start_with_the_engines_words(tmp_path: Path) -> None:
    log = failed_start(Larder(tmp_path / "larder", l1_size_gb=900_000), EXIT_CANNOT_START)

    assert "starting it again" not in log
    assert "engine could not start" in log
    assert re.search(r"engine: cannot start: .*l1_size_gb", log)


def test_an_unreachable_redis_is_named_without_its_password(tmp_path: Path) -> None:
    log = failed_start(Larder(tmp_path / "larder", redis_url=f"redis://:hush@127.0.0.1:{free_port()}/0"))

    assert "redis_url: got 'redis://:***@127.0.0.1:" in log
    assert "does not answer" in log
    assert "hush" not in log


@pytest.fixture
def external(any_redis: RedisServer, tmp_path: Path) -> Larder:
    return Larder(tmp_path / "larder", redis_url=any_redis.url)


def test_an_external_redis_that_may_drop_keys_is_refused(external: Larder, any_redis: RedisServer) -> None:
    client = any_redis.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.close()

    assert "noeviction is needed" in failed_start(external)


def test_an_external_redis_is_used_and_left_running(external: Larder, any_redis: RedisServer) -> None:
    with external:
        wait_for(lambda: set(pids(external)) == {"engine", "web"}, 20, "only two children")
        assert any_redis.url + ", external" in external.log_tail(1000)
        assert set_quota(external, "alice", 1.0)

    assert any_redis.is_ready()


def test_the_command_explains_itself() -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "larder"), *words], capture_output=True, text=True, check=False
        )

    assert "  server  " in run("--help").stdout
    assert run("serve").returncode == 2
    assert "--l1-size-gb" in run("server", "--help").stdout
    assert "token" not in run("server", "--help").stdout.replace("tokens", "")


def test_redis_counts_as_ready_once_it_has_read_its_data(redis_server: RedisServer) -> None:
    """Until then it refuses whatever it is asked, as the launcher does next, to forget the last run's log levels."""
    with closing(open_redis(redis_server.url)) as client, client.pipeline(transaction=False) as many:
        for number in range(12_000):
            many.set("larder:{default}:filler", number)
        many.execute()
        redis_server.stop()
        redis_server.options = ("--key-load-delay", "100")  # microseconds for each command that it reads
        redis_server.launch()
        launcher = Launcher(load_settings([], {"REDIS_URL": redis_server.url}), {})

        wait_for(lambda: launcher._redis_answers(redis_server.pid), 60, "Redis is ready")

        assert client.delete("larder:{default}:filler") == 1
