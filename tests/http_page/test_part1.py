"""Part 1 of the page against a server that is up: the form of each answer, and what some of the numbers mean."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import md5
from typing import Any

import numpy as np
import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.http_page import l2_cases, part1_cases
from tests.http_page.exchange import Case, in_order
from tests.http_page.l2_cases import result
from tests.http_page.sites import BLOCKS, CHUNK, MODEL, SHAPE, Product
from tests.stack import ROOT
from tests.waiting import wait_for

FLOWS = {**part1_cases.FLOWS, **l2_cases.FLOWS}
#: Of LMCache 0.5.0, without `lmcache_mp_`.
GAUGES = ("l1_memory_usage_bytes", "l1_usage_ratio", "l2_adapters", "l2_usage_bytes", "active_prefetch_jobs")
COUNTERS = (
    "l1_eviction_loop_ticks_total", "l1_read_chunks_total", "l1_write_chunks_total", "l1_evicted_chunks_total",
    "lookup_requested_tokens_total", "lookup_hit_tokens_total",
)  # fmt: skip
HISTOGRAMS = ("l0_l1_store_throughput_GB_per_second", "l2_store_throughput_GB_per_second")
ABSENT = (
    "active_p2p_lookup_jobs", "event_bus_queue_depth", "event_bus_drain_lag_seconds", "event_bus_dropped_events_total",
    "l2_prefetch_lookup_requests_total", "l2_prefetch_lookup_objects_chunks_total", "l2_prefetch_hit_chunks_total",
    "l2_store_submitted_requests_total", "l2_store_submitted_objects_chunks_total",
    "l2_store_completed_requests_total", "l2_store_completed_objects_chunks_total",
)  # fmt: skip


def shows_clients(product: Product) -> bool:
    status = product.web.send(part1_cases.STATUS_CASE).json()
    return bool(status["registered_gpu_ids"] and status["registered_non_cuda_instance_ids"])


@pytest.mark.parametrize("flow", FLOWS)
def test_as_the_page_says(full: Product, flow: str) -> None:
    if flow == "status":
        wait_for(lambda: shows_clients(full), 20, "the clients are shown")
    in_order(full.web, FLOWS[flow])


def get(product: Product, path: str) -> Any:
    return product.web.check(Case(f"GET {path}", 200)).json()


def client_of(product: Product, **options: Any) -> LarderClient:
    return LarderClient(f"tcp://127.0.0.1:{product.parts['stack'].engine.port}", **options)


def test_the_server_is_as_healthy_as_its_storages(full: Product) -> None:
    """One of them is away."""
    wait_for(lambda: not get(full, "/status")["is_healthy"], 20, "it is seen")

    assert get(full, "/status")["storage_manager"]["is_healthy"] is False
    assert get(full, "/healthcheck") == {"status": "healthy"}


def test_a_digest_is_of_the_bytes_of_the_blocks(full: Product) -> None:
    fill(full.parts["memory"])
    expected = [whole_digest(full.parts["memory"], chunk) for chunk in ([0, 2], [3, 4], [5, 8])]
    by_layer = layer_digests(full.parts["memory"], [8, 0])
    query = "/kvcache/check?instance_id=7&block_ids="

    assert get(full, f"{query}0,[2,5],8&chunk_size=2")["chunk_checksums"] == expected
    assert get(full, f"{query}8,0&chunk_size=5&layerwise=true")["chunk_checksums"] == by_layer


def fill(memory: SharedKV) -> None:
    """Here and below, so that nobody keeps one of the arrays."""
    for number, layer in enumerate(memory.layers):
        layer[:] = np.random.default_rng(number).random(SHAPE)


def whole_digest(memory: SharedKV, blocks: Sequence[int]) -> str:
    return md5(b"".join(layer[:, blocks].tobytes() for layer in memory.layers)).hexdigest()


def layer_digests(memory: SharedKV, blocks: Sequence[int]) -> dict[str, list[str]]:
    sums = [md5(layer[:, blocks].tobytes()).hexdigest() for layer in memory.layers]
    return {f"layer_{number}": [digest] for number, digest in enumerate(sums)}


def in_l1(product: Product) -> int:
    return int(get(product, "/status")["storage_manager"]["l1_manager"]["total_object_count"])


def test_a_clear_takes_what_is_leased_and_leaves_l2(full: Product) -> None:
    client: LarderClient = full.parts["client"]
    tokens = list(range(2 * CHUNK))
    assert client.lookup(tokens, "reader") == 2 * CHUNK
    wait_for(lambda: in_l1(full) >= 2, 20, "the objects are shown")

    full.web.check(Case("POST /clear-cache", 200, {"status": "ok"}))

    assert in_l1(full) == 0
    assert len(get(full, f"/l2/keys?model_name={MODEL}")["entries"]) == 2
    assert get(full, "/status")["registered_gpu_ids"] == [7]
    assert get(full, "/quota/_default")["exists"] is True
    client.free(tokens, "reader")
    client.end_session("reader")


def test_a_prefetch_counts_a_key_for_each_rank(full: Product) -> None:
    tokens = list(range(5000, 5000 + 2 * CHUNK))
    with ExitStack() as parts:
        for worker_id in range(2):
            memory = parts.enter_context(SharedKV([SHAPE] * 2))
            worker = parts.enter_context(client_of(full, model_name="page/two", world_size=2, worker_id=worker_id))
            worker.register_shared(memory)
            worker.store(tokens, [list(range(1, 1 + 2 * BLOCKS))], f"request-{worker_id}")
        wait_for(lambda: len(get(full, "/l2/keys?model_name=page/two")["entries"]) == 4, 20, "all is in L2")
        asked = {"model_name": "page/two", "world_size": 2, "token_ids": tokens}
        flow = [
            Case("POST /clear-cache", 200),
            Case("POST /l2/prefetch", 202, {"request_id": str, "chunks": 2, "status": "submitted"}, send=asked,
                 keep={"job": "request_id"}),
            Case("GET /l2/prefetch/<job>?wait=20", 200, result(4, 4)),
        ]  # fmt: skip
        in_order(full.web, flow)
        assert worker.lookup(tokens, "reader") == 2 * CHUNK
        worker.end_session("reader")


def test_a_tenant_without_a_quota_loses_what_it_has(full: Product) -> None:
    full.web.check(Case("PUT /quota/tenant", 200, send={"limit_gb": 1}))
    client: LarderClient = full.parts["client"]
    client.store(list(range(2 * CHUNK)), [list(range(1, 1 + 2 * BLOCKS))], "request-tenant", cache_salt="tenant")
    wait_for(lambda: get(full, "/quota/tenant")["l1_usage_gb"] > 0, 20, "its usage is shown")
    assert get(full, "/quota/tenant")["current_usage_gb"] > 0

    full.web.check(Case("DELETE /quota/tenant", 200, {"cache_salt": "tenant", "status": "removed"}))

    wait_for(lambda: get(full, "/quota/tenant")["l1_usage_gb"] == 0, 20, "all of it is evicted from L1")
    assert get(full, "/quota/tenant")["exists"] is False


def test_the_series_of_the_page_are_there_or_the_docs_say_what_is_instead(full: Product) -> None:
    text = full.web.check(part1_cases.READS["metrics"][0]).body.decode()
    kinds = dict(re.findall(r"^# TYPE lmcache_mp_(\S+) (\w+)$", text, re.MULTILINE))
    instead = (ROOT / "docs/metrics.md").read_text().partition("## Series of LMCache that are not here")[2]

    for kind, names in (("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS)):
        assert {name: kinds.get(name) for name in names} == dict.fromkeys(names, kind)
    assert [name for name in ABSENT if name in kinds or f"`lmcache_mp_{name}`" not in instead] == []


def test_filters_narrow_the_list_of_loops_and_not_the_summary(full: Product) -> None:
    everything = get(full, "/periodic-threads")
    critical = get(full, "/periodic-threads?level=Critical")

    names = {loop["name"] for loop in everything["threads"] if loop["level"] == "critical"}
    assert {loop["name"] for loop in critical["threads"]} == names
    assert 0 < len(names) < len(everything["threads"]) == everything["summary"]["total_count"]
    assert critical["summary"]["by_level"]["critical"]["total"] == len(names) < critical["summary"]["total_count"]
