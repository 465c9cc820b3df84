"""HTTP load from a process of its own: wrk when it is on PATH, else a small generator of ours.

Keep-alive connections, one request outstanding on each, one thread. A report has requests per second, latencies
in milliseconds, and how many answers were not 2xx. As a program, `python -m bench.load HOST PORT METHOD PATH
CONNECTIONS SECONDS [BODY]` is our own generator and prints its report as JSON.
"""

import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import percentile

RECEIVE_BYTES = 1 << 18
TOLERATED = 0.01
WRK_SCRIPT = Path(__file__).with_name("request.lua")


@dataclass
class Connection:
    """One keep-alive connection: its request, the unread part of an answer, and when it asked."""

    sock: socket.socket
    request: bytes
    received: bytes = b""
    asked_at: float = 0.0

    def ask(self) -> None:
        self.received = b""
        self.asked_at = time.perf_counter()
        self.sock.sendall(self.request)

    def answer_status(self) -> int | None:
        """The status of the answer once it is here whole, else None. Wants a Content-Length."""
        head, gap, body = self.received.partition(b"\r\n\r\n")
        if not gap:
            return None
        length = next(
            int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        return int(head.split(b" ", 2)[1]) if len(body) >= length else None


def open_connection(host: str, port: int, method: str, path: str, body: str) -> Connection:
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{content}\r\n"
    return Connection(sock, (head + body).encode())


def run(
    host: str, port: int, method: str, path: str, connections: int, duration_s: float, body: str = ""
) -> dict[str, Any]:
    """Keeps `connections` requests outstanding for `duration_s` seconds and says how that went."""
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        connection = open_connection(host, port, method, path, body)
        selector.register(connection.sock, selectors.EVENT_READ, connection)
        connection.ask()

    latencies_ms: list[float] = []
    failures = 0
    started = time.perf_counter()
    while time.perf_counter() - started < duration_s:
        for key, _ in selector.select(timeout=0.5):
            connection = key.data
            part = connection.sock.recv(RECEIVE_BYTES)
            if not part:
                raise ConnectionError(f"{host}:{port} closed a connection under load")
            connection.received += part
            status = connection.answer_status()
            if status is None:
                continue
            latencies_ms.append((time.perf_counter() - connection.asked_at) * 1000)
            failures += not 200 <= status < 300
            connection.ask()
    elapsed = time.perf_counter() - started
    for key in list(selector.get_map().values()):
        key.data.sock.close()
    selector.close()
    return {
        "requests": len(latencies_ms),
        "requests_per_s": len(latencies_ms) / elapsed,
        "p50_ms": percentile(latencies_ms, 50),
        "p99_ms": percentile(latencies_ms, 99),
        "failures": failures,
    }


class Load:
    """A generator that runs beside what is measured; `finish` waits for its end and gives its report."""

    def __init__(self, url: str, method: str, path: str, connections: int, duration_s: float, body: str = "") -> None:
        self.generator = "wrk" if shutil.which("wrk") else "bench.load"
        if self.generator == "wrk":
            sizes = ["-t1", f"-c{connections}", f"-d{max(1, round(duration_s))}s"]
            command = ["wrk", *sizes, "--latency", "-s", str(WRK_SCRIPT), url + path]
        else:
            host, _, port = url.removeprefix("http://").partition(":")
            words = [host, port, method, path, str(connections), str(duration_s), *([body] if body else [])]
            command = [sys.executable, "-m", "bench.load", *words]
        environ = {**os.environ, "LOAD_METHOD": method, "LOAD_BODY": body}
        self.process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)

    def finish(self) -> dict[str, Any]:
        """The report; RuntimeError when the generator failed or more than TOLERATED of the answers were no success."""
        output, _ = self.process.communicate(timeout=120)
        if self.process.returncode:
            raise RuntimeError(f"{self.generator} ended with {self.process.returncode}")
        report = read_wrk(output) if self.generator == "wrk" else json.loads(output)
        if report["failures"] > TOLERATED * report["requests"]:
            raise RuntimeError(f"{report['failures']} of {report['requests']} answers under load were not 2xx")
        if report["failures"]:
            print(f"note: {report['failures']} of {report['requests']} answers under load were not 2xx")
        return report


WRK_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def read_wrk(output: str) -> dict[str, Any]:
    """The report in what wrk prints."""
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    report: dict[str, Any] = {"failures": int(refused[1]) if refused else 0}
    report["failures"] += sum(int(count) for count in broken.groups()) if broken else 0
    for name, pattern in (("p50_ms", r"50%\s+([\d.]+)(us|ms|s)"), ("p99_ms", r"99%\s+([\d.]+)(us|ms|s)")):
        found = re.search(pattern, output)
        assert found, f"wrk printed no {name}: {output}"
        report[name] = float(found[1]) * WRK_UNITS_MS[found[2]]
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, f"wrk printed no rate: {output}"
    report["requests_per_s"] = float(rate[1])
    total = re.search(r"(\d+) requests in", output)
    assert total, f"wrk printed no total: {output}"
    report["requests"] = int(total[1])
    return report


if __name__ == "__main__":
    host, port, method, path, connections, duration_s, *body = sys.argv[1:]
    print(json.dumps(run(host, int(port), method, path, int(connections), float(duration_s), *body)))
