"""Prefetch jobs over a real stack: every answer of the routes, and results that two web workers hand out once."""

import dataclasses
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from contract.prefetch_jobs import COMPLETED, PrefetchJob, Rule, new_request_id
from tests.e2e.prefetch_stack import CHUNK, MODEL, PrefetchStack
from tests.waiting import wait_for

RACED_JOBS = 1000
RACERS = 4


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefetchStack]:
    stack = PrefetchStack(tmp_path_factory.mktemp("prefetch"))
    try:
        stack.start()
        wait_for(lambda: len(psutil.Process(stack.web.pid).children()) == 2, 10, "two workers")
        yield stack
    finally:
        stack.stop()


def running_job(stack: PrefetchStack) -> str:
    """A record that looks as if this engine's boot ran it."""
    job = PrefetchJob(new_request_id(), MODEL, 1, "")
    assert stack.store.create(job, "[]")
    boot_id = stack.engine.record()["boot_id"]
    begun = dataclasses.replace(stack.record(job.request_id), status="running", boot_id=boot_id, total_keys=4)
    assert stack.store.write(begun, Rule.START, boot_id, stamp="started_at")
    return job.request_id


def end_job(stack: PrefetchStack, request_id: str) -> None:
    job = dataclasses.replace(stack.record(request_id), status=COMPLETED, found_keys=4)
    assert stack.store.write(job, Rule.OWN, job.boot_id, stamp="finished_at")


def test_a_prompt_comes_back_from_files(stack: PrefetchStack) -> None:
    tokens = stack.fill(4, salt="alice")
    with stack.worker() as client:
        cold = stack.post([*tokens, 1, 2, 3], cache_salt="alice")
        request_id = cold.json()["request_id"]
        assert (cold.status, cold.json()) == (202, {"request_id": request_id, "chunks": 4, "status": "submitted"})
        assert stack.poll(request_id, 20).json() == {"status": "completed", "found_keys": 4, "total_keys": 4}
        assert stack.poll(request_id).status == 404
        assert client.lookup([*tokens, 1, 2, 3], "reader", cache_salt="alice") == 4 * CHUNK
        client.end_session("reader")

        warm = stack.submit(tokens, cache_salt="alice")
        assert stack.poll(warm, 20).json() == {"status": "completed", "found_keys": 0, "total_keys": 4}
        foreign = stack.submit(tokens, cache_salt="bob")
        assert stack.poll(foreign, 20).json() == {"status": "completed", "found_keys": 0, "total_keys": 4}
        assert stack.record(warm).resident_keys == 4
        assert stack.record(foreign).missing_keys == 4
        assert stack.record(request_id).consumed_at is not None
        assert stack.web.http("GET", "/status").json()["active_prefetch_jobs"] == 0


def test_every_refusal_of_a_submission(stack: PrefetchStack) -> None:
    before = len(stack.store.newest(1000))
    with stack.worker():
        assert stack.web.http("POST", "/l2/prefetch").status == 422
        assert stack.post([-1]).json()["detail"][0]["loc"] == ["body", "token_ids", 0]
        assert stack.post([1], cache_salt=None).status == 422
        assert stack.post([7] * 1_000_001, world_size=9).status == 400
        for tokens in ([1], [1] * CHUNK):
            assert stack.post(tokens, world_size=9, cache_salt="a@b").status == 409
            refused = stack.post(tokens, cache_salt="a@b")
            assert refused.status == 400
            assert "cache_salt" in refused.json()["detail"]
        short = stack.post([1] * (CHUNK - 1))
        assert (short.status, short.json()) == (202, {"chunks": 0, "status": "noop"})
    assert len(stack.store.newest(1000)) == before


def test_a_million_ids_are_one_job(stack: PrefetchStack) -> None:
    with stack.worker():
        answer = stack.post([4294967295] * 1_000_000)
        assert (answer.status, answer.json()["chunks"]) == (202, 3906)
        assert stack.poll(answer.json()["request_id"], 30).json() == {
            "status": "completed",
            "found_keys": 0,
            "total_keys": 3906,
        }


def test_the_other_answers_of_a_poll(stack: PrefetchStack) -> None:
    assert stack.web.http("GET", "/l2/prefetch").status == 405
    assert stack.poll("0" * 32).status == 404
    assert stack.web.http("GET", "/l2/prefetch/x?wait=31").status == 422
    assert stack.web.http("DELETE", f"/l2/prefetch/{'0' * 32}").status == 404
    request_id = running_job(stack)
    assert {stack.poll(request_id).body for _ in range(4)} == {b'{"status":"pending"}'}
    end_job(stack, request_id)
    assert stack.web.http("DELETE", f"/l2/prefetch/{request_id}").status == 404
    assert stack.poll(request_id).json() == {"status": "completed", "found_keys": 4, "total_keys": 4}


def test_the_list_is_the_same_whichever_worker_answers(stack: PrefetchStack) -> None:
    request_id = running_job(stack)
    end_job(stack, request_id)

    lists = [stack.web.http("GET", "/jobs/prefetch?limit=3").json()["jobs"] for _ in range(6)]

    assert [jobs[0]["request_id"] for jobs in lists] == [request_id] * 6
    assert lists[0][0] == dataclasses.asdict(stack.record(request_id))


def test_racing_polls_through_two_web_workers_hand_out_each_result_once(stack: PrefetchStack) -> None:
    ids = [running_job(stack) for _ in range(RACED_JOBS)]
    for request_id in ids:
        end_job(stack, request_id)
    seen: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    counting = threading.Lock()
    together = threading.Barrier(RACERS)

    def poll_all() -> None:
        together.wait(10)
        for request_id in ids:
            answer = stack.poll(request_id)
            with counting:
                statuses[answer.status] += 1
                seen[request_id] += answer.status == 200

    threads = [threading.Thread(target=poll_all) for _ in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    assert seen == Counter(ids)
    assert statuses == {200: RACED_JOBS, 404: (RACERS - 1) * RACED_JOBS}


def test_a_caller_who_hangs_up_takes_no_result_away(stack: PrefetchStack) -> None:
    request_id = running_job(stack)
    port = int(str(stack.web.settings["http_port"]))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        caller.sendall(f"GET /l2/prefetch/{request_id}?wait=30 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        asked = stack.client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
        wait_for(
            lambda: stack.client.info("commandstats")["cmdstat_evalsha"]["calls"] > asked + 3, 10, "the poll waits"
        )
    asked = stack.client.info("commandstats")["cmdstat_evalsha"]["calls"]

    end_job(stack, request_id)

    assert stack.poll(request_id).json()["status"] == "completed"


def test_waiting_polls_leave_places_to_commands_and_threads_to_probes(stack: PrefetchStack) -> None:
    request_id = running_job(stack)
    answers: list[str] = []

    def wait() -> None:
        answer = stack.poll(request_id, 30)
        answers.append(answer.json()["status"] if answer.status == 200 else str(answer.status))

    waiting = [threading.Thread(target=wait) for _ in range(40)]
    for thread in waiting:
        thread.start()
    # Two web workers with 8 places each for polls; whoever finds none is answered at once.
    wait_for(lambda: answers.count("pending") >= 40 - 2 * 8, 10, "the places are taken")
    body = {"limit_gb": 1}
    assert [stack.web.http("PUT", "/quota/a", body).status for _ in range(8)] == [200] * 8
    assert [stack.web.http("GET", "/healthcheck", timeout_s=5).status for _ in range(8)] == [200] * 8
    end_job(stack, request_id)
    for thread in waiting:
        thread.join(40)

    assert answers.count("completed") == 1
    assert set(answers) <= {"completed", "pending", "404"}
