"""Does HTTP load slow the data plane more than any other program that uses as much CPU?"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.load import Load
from bench.report import Row, percentile
from bench.short_operations import CHUNKS, INSTANCE, REGISTRATION, cache_key
from tests.stack import Larder
from tests.unit.dataplane.raw_client import RawClient

CONNECTIONS = 16
ROUNDS = 4
SECONDS = 4.0
LIMIT = 1.3
BURNERS = 2
BURNER_PERIOD_S = 0.01


def burn(share: float, stopped: "multiprocessing.synchronize.Event") -> None:
    """Keeps one core busy for `share` of the time, in slices of BURNER_PERIOD_S."""
    while not stopped.is_set():
        start = time.perf_counter()
        while time.perf_counter() - start < BURNER_PERIOD_S * share:
            pass
        stopped.wait(max(0.0, BURNER_PERIOD_S - (time.perf_counter() - start)))


@contextmanager
def burners(cores: float) -> Iterator[None]:
    """Processes that use `cores` cores together while the block runs."""
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    processes = [context.Process(target=burn, args=(cores / BURNERS, stopped)) for _ in range(BURNERS)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        stopped.set()
        for process in processes:
            process.join()


def cpu_seconds(root: psutil.Process) -> float:
    """User and system time of a process and all below it, ended children included."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def operation_times(client: RawClient, until: Callable[[], bool]) -> list[float]:
    """Seconds of each bookkeeping operation of requests sent one after the other, until `until` says so."""
    samples: list[float] = []
    number = 0
    while not until():
        number += 1
        request = f"read-{number}"
        for operation, *parameters in (
            ("lookup", cache_key(0, request, None), 1),
            ("query_prefetch_status", request),
            ("prepare_retrieve", cache_key(0, request, 0), INSTANCE),
            ("commit_retrieve", cache_key(0, request, 0), INSTANCE),
            ("end_session", request),
        ):
            before = time.perf_counter()
            answer = client.call(str(operation), *parameters)
            samples.append(time.perf_counter() - before)
            assert operation != "query_prefetch_status" or answer == CHUNKS, f"{CHUNKS} chunks wanted, {answer} found"
    return samples


def measure() -> list[Row]:
    beside_http: list[float] = []
    beside_burner: list[float] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        Larder(Path(directory), log_level="WARNING") as larder,
        RawClient(larder.port) as client,
    ):
        client.call("register_kv_cache_engine_driven_context", REGISTRATION)
        client.call("prepare_store", cache_key(0, "write", 0), INSTANCE)
        assert client.call("commit_store", cache_key(0, "write", 0), INSTANCE, b"")
        for _ in range(ROUNDS):
            samples, cores = under_http_load(larder, client)
            beside_http += samples
            with burners(cores):
                deadline = time.perf_counter() + SECONDS
                beside_burner += operation_times(client, lambda end=deadline: time.perf_counter() > end)
    http_ms, burner_ms = (percentile(samples, 99) * 1e3 for samples in (beside_http, beside_burner))
    return [Row("data-plane p99 beside HTTP load", http_ms, burner_ms, "ms", "beside a burner of equal CPU", LIMIT)]


def under_http_load(larder: Larder, client: RawClient) -> tuple[list[float], float]:
    """Operation times beside snapshot reads, and the cores that load, web tier and Redis used together."""
    load = Load(larder.url, "GET", "/status", CONNECTIONS, SECONDS)
    busy = [psutil.Process(larder.pid), psutil.Process(load.process.pid)]
    engine = psutil.Process(larder.engine_pid())
    before, started = sum(map(cpu_seconds, busy)) - cpu_seconds(engine), time.perf_counter()
    end = started + SECONDS - 0.5
    used: list[float] = []

    def is_over() -> bool:
        if time.perf_counter() < end:
            return False
        used.append((sum(map(cpu_seconds, busy)) - cpu_seconds(engine) - before) / (time.perf_counter() - started))
        return True

    samples = operation_times(client, is_over)
    load.finish()
    return samples, min(used[0], float(BURNERS))
