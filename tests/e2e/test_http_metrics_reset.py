"""A reset of the metrics under two gunicorn workers, through killed workers, a reload, and a new engine."""

import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
from prometheus_client.parser import text_string_to_metric_families

from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

NOT_FOUND = 'larder_http_request_total{method="GET",status="404"}'
WRITTEN = "lmcache_mp_l1_write_chunks_total"
OBJECTS = "larder_l1_objects"
#: Moved by time, or by the requests of the test itself.
RESTLESS = ("larder_http_request", "lmcache_mp_l1_eviction_loop_ticks", "larder_command", "process_", "python_")


def scrape(web: WebProcess) -> dict[str, float]:
    """All samples by the text before their value."""
    lines = web.http("GET", "/metrics").body.decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def counters(web: WebProcess) -> dict[str, float]:
    families = text_string_to_metric_families(web.http("GET", "/metrics").body.decode())
    return {
        f"{sample.name}{sample.labels}": sample.value
        for family in families
        if family.type in ("counter", "histogram") and not family.name.startswith(RESTLESS)
        for sample in family.samples
    }


def ask_for_nothing(web: WebProcess, count: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda _: web.http("GET", "/unknown"), range(count))} == {404}


def store(engine: EngineProcess, chunks: int) -> None:
    address = f"tcp://127.0.0.1:{engine.port}"
    with SharedKV([(2, 64, 16, 1, 8)]) as memory, LarderClient(address, "reset/model") as client:
        client.register_shared(memory)
        client.store(list(range(256 * chunks)), [list(range(16 * chunks))], "request-1")


def reset(web: WebProcess) -> None:
    answer = web.http("POST", "/metrics/reset")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"ok", "text/plain; charset=utf-8")


def kill_a_worker(web: WebProcess) -> None:
    victim = psutil.Process(web.pid).children()[0]
    victim.kill()
    wait_for(lambda: len(now := psutil.Process(web.pid).children()) == 2 and victim not in now, 20, "it is replaced")


def test_all_counts_begin_again_from_zero_on_every_worker(
    engine_process: EngineProcess, web_process: WebProcess
) -> None:
    ask_for_nothing(web_process, 20)
    store(engine_process, 2)
    wait_for(lambda: scrape(web_process)[WRITTEN] == 2, 20, "the store is counted")

    reset(web_process)

    assert set(counters(web_process).values()) == {0.0}
    assert {scrape(web_process)[NOT_FOUND] for _ in range(6)} == {0}
    assert scrape(web_process)[OBJECTS] == 2
    assert scrape(web_process)["process_cpu_seconds_total"] > 0

    kill_a_worker(web_process)
    assert {scrape(web_process)[NOT_FOUND] for _ in range(6)} == {0}
    ask_for_nothing(web_process, 10)
    assert {scrape(web_process)[NOT_FOUND] for _ in range(6)} == {10}

    before = {worker.pid for worker in psutil.Process(web_process.pid).children()}
    web_process.send(signal.SIGHUP)
    wait_for(
        lambda: len(now := {w.pid for w in psutil.Process(web_process.pid).children()}) == 2 and not now & before,
        20, "new workers",
    )  # fmt: skip
    assert {scrape(web_process)[NOT_FOUND] for _ in range(6)} == {10}


def test_a_new_engine_and_a_new_gunicorn_need_no_baseline(
    engine_process: EngineProcess, web_process: WebProcess
) -> None:
    ask_for_nothing(web_process, 5)
    store(engine_process, 3)
    reset(web_process)
    engine_process.kill()
    wait_for(lambda: scrape(web_process)["engine_up"] == 0, 20, "the engine is away")
    reset(web_process)

    engine_process.start()
    wait_for(lambda: scrape(web_process).get(WRITTEN) == 0, 20, "its counts are there")
    store(engine_process, 1)
    wait_for(lambda: scrape(web_process)[WRITTEN] == 1, 20, "the store is counted")
    web_process.stop()
    web_process.start()
    ask_for_nothing(web_process, 3)

    samples = scrape(web_process)
    assert (samples[NOT_FOUND], samples[WRITTEN]) == (3, 1)
    assert min(counters(web_process).values()) >= 0
