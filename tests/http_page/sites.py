"""The running products that the API's page is held against, each a real stack with two gunicorn workers.

name        Redis  engine  what is special
----------  -----  ------  ---------------------------------------------------------------------------------------
full        yes    yes     the adapters of tests/e2e/l2_stack.py, scripts on, two clients (below) with two objects
bare        yes    yes     no L2, engine-driven clients only, scripts off
engineless  yes    no      no engine ever was there
lonely      no     no      Redis never was there

`full` and `bare` have the internal API server of the engine too. The clients of `full`: instance 7 of MODEL, whose KV
memory the server copies from, and instance 8 of another model, which copies by itself.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contract.keys import Keys
from contract.prefetch_jobs import FAILED, RUNNING, PrefetchJob, PrefetchStore, Rule, new_request_id
from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.e2e.l2_stack import SLOT, start_l2_stack
from tests.http_page.exchange import Site
from tests.stack import EngineProcess, RedisServer, WebProcess, free_port
from tests.waiting import wait_for

MODEL, INSTANCE, OTHER_INSTANCE = "page/model", 7, 8
SHAPE = (2, 48, 16, 1, 4)
CHUNK, BLOCKS = 256, 16


@dataclass
class Product:
    """What runs, its web tier as `web` and the engine's own server as `own`."""

    web: Site
    own: Site
    parts: dict[str, Any] = field(default_factory=dict)


def port_of(web: WebProcess) -> int:
    return int(str(web.settings["http_port"]))


def own_server() -> dict[str, object]:
    """Settings that switch the engine's own server on."""
    return {
        "internal_api_server_enabled": "true",
        "internal_api_server_host": "127.0.0.1",
        "internal_api_server_port_start": free_port(),
    }


@contextmanager
def job_store(redis: RedisServer) -> Iterator[PrefetchStore]:
    client = redis.client()
    try:
        yield PrefetchStore(client, Keys("default"))
    finally:
        client.close()


def job_that(jobs: PrefetchStore, engine: EngineProcess, status: str) -> str:
    """The id of a job whose record looks as if the engine ran it, or as if that failed."""
    job = PrefetchJob(new_request_id(), MODEL, 1, "")
    assert jobs.create(job, "[]")
    boot_id = engine.record()["boot_id"]
    made = jobs.load(job.request_id)
    assert made is not None
    begun = dataclasses.replace(made, status=RUNNING, boot_id=boot_id, total_keys=4)
    assert jobs.write(begun, Rule.START, boot_id, stamp="started_at")
    if status == FAILED:
        over = dataclasses.replace(begun, status=FAILED, found_keys=1, error="broken")
        assert jobs.write(over, Rule.OWN, boot_id, stamp="finished_at")
    return job.request_id


@contextmanager
def full(directory: Path) -> Iterator[Product]:
    settings = {**own_server(), "run_script_enabled": "true", "script_allowed_imports": "math,json"}
    patience = {"l2_lookup_deadline_seconds": 20}
    with ExitStack() as parts:
        stack = parts.enter_context(start_l2_stack(directory, eviction_policy="IsolatedLRU", **settings, **patience))
        assert stack.http("PUT", "/quota/_default", {"limit_gb": 1}).status == 200
        address = f"tcp://127.0.0.1:{stack.engine.port}"
        memory = parts.enter_context(SharedKV([SHAPE] * 2))
        client = parts.enter_context(LarderClient(address, MODEL, instance_id=INSTANCE))
        other = parts.enter_context(LarderClient(address, "page/other", instance_id=OTHER_INSTANCE))
        client.register_shared(memory)
        other.register_arrays([np.zeros(SHAPE, np.float16)])
        client.store(list(range(2 * CHUNK)), [list(range(2 * BLOCKS))], "request-page")
        client.end_session("request-page")
        stack.wait_for_objects(2, ["fs", "dax"])
        stack.device("dax-page"), stack.device("dax-small", slots=1)
        jobs = parts.enter_context(job_store(stack.redis))
        values = {
            "instance": INSTANCE, "other": OTHER_INSTANCE, "slot": SLOT, "directory": str(directory),
            "first": stack.entries("adapter=fs")[0]["key"]["chunk_hash_hex"],
            "http_port": port_of(stack.web), "pid": stack.engine.pid,
            **{f"{end}{number}": job_that(jobs, stack.engine, end) for end in ("running", "failed") for number in "12"},
        }  # fmt: skip
        yield Product(
            Site(port_of(stack.web), values),
            Site(int(str(settings["internal_api_server_port_start"])), values),
            {"stack": stack, "client": client, "memory": memory},
        )


@contextmanager
def bare(directory: Path) -> Iterator[Product]:
    settings = {**own_server(), "supported_transfer_mode": "engine_driven"}
    with (
        start_redis("redis", directory / "redis") as redis,
        EngineProcess(directory / "larder", redis.url, **settings) as engine,
        WebProcess(directory / "larder", redis.url) as web,
    ):
        wait_for(web.has_all_web_workers, 20, "both web workers are there")
        own = Site(int(str(settings["internal_api_server_port_start"])))
        yield Product(Site(port_of(web)), own, {"redis": redis, "engine": engine})


@contextmanager
def engineless(directory: Path) -> Iterator[Site]:
    with start_redis("redis", directory / "redis") as redis, WebProcess(directory / "larder", redis.url) as web:
        yield Site(port_of(web))


@contextmanager
def lonely(directory: Path) -> Iterator[Site]:
    with WebProcess(directory / "larder", "redis://127.0.0.1:1/0", run_script_enabled="true") as web:
        yield Site(port_of(web))
