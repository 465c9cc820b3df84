"""A Larder of the demonstration's own: started on free ports, in a directory of its own, and stopped again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Addresses:
    """Where a Larder answers: its data plane, and its HTTP API."""

    data_plane: str
    http: str


@contextmanager
def running_larder(directory: Path) -> Iterator[Addresses]:
    """A server that is ready; RuntimeError with the end of its log when it does not become so."""
    data_port, http_port, redis_port = free_ports(3)
    flags = ["--l1-size-gb", "0.25", "--port", str(data_port), "--http-host", "127.0.0.1"]
    flags += ["--http-port", str(http_port), "--redis-port", str(redis_port), "--data-dir", str(directory / "data")]
    addresses = Addresses(f"tcp://127.0.0.1:{data_port}", f"http://127.0.0.1:{http_port}")
    log_path = directory / "larder.log"
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C then reaches this program alone, which stops the server in good order.
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "larder"), "server", *flags],
            cwd=ROOT, env=_clean_environ(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_healthy(server, addresses, log_path)
        yield addresses
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nobody listened on a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def read_url(url: str) -> str:
    """The body of a successful GET; OSError otherwise."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def _clean_environ() -> dict[str, str]:
    """This environment without settings that are meant for another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LARDER_") and name != "REDIS_URL"}


def _wait_until_healthy(server: "subprocess.Popen[bytes]", addresses: Addresses, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            read_url(addresses.http + "/healthcheck")
            return
        except OSError:
            time.sleep(0.05)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])
    raise RuntimeError(f"Larder was not healthy after {START_TIMEOUT_S:g} s or ended:\n{tail}")
