"""Two gunicorn workers as one server: counts, killed workers, threads that wait, and what stays behind."""

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.stack import Answer, EngineProcess, WebProcess
from tests.waiting import wait_for

WAITING_PLACES = 2 * 12
TOTAL = re.compile(r'^larder_http_request_total\{method="GET",status="404"\} (\S+)$', re.MULTILINE)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebProcess]:
    """gunicorn without Redis and engine."""
    with WebProcess(tmp_path / "larder", "redis://127.0.0.1:1/0") as process:
        wait_for(lambda: len(workers(process)) == 2, 10, "two workers")
        yield process


def workers(web: WebProcess) -> list[psutil.Process]:
    return psutil.Process(web.pid).children()


def serves(process: psutil.Process) -> bool:
    """Whether it still runs; nobody may have collected it yet."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def counted(web: WebProcess) -> float:
    found = TOTAL.search(web.http("GET", "/metrics").body.decode())
    return float(found[1]) if found else 0.0


def ask_many(web: WebProcess, count: int) -> None:
    """Unknown paths over connections of their own, from several threads, so that both workers get some."""
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda _: web.http("GET", "/unknown"), range(count))} == {404}


def test_counts_are_those_of_all_workers_and_outlive_a_killed_one(web: WebProcess) -> None:
    ask_many(web, 40)
    assert {counted(web) for _ in range(6)} == {40}

    for round_number in (1, 2, 3):
        victim = workers(web)[0]
        victim.kill()
        wait_for(lambda gone=victim.pid: gone not in [w.pid for w in workers(web)], 10, "the worker is gone")
        wait_for(lambda: len(workers(web)) == 2, 10, "it is replaced")
        assert counted(web) == 40 * round_number
        ask_many(web, 40)
        assert {counted(web) for _ in range(6)} == {40 * (round_number + 1)}

    metrics_dir = Path(str(web.settings["data_dir"])) / "run" / "http_metrics"
    assert {file.stem.rpartition("_")[2] for file in metrics_dir.iterdir()} <= {"0", "1", "main"}


def test_workers_have_names(web: WebProcess) -> None:
    wait_for(
        lambda: sorted(worker.name() for worker in workers(web)) == ["larder-web-0", "larder-web-1"], 10, "their names"
    )


def test_a_reload_keeps_counts_and_serves_on(web: WebProcess) -> None:
    ask_many(web, 20)
    before = {worker.pid for worker in workers(web)}

    web.send(signal.SIGHUP)
    wait_for(lambda: len(now := {w.pid for w in workers(web)}) == 2 and not now & before, 20, "new workers")
    ask_many(web, 20)

    assert counted(web) == 40


def test_a_stop_leaves_nothing_but_the_data_directory(tmp_path: Path) -> None:
    with WebProcess(tmp_path, "redis://127.0.0.1:1/0") as process:
        ask_many(process, 4)
        assert process.stop() == 0

    assert [path.name for path in (tmp_path / "data" / "run").iterdir()] == []


def test_counts_begin_at_zero_after_kill_minus_nine(tmp_path: Path) -> None:
    web = WebProcess(tmp_path, "redis://127.0.0.1:1/0")
    with web:
        ask_many(web, 10)
        orphans = workers(web)
        web.kill()
        wait_for(lambda: not any(serves(orphan) for orphan in orphans), 20, "the workers follow their master")
        web.start()

        assert counted(web) == 0


def test_clients_that_stop_in_mid_request_hold_up_probes_for_seconds_only(
    engine_process: EngineProcess, web_process: WebProcess
) -> None:
    address = ("127.0.0.1", int(str(web_process.settings["http_port"])))
    with ExitStack() as held:
        for _ in range(40):
            half_open = held.enter_context(socket.create_connection(address, timeout=10))
            half_open.sendall(b"GET /healthcheck HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        began = time.monotonic()

        answer = web_process.http("GET", "/healthcheck", timeout_s=15)
        took_s = time.monotonic() - began

    assert answer.status == 200
    assert took_s < 9.0


def test_probes_answer_while_every_place_to_wait_is_taken(
    engine_process: EngineProcess, web_process: WebProcess
) -> None:
    answers: list[Answer] = []

    def clear() -> None:
        answers.append(web_process.http("POST", "/clear-cache", timeout_s=30))

    engine_process.send(signal.SIGSTOP)
    try:
        threads = [threading.Thread(target=clear, name=f"clear-{number}") for number in range(64)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) >= len(threads) - WAITING_PLACES, 10, "those without a place are refused")
        refused = list(answers)
        healthy = web_process.http("GET", "/", timeout_s=1.0)
    finally:
        engine_process.send(signal.SIGCONT)
        for thread in threads:
            thread.join(30)

    assert healthy.status == 200
    assert {answer.status for answer in refused} == {503}
    assert any(
        answer.headers.get("Retry-After") == "1" and "already wait" in answer.json()["reason"] for answer in refused
    )
    assert len(answers) == len(threads)
    assert {answer.status for answer in answers} == {200, 503}
