"""How many requests does the web tier answer, beside a bare static Flask route under the same gunicorn?

20 threads instead of the usual 16: four of a worker's threads are kept for probes and may not wait for the engine, and
of 16 connections one worker may well get more than twelve.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.load import Load
from bench.report import Row, interleave
from tests.stack import Larder, Part, answers, free_port
from tests.waiting import wait_for

CONNECTIONS = 16
WORKERS = 2
THREADS = 20
ROUNDS = 3
SECONDS = 4.0
SNAPSHOT_LIMIT = 0.6
COMMAND_LIMIT = 0.35


class BareFlask(Part):
    """The yardstick under gunicorn, with our number of workers and threads."""

    name = "bare"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.url = f"http://127.0.0.1:{free_port()}"

    def command(self) -> Sequence[str]:
        sizes = ["--workers", str(WORKERS), "--threads", str(THREADS), "--worker-class", "gthread"]
        place = ["--bind", self.url.removeprefix("http://"), "--no-control-socket"]
        return [sys.executable, "-m", "gunicorn", *sizes, *place, "bench.bare_flask:app"]

    def is_ready(self) -> bool:
        return answers(self.url + "/", status=200)


def rate(url: str, method: str, path: str, body: str = "") -> float:
    return float(Load(url, method, path, CONNECTIONS, SECONDS, body).finish()["requests_per_s"])


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory() as directory,
        BareFlask(Path(directory, "bare")) as bare,
        Larder(Path(directory, "larder"), web_workers=WORKERS, web_threads=THREADS, log_level="WARNING") as larder,
    ):
        put = larder.http("PUT", "/quota/bench", {"limit_gb": 1})
        assert put.status == 200, put.body
        wait_for(lambda: larder.http("GET", "/status").status == 200, 10, "a status snapshot")
        rates = interleave(
            {
                "bare": lambda: rate(bare.url, "GET", "/"),
                "snapshot": lambda: rate(larder.url, "GET", "/status"),
                "command": lambda: rate(larder.url, "PUT", "/quota/bench", '{"limit_gb": 1}'),
            },
            ROUNDS,
        )
    yardstick = rates["bare"], "req/s", "bare static Flask route"
    return [
        Row("snapshot read, GET /status", rates["snapshot"], *yardstick, SNAPSHOT_LIMIT, at_least=True),
        Row("command round trip, PUT /quota", rates["command"], *yardstick, COMMAND_LIMIT, at_least=True),
    ]
