"""What a fresh server's /metrics has, beside docs/metrics.md; and that it tells what happened, through restarts."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from contract.commands import COMMANDS
from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.stack import ROOT, EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for

ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", re.MULTILINE)
#: Counted by the test's own questions, and by time.
RESTLESS = ("larder_http", "process_", "lmcache_mp_l1_eviction_loop_ticks", "larder_command")
#: Of 256 tokens in the layout that look_up registers: K and V, 16 blocks of 16 slots, one head of 8, float16.
OBJECT_BYTES = 2 * 256 * 8 * 2


class Stack:
    def __init__(self, redis: RedisServer, engine: EngineProcess, web: WebProcess) -> None:
        self.redis, self.engine, self.web = redis, engine, web
        self.first = self.families()

    def families(self) -> dict[str, Metric]:
        """By the name that # TYPE has."""
        text = self.web.http("GET", "/metrics").body.decode()
        assert len(re.findall(r"^# TYPE ", text, re.MULTILINE)) == len(set(re.findall(r"^# TYPE (\S+)", text, re.M)))
        found = text_string_to_metric_families(text)
        return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in found}

    def value(self, name: str, **labels: str) -> float:
        """Of the samples with these labels, summed; there must be one."""
        samples = [sample for family in self.families().values() for sample in family.samples if sample.name == name]
        chosen = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
        assert chosen, f"{name} {labels} is not there"
        return sum(chosen)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack_in(tmp_path_factory.mktemp("metrics")) as shared:
        yield shared


@contextmanager
def stack_in(directory: Path) -> Iterator[Stack]:
    disk = json.dumps({"type": "fs", "base_path": str(directory / "kv")})
    with (
        start_redis("redis", directory / "redis") as redis,
        EngineProcess(directory / "larder", redis.url, l2_adapter=disk) as engine,
        WebProcess(directory / "larder", redis.url) as web,
    ):
        yield Stack(redis, engine, web)


def test_the_page_has_what_a_fresh_server_has(stack: Stack) -> None:
    page = {name: (kind, labels) for name, kind, labels in ROW.findall((ROOT / "docs/metrics.md").read_text())}
    served = {}
    for name, family in stack.first.items():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        served[name] = (family.type, ", ".join(f"`{label}`" for label in labels))
        assert family.samples, f"{name} has no series yet"

    assert page == served


def test_all_is_there_from_the_start_and_at_zero(stack: Stack) -> None:
    counted = {
        f"{sample.name}{sample.labels}": sample.value
        for name, family in stack.first.items()
        if family.type in ("counter", "histogram") and not name.startswith(RESTLESS)
        for sample in family.samples
        if sample.labels.get("operation") != "scan"  # the catalog is filled at every start
    }
    assert len(counted) > 300
    assert {series: value for series, value in counted.items() if value} == {}

    def labels_of(name: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in stack.first[name].samples}

    assert labels_of("larder_command_seconds", "op") == set(COMMANDS)
    assert {"/status", "/l2/prefetch/<request_id>", "(none)"} <= labels_of("larder_http_errors_total", "route")
    assert {"/status", "/quota/<cache_salt>"} <= labels_of("larder_http_request_duration_seconds", "route")
    assert {"heartbeat", "command-loop", "l1-eviction"} <= labels_of("larder_thread_active", "thread")


def test_requests_and_commands_are_told_by_route_and_name(stack: Stack) -> None:
    errors = {"route": "/quota/<cache_salt>", "method": "PUT", "kind": "client"}
    before = stack.value("larder_http_errors_total", **errors)

    stack.web.http("PUT", "/quota/alice", {"limit_gb": 1})
    stack.web.http("PUT", "/quota/alice", {"limit_gb": "much"})

    assert stack.value("larder_http_errors_total", **errors) == before + 1
    wait_for(lambda: stack.value("larder_command_seconds_count", op="quota.set") == 1, 20, "the command is counted")
    assert stack.value("larder_command_wait_seconds_count") >= 1
    assert stack.value("larder_command_queue_length") == 0
    wait_for(lambda: stack.value("larder_commands_in_hand") == 0, 20, "nothing is in hand")
    wait_for(lambda: stack.families()["larder_quota_limit_bytes"].samples[-1].value == 2**30, 20, "alice's limit")
    assert stack.value("larder_quota_limit_bytes", cache_salt="alice") == 2**30


def test_ages_of_loops_stay_young(stack: Stack) -> None:
    assert 0 <= stack.value("larder_thread_last_run_age_seconds", thread="l1-eviction") < 20
    assert stack.value("larder_thread_active", thread="heartbeat", level="high") == 1


def test_lookups_by_tier_and_reason_through_restarts(tmp_path: Path) -> None:
    with stack_in(tmp_path) as stack:
        look_up(stack)
        restart_what_may_die(stack)


def look_up(stack: Stack) -> None:
    tokens = list(range(256 * 3))
    with SharedKV([(2, 64, 16, 1, 8)]) as memory, client(stack) as worker:
        worker.register_shared(memory)
        worker.store(tokens[:512], [list(range(32))], "request-1")
        worker.lookup(tokens, "request-2")
        wait_for(lambda: stack.value("larder_lookup_tokens_total", result="l1") == 512, 20, "the hit is counted")
        assert stack.value("larder_lookup_tokens_total", result="absent") == 256
        worker.retrieve(tokens[:512], [list(range(32))], "request-2")
        wait_for(lambda: stack.value("larder_l1_read_bytes_total") == 2 * OBJECT_BYTES, 20, "the retrieve is counted")
        assert stack.value("larder_l1_written_bytes_total") == 2 * OBJECT_BYTES
    wait_for(lambda: stack.value("larder_l2_objects", l2_name="fs") == 2, 20, "it is written to L2")


def restart_what_may_die(stack: Stack) -> None:
    victim = psutil.Process(stack.web.pid).children()[0]
    victim.kill()
    wait_for(lambda: victim not in psutil.Process(stack.web.pid).children(), 20, "the worker is gone")
    wait_for(stack.web.has_all_web_workers, 20, "it is replaced")
    assert stack.value("larder_lookup_tokens_total", result="l1") == 512

    stack.engine.kill()
    wait_for(lambda: stack.value("larder_engine_up") == 0, 20, "the engine is away")
    assert "larder_lookup_tokens_total" not in stack.families()
    assert stack.value("larder_command_queue_length") == 0
    stack.engine.start()
    wait_for(lambda: stack.value("larder_engine_up") == 1, 20, "the engine is back")
    assert stack.value("larder_lookup_tokens_total") == 0
    wait_for(lambda: stack.value("larder_l2_catalog_complete") == 1, 20, "the catalog is restored")
    assert stack.value("larder_l2_catalog_scanned_objects") == 2


def client(stack: Stack) -> LarderClient:
    return LarderClient(f"tcp://127.0.0.1:{stack.engine.port}", "metrics/model")
