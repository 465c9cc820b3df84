"""Prefetch jobs while the engine or Redis dies under them: each comes to an end that a poll sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.prefetch_stack import CHUNK, PrefetchStack
from tests.waiting import wait_for

CHUNKS = 24
#: So that a job takes a second or more.
LATENCY_S = 0.3


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[PrefetchStack]:
    """Files hold CHUNKS objects, L1 is empty, and the engine's storage is slow."""
    stack = PrefetchStack(tmp_path)
    try:
        stack.start()
        stack.tokens = stack.fill(CHUNKS)
        stack.engine.stop()
        stack.start_engine(LATENCY_S)
        yield stack
    finally:
        stack.stop()


def begin(stack: PrefetchStack) -> str:
    """A job in the middle of its work."""
    request_id = stack.submit(stack.tokens)
    in_the_middle(stack, request_id)
    return request_id


def in_the_middle(stack: PrefetchStack, request_id: str) -> None:
    wait_for(lambda: 0 < stack.record(request_id).found_keys < CHUNKS, 20, "something is loaded")


def test_a_job_outlives_engines_that_are_killed_and_stopped(stack: PrefetchStack) -> None:
    with stack.worker():
        request_id = begin(stack)
        killed = stack.record(request_id).boot_id
        stack.engine.kill()
    assert stack.web.http("GET", "/jobs/prefetch").json()["jobs"][0]["status"] == "running"

    stack.start_engine(LATENCY_S)
    wait_for(lambda: stack.record(request_id).status == "submitted", 10, "the next engine has found it")
    assert stack.poll(request_id).json() == {"status": "pending"}
    with stack.worker():
        in_the_middle(stack, request_id)
        stopped = stack.record(request_id).boot_id
        stack.engine.stop()
    left = stack.record(request_id)
    assert (left.status, left.found_keys) == ("submitted", 0)

    stack.start_engine(LATENCY_S)
    with stack.worker():
        done = stack.poll(request_id, 30)

    assert done.json() == {"status": "completed", "found_keys": CHUNKS, "total_keys": CHUNKS}
    assert len({killed, stopped, stack.record(request_id).boot_id}) == 3
    assert stack.poll(request_id).status == 404


def test_a_job_is_cancelled_in_the_middle_and_the_next_ends_while_redis_is_away(stack: PrefetchStack) -> None:
    with stack.worker() as client:
        cancel_in_the_middle(stack)
        fill_the_engine(stack)
        assert stack.web.http("POST", "/clear-cache").status == 200
        request_id = begin(stack)
        stack.redis.stop()
        for method, path in (("GET", f"/l2/prefetch/{request_id}"), ("DELETE", f"/l2/prefetch/{request_id}")):
            assert stack.web.http(method, path).status == 503
        assert stack.post(stack.tokens).json()["detail"].startswith("Redis does not answer")
        assert stack.web.http("GET", "/jobs/prefetch").status == 503
        wait_for(lambda: client.lookup(stack.tokens, "reader") == CHUNK * CHUNKS, 20, "all is loaded", every_s=0.2)
        client.end_session("reader")
        stack.redis.start()
        wait_for(lambda: b'"completed"' in stack.poll(request_id).body, 20, "the end is written")

    over = stack.record(request_id)
    assert over.status == "completed"
    assert over.found_keys + over.resident_keys == over.total_keys == CHUNKS


def cancel_in_the_middle(stack: PrefetchStack) -> None:
    request_id = begin(stack)

    cancelled = stack.web.http("DELETE", f"/l2/prefetch/{request_id}")

    assert (cancelled.status, cancelled.json()) == (200, {"request_id": request_id, "status": "cancelled"})
    assert stack.web.http("DELETE", f"/l2/prefetch/{request_id}").status == 404
    over = stack.poll(request_id).json()
    assert over.pop("error")
    assert over.pop("found_keys") < CHUNKS
    assert over == {"status": "completed", "total_keys": CHUNKS, "outcome": "cancelled"}
    assert stack.poll(request_id).status == 404


def fill_the_engine(stack: PrefetchStack) -> None:
    """As many jobs as may run; one more is refused and leaves nothing."""
    ids = []
    while (answer := stack.post(stack.tokens)).status == 202:
        ids.append(answer.json()["request_id"])
        assert len(ids) <= 64
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "prefetch jobs run already" in answer.json()["detail"]
    assert {job.request_id for job in stack.store.newest(64)} == set(ids)
    for request_id in ids:
        assert stack.poll(request_id, 30).json()["status"] == "completed"
