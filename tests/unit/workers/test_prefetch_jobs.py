"""Prefetch jobs between an engine and Redis: begun once, followed, ended, cared for after a death on either side."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from contract.keys import Keys
from contract.prefetch_jobs import RUNNING, PrefetchJob, PrefetchStore, Rule, new_request_id
from contract.redis_client import open_redis
from contract.token_ids import write_token_ids
from engine.errors import BadRequest, NoLayout, TooBusy
from engine.periodic import PeriodicThreads
from tests.stack import RedisServer
from tests.unit.workers.warm_engine import CHUNK, WarmEngine
from tests.waiting import wait_for
from workers import prefetch_jobs
from workers.prefetch_jobs import PrefetchJobs

KEYS = Keys("warm")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(redis_server.url)
    yield client
    client.close()


@pytest.fixture
def store(client: redis.Redis) -> PrefetchStore:
    return PrefetchStore(client, KEYS)


@pytest.fixture
def engine() -> WarmEngine:
    return WarmEngine()


@contextmanager
def serving(engine: WarmEngine, store: PrefetchStore) -> Iterator[PrefetchJobs]:
    jobs = PrefetchJobs(engine, store, PeriodicThreads())
    jobs.start()
    try:
        yield jobs
    finally:
        jobs.stop()


@pytest.fixture
def jobs(engine: WarmEngine, store: PrefetchStore) -> Iterator[PrefetchJobs]:
    with serving(engine, store) as jobs:
        wait_for(lambda: jobs._has_swept, 10, "left-over jobs were looked for")
        yield jobs


def submit(store: PrefetchStore, tokens: int = 3 * CHUNK, model_name: str = "a/model") -> str:
    job = PrefetchJob(new_request_id(), model_name, 2, "alice")
    assert store.create(job, write_token_ids(range(tokens)))  # type: ignore[arg-type]
    return job.request_id


def left_running(store: PrefetchStore, boot_id: str = "dead boot") -> str:
    request_id = submit(store)
    job = dataclasses.replace(load(store, request_id), status=RUNNING, boot_id=boot_id, found_keys=2)
    assert store.write(job, Rule.START, boot_id, stamp="started_at")
    return request_id


def load(store: PrefetchStore, request_id: str) -> PrefetchJob:
    job = store.load(request_id)
    assert job is not None
    return job


def state(store: PrefetchStore, request_id: str, wanted: str) -> PrefetchJob:
    return wait_for(lambda: (job := load(store, request_id)).status == wanted and job, 10, f"the job is {wanted}")


def test_a_job_is_followed_to_its_end(engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs) -> None:
    request_id = submit(store)

    reply = jobs.begin(request_id)

    assert reply == {"status": "running", "chunks": 3}
    assert engine.jobs[0].tokens == list(range(12))
    begun = load(store, request_id)
    assert (begun.status, begun.chunks, begun.total_keys, begun.boot_id) == ("running", 3, 6, "boot-1")
    engine.jobs[0].count(found=1, resident=1)
    wait_for(lambda: load(store, request_id).found_keys == 1, 10, "the progress is written")
    engine.jobs[0].count(found=2, resident=1, missing=1, failed=1, over_quota=1)
    engine.jobs[0].end()
    over = state(store, request_id, "completed")
    counts = (over.found_keys, over.resident_keys, over.missing_keys, over.failed_keys, over.over_quota_keys)
    assert counts == (2, 1, 1, 1, 1)
    assert over.started_at == begun.started_at
    assert over.finished_at is not None
    assert store.load_input(request_id) is None


def test_a_failure_says_why(engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs) -> None:
    request_id = submit(store)
    jobs.begin(request_id)

    engine.jobs[0].end("failed", "storage is gone")

    assert state(store, request_id, "failed").error == "storage is gone"


def test_a_second_delivery_is_answered_from_the_record(
    engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs
) -> None:
    request_id = submit(store)

    replies = [jobs.begin(request_id), jobs.begin(request_id)]
    engine.jobs[0].end()
    state(store, request_id, "completed")

    assert [*replies, jobs.begin(request_id)] == [
        {"status": "running", "chunks": 3},
        {"status": "running", "chunks": 3},
        {"status": "completed", "chunks": 3},
    ]
    assert len(engine.jobs) == 1


def test_racing_deliveries_start_one_job(engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs) -> None:
    request_id = submit(store)
    threads = [threading.Thread(target=jobs.begin, args=(request_id,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(engine.jobs) == 1


def test_what_the_engine_refuses_stays_submitted(
    engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs, client: redis.Redis
) -> None:
    stranger, busy, unreadable = submit(store, model_name="unknown"), submit(store), submit(store)
    client.set(KEYS.prefetch_input(unreadable), "[1,")

    with pytest.raises(NoLayout, match="no worker is registered"):
        jobs.begin(stranger)
    with pytest.raises(BadRequest, match="token ids cannot be read"):
        jobs.begin(unreadable)
    with pytest.raises(BadRequest, match="withdrawn"):
        jobs.begin(new_request_id())
    engine.is_busy = True
    with pytest.raises(TooBusy, match="64 jobs"):
        jobs.begin(busy)
    assert {load(store, i).status for i in (stranger, busy, unreadable)} == {"submitted"}


def test_less_than_a_chunk_is_no_job(engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs) -> None:
    request_id = submit(store, tokens=CHUNK - 1)

    assert jobs.begin(request_id) == {"status": "noop", "chunks": 0}
    assert load(store, request_id).status == "submitted"


def test_a_job_is_cancelled_wherever_it_is(engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs) -> None:
    running, waiting = submit(store), submit(store)
    jobs.begin(running)
    engine.jobs[0].count(found=1)

    assert jobs.cancel(running) == {"status": "cancelled"}
    assert jobs.cancel(waiting) == {"status": "cancelled"}
    assert load(store, running).found_keys == 1
    assert [jobs.cancel(running), jobs.cancel(waiting)] == [{"status": "cancelled"}] * 2
    assert jobs.cancel(new_request_id()) == {"status": "unknown"}
    assert jobs.begin(waiting) == {"status": "cancelled", "chunks": 0}
    assert len(engine.jobs) == 1


def test_a_job_that_was_over_is_not_cancelled(engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs) -> None:
    request_id = submit(store)
    jobs.begin(request_id)
    engine.jobs[0].end()
    state(store, request_id, "completed")

    assert jobs.cancel(request_id) == {"status": "unknown"}


def test_an_end_waits_for_redis(
    engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs, redis_server: RedisServer
) -> None:
    request_id = submit(store)
    jobs.begin(request_id)
    redis_server.stop()
    engine.jobs[0].count(found=6)
    engine.jobs[0].end()
    with pytest.raises(TooBusy, match="cannot reach Redis"):
        jobs.begin(new_request_id())

    redis_server.start()

    assert state(store, request_id, "completed").found_keys == 6


def test_an_end_is_written_to_a_redis_that_lost_everything(
    engine: WarmEngine, store: PrefetchStore, jobs: PrefetchJobs, client: redis.Redis
) -> None:
    request_id = submit(store)
    jobs.begin(request_id)
    before = load(store, request_id)
    client.flushall()
    engine.jobs[0].end()

    wait_for(lambda: store.load(request_id) is not None, 10, "the record is there again")

    over = state(store, request_id, "completed")
    assert (over.model_name, over.submitted_at, over.chunks) == ("a/model", before.submitted_at, 3)
    assert store.newest(5) == [over]


def test_what_a_dead_boot_left_is_run_again(engine: WarmEngine, store: PrefetchStore) -> None:
    running, waiting = left_running(store), submit(store)

    with serving(engine, store):
        for request_id in (running, waiting):
            wait_for(lambda i=request_id: load(store, i).boot_id == "boot-1", 10, "this boot runs it")
        for warm in engine.jobs:
            warm.end()
        assert state(store, running, "completed").found_keys == 0
        state(store, waiting, "completed")
    assert len(engine.jobs) == 2


def test_left_over_jobs_wait_for_their_model(engine: WarmEngine, store: PrefetchStore) -> None:
    engine.models.clear()
    request_id = left_running(store)

    with serving(engine, store):
        waiting = state(store, request_id, "submitted")
        assert (waiting.found_keys, waiting.started_at) == (0, None)
        engine.models.add("a/model")
        state(store, request_id, "running")


def test_left_over_jobs_without_a_model_fail_in_the_end(
    engine: WarmEngine, store: PrefetchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_jobs, "REGISTRATION_WAIT_S", 0.0)
    engine.models.clear()
    request_id = left_running(store)

    with serving(engine, store):
        error = state(store, request_id, "failed").error

    assert "left over by an engine that ended" in error
    assert "no worker is registered" in error


def test_left_over_jobs_without_token_ids_fail(engine: WarmEngine, store: PrefetchStore, client: redis.Redis) -> None:
    request_id = left_running(store)
    client.delete(KEYS.prefetch_input(request_id))

    with serving(engine, store):
        assert "token ids are no longer in Redis" in state(store, request_id, "failed").error
    assert engine.jobs == []


def test_left_over_jobs_are_found_once_redis_is_back(
    engine: WarmEngine, store: PrefetchStore, redis_server: RedisServer
) -> None:
    request_id = left_running(store)
    redis_server.stop()

    with serving(engine, store) as jobs:
        with pytest.raises(TooBusy):
            jobs.cancel(request_id)
        redis_server.start()
        state(store, request_id, "running")


def test_a_job_whose_command_never_came_fails(
    engine: WarmEngine, store: PrefetchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_jobs, "ORPHAN_S", 0.0)
    monkeypatch.setattr(prefetch_jobs, "SWEEP_S", 0.05)

    with serving(engine, store) as jobs:
        wait_for(lambda: jobs._has_swept, 10, "left-over jobs were looked for")
        request_id = submit(store)
        assert "never reached" in state(store, request_id, "failed").error


def test_a_begin_that_redis_alone_knows_of_is_closed(
    engine: WarmEngine, store: PrefetchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_jobs, "SWEEP_S", 0.05)
    request_id = left_running(store, "boot-1")

    with serving(engine, store):
        assert "could not tell Redis" in state(store, request_id, "failed").error


def lose_the_record(client: redis.Redis, request_id: str) -> None:
    client.hset(KEYS.prefetch(request_id), "boot_id", "another boot")


def lose_to_an_end(client: redis.Redis, request_id: str) -> None:
    client.hset(KEYS.prefetch(request_id), "status", "cancelled")


@pytest.mark.parametrize("lose", [lose_the_record, lose_to_an_end])
def test_a_job_that_is_no_longer_ours_is_let_go(
    engine: WarmEngine,
    store: PrefetchStore,
    jobs: PrefetchJobs,
    client: redis.Redis,
    lose: Callable[[redis.Redis, str], None],
) -> None:
    request_id = submit(store)
    jobs.begin(request_id)
    lose(client, request_id)
    kept = load(store, request_id)

    engine.jobs[0].count(found=3)

    wait_for(lambda: engine.jobs[0].was_cancelled, 10, "the load is cancelled")
    wait_for(lambda: not jobs._running, 10, "the job is let go")
    assert load(store, request_id) == kept


def test_a_stop_leaves_running_jobs_to_the_next_boot(engine: WarmEngine, store: PrefetchStore) -> None:
    over, running = submit(store), submit(store)
    with serving(engine, store) as jobs:
        jobs.begin(over)
        jobs.begin(running)
        engine.jobs[1].count(found=3)
        engine.jobs[0].end()

    assert load(store, over).status == "completed"
    assert load(store, running).status == "submitted"
    assert load(store, running).found_keys == 0
    assert engine.jobs[1].was_cancelled
    with pytest.raises(TooBusy, match="stopping"):
        jobs.begin(running)
    following = WarmEngine("boot-2")
    with serving(following, store):
        state(store, running, "running")
        following.jobs[0].end()
        assert state(store, running, "completed").boot_id == "boot-2"


def test_a_stop_beside_a_silent_redis_does_not_take_long(
    engine: WarmEngine, store: PrefetchStore, redis_server: RedisServer
) -> None:
    request_id = submit(store)
    with serving(engine, store) as jobs:
        jobs.begin(request_id)
        redis_server.stop()
        engine.jobs[0].end()
    redis_server.start()

    assert load(store, request_id).status == "running"
    with serving(WarmEngine("boot-2"), store):
        assert state(store, request_id, "running").request_id == request_id
        wait_for(lambda: load(store, request_id).boot_id == "boot-2", 10, "the next boot runs it")
