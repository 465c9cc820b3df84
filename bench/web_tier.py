"""How many requests does the web tier answer, beside a bare static Flask route under the same gunicorn?

A command that changes what a snapshot shows is answered after the next publication, of which there are at most twenty
a second; its row has no limit. 20 threads instead of the usual 16: four of a worker's threads are kept for probes and
may not wait for the engine, and of 16 connections one worker may well get more than twelve.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.load import Load
from bench.report import Row, interleave
from engine.dataplane.client import LarderClient, SharedKV
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
        # A configuration of its own, though an empty one: ours would be found in this directory.
        place = ["--config", "python:bench.bare_flask", "--bind", self.url.removeprefix("http://")]
        return [sys.executable, "-m", "gunicorn", *sizes, *place, "--no-control-socket", "bench.bare_flask:app"]

    def is_ready(self) -> bool:
        return answers(self.url + "/", status=200)


def rate(url: str, method: str, path: str, body: str = "") -> float:
    return float(Load(url, method, path, CONNECTIONS, SECONDS, body).finish()["requests_per_s"])


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory() as directory,
        BareFlask(Path(directory, "bare")) as bare,
        Larder(Path(directory, "larder"), web_workers=WORKERS, web_threads=THREADS, log_level="WARNING") as larder,
        SharedKV([(2, 4, 16, 1, 8)]) as memory,
        LarderClient(f"tcp://127.0.0.1:{larder.port}", "bench/model") as client,
    ):
        client.register_shared(memory)
        check = f"/kvcache/check?instance_id={client.instance_id}&block_ids=0&chunk_size=1"
        wait_for(lambda: larder.http("GET", check).status == 200, 10, "the engine answers commands")
        rates = interleave(
            {
                "bare": lambda: rate(bare.url, "GET", "/"),
                "snapshot": lambda: rate(larder.url, "GET", "/status"),
                "command": lambda: rate(larder.url, "GET", check),
                "change": lambda: rate(larder.url, "PUT", "/quota/bench", '{"limit_gb": 1}'),
            },
            ROUNDS,
        )
    yardstick = rates["bare"], "req/s", "bare static Flask route"
    return [
        Row("snapshot read, GET /status", rates["snapshot"], *yardstick, SNAPSHOT_LIMIT, at_least=True),
        Row("command round trip, GET /kvcache/check", rates["command"], *yardstick, COMMAND_LIMIT, at_least=True),
        Row("command that awaits a snapshot, PUT /quota", rates["change"], *yardstick, None),
    ]
