"""`larder prefetch`: where the token ids come from, what the counts say, and a job that is left or cancelled."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.e2e.cli_runner import Ended, Terminal, argv, clean_environ, larder
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

MODEL = "warm/model"
CHUNKS = 8
TOKENS = list(range(CHUNKS * 256))
AS_TEXT = " ".join(map(str, TOKENS))
SLOW_S = 0.5

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """A server with eight chunks in a storage that reads slowly, and nothing of it in L1."""
    place = tmp_path_factory.mktemp("prefetch")
    files = {"type": "fs", "base_path": str(place / "objects")}
    slow = {"type": "fault", "inner": files, "latency_rate": 1.0, "latency_s": SLOW_S}
    with start_redis("redis", place / "redis") as redis, WebProcess(place / "larder", redis.url) as running:
        with EngineProcess(place / "larder", redis.url, l2_adapter=json.dumps(files)) as engine, StoredBy(engine):
            wait_for(lambda: stored(running) == CHUNKS, 20, "all is in L2")
        with (
            EngineProcess(place / "larder", redis.url, l2_adapter=json.dumps(slow)) as engine,
            SharedKV([(2, 16, 16, 1, 8)]) as memory,
            LarderClient(address(engine), MODEL) as client,
        ):
            client.register_shared(memory)
            wait_for(lambda: stored(running) == CHUNKS, 20, "the catalog is read")
            yield running


def address(engine: EngineProcess) -> str:
    return f"tcp://127.0.0.1:{engine.port}"


class StoredBy:
    """A client that has stored TOKENS."""

    def __init__(self, engine: EngineProcess) -> None:
        self.memory = SharedKV([(2, 16 * CHUNKS, 16, 1, 8)])
        self.client = LarderClient(address(engine), MODEL)

    def __enter__(self) -> None:
        self.client.register_shared(self.memory)
        self.client.store(TOKENS, list(range(16 * CHUNKS)), "r")
        self.client.end_session("r")

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        self.memory.close()


def stored(web: WebProcess) -> int:
    answer = web.http("GET", "/status")
    if answer.status != 200:
        return 0
    (adapter,) = answer.json()["storage_manager"]["l2_adapters"]
    return int(adapter["stored_object_count"]) if adapter["catalog"]["complete"] else 0


@pytest.fixture
def cold(web: WebProcess) -> WebProcess:
    """The same, with L1 empty."""
    assert web.http("POST", "/clear-cache").status == 200
    return web


def prefetch(web: WebProcess, *words: str, stdin: str = AS_TEXT) -> Ended:
    return larder("prefetch", "--model", MODEL, "--url", web.url, *words, stdin=stdin)


def jobs(web: WebProcess) -> list[dict[str, object]]:
    return list(web.http("GET", "/jobs/prefetch").json()["jobs"])


def test_ids_from_a_pipe_are_loaded_and_counted(cold: WebProcess) -> None:
    done = prefetch(cold, "--json")

    assert (done.code, done.err) == (0, "")
    job = done.json()
    assert {name: job[name] for name in ("status", "chunks", "total_keys", "found_keys", "missing_keys")} == {
        "status": "completed",
        "chunks": CHUNKS,
        "total_keys": CHUNKS,
        "found_keys": CHUNKS,
        "missing_keys": 0,
    }
    again = prefetch(cold)
    assert again.code == 0
    assert f"in L1 before    {CHUNKS}" in again.out


def test_ids_from_a_file_that_are_not_all_there(cold: WebProcess, tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text(json.dumps([*TOKENS[:256], *([7] * 256)]))

    done = prefetch(cold, str(file), "--json")

    assert done.code == 0, "what is nowhere is no failure"
    assert (done.json()["found_keys"], done.json()["missing_keys"]) == (1, 1)


def test_less_than_a_chunk_is_nothing_to_do(cold: WebProcess) -> None:
    done = prefetch(cold, "--json", stdin="1 2 3")

    assert done.code == 0
    assert (done.json()["status"], done.json()["chunks"]) == ("noop", 0)
    assert "less than a chunk" in done.error_line()


def test_without_waiting_the_id_is_printed(cold: WebProcess) -> None:
    request_id = prefetch(cold, "--no-wait").out.strip()

    assert request_id in [job["request_id"] for job in jobs(cold)]
    taken = cold.http("GET", f"/l2/prefetch/{request_id}?wait=30", timeout_s=40)
    assert taken.json()["status"] == "completed"


def test_patience_has_an_end_and_the_job_goes_on(cold: WebProcess) -> None:
    done = prefetch(cold, "--give-up-after", "1")

    assert (done.code, done.out) == (1, "")
    assert "it goes on" in done.error_line()
    wait_for(lambda: jobs(cold)[0]["status"] == "completed", 30, "the job ends by itself")


def test_a_terminal_sees_a_bar_and_then_the_counts(cold: WebProcess, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text(AS_TEXT)
    with Terminal("prefetch", "--model", MODEL, "--url", cold.url, str(file)) as terminal:
        terminal.wait_for("keys")
        assert terminal.end() == 0
        assert "━" in terminal.output
        assert f"loaded from L2  {CHUNKS}" in terminal.text


def test_without_a_terminal_an_interrupt_leaves_the_job_alone(cold: WebProcess, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text(AS_TEXT)
    known = len(jobs(cold))
    words = argv("prefetch", "--model", MODEL, "--url", cold.url, str(file))
    with subprocess.Popen(words, env=clean_environ(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        wait_for(lambda: len(jobs(cold)) > known, 20, "the job is submitted")
        # The job is listed before its submitter has read the answer.
        wait_for(lambda: jobs(cold)[0]["status"] == "running", 20, "the job runs")
        program.send_signal(signal.SIGINT)
        said = program.stderr.read().decode()

    assert program.returncode == 130, said
    wait_for(lambda: jobs(cold)[0]["status"] == "completed", 30, "the job ends by itself")


@pytest.mark.parametrize(("answer", "code", "status"), [("y\n", 1, "cancelled"), ("n\n", 130, "completed")])
def test_ctrl_c_asks_whether_to_cancel(cold: WebProcess, tmp_path: Path, answer: str, code: int, status: str) -> None:
    file = tmp_path / "ids"
    file.write_text(AS_TEXT)
    with Terminal("prefetch", "--model", MODEL, "--url", cold.url, str(file)) as terminal:
        terminal.wait_for("keys")
        terminal.type("\x03")
        terminal.wait_for("[y/N]")
        terminal.type(answer)
        assert terminal.end() == code, terminal.text
        assert ("cancelled" if code == 1 else "goes on") in terminal.text

    wait_for(lambda: jobs(cold)[0]["status"] == status, 30, f"the job is {status}")
