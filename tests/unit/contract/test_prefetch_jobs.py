"""The record of a prefetch job in a real Redis: its states, who may change them, and the poll that consumes it."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from contract.keys import PREFETCH_ENDED_TTL_S, PREFETCH_TTL_S, Keys
from contract.prefetch_jobs import (
    CANCELLED,
    COMPLETED,
    ENDED,
    FAILED,
    RUNNING,
    STATES,
    SUBMITTED,
    PrefetchJob,
    PrefetchStore,
    Rule,
    is_request_id,
    new_request_id,
)
from contract.redis_client import open_redis, redis_time_s
from tests.stack import RedisServer

KEYS = Keys("jobs")
RACED_JOBS = 1000


@pytest.fixture
def client(any_redis: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(any_redis.url)
    yield client
    client.close()


@pytest.fixture
def store(client: redis.Redis) -> PrefetchStore:
    return PrefetchStore(client, KEYS)


def submitted(store: PrefetchStore, **fields: object) -> PrefetchJob:
    """A job that the web tier has just written."""
    job = PrefetchJob(new_request_id(), "a/model", 2, "alice")
    job = dataclasses.replace(job, **fields)  # type: ignore[arg-type]
    assert store.create(job, "[1,2,3]")
    found = store.load(job.request_id)
    assert found is not None
    return found


def running(store: PrefetchStore, boot_id: str = "boot-1") -> PrefetchJob:
    job = dataclasses.replace(submitted(store), status=RUNNING, boot_id=boot_id, chunks=3, total_keys=6)
    written = store.write(job, Rule.START, boot_id, stamp="started_at")
    assert written is not None
    return written


def ended(store: PrefetchStore, status: str = COMPLETED) -> PrefetchJob:
    job = dataclasses.replace(running(store), status=status, found_keys=5, missing_keys=1)
    written = store.write(job, Rule.OWN, "boot-1", stamp="finished_at")
    assert written is not None
    return written


def test_the_record_is_text_that_people_can_read(client: redis.Redis, store: PrefetchStore) -> None:
    job = submitted(store)

    fields = client.hgetall(KEYS.prefetch(job.request_id))

    assert fields == {
        "request_id": job.request_id, "model_name": "a/model", "world_size": "2", "cache_salt": "alice", "chunks": "0",
        "total_keys": "0", "found_keys": "0", "resident_keys": "0", "missing_keys": "0", "failed_keys": "0",
        "over_quota_keys": "0", "status": "submitted", "error": "", "submitted_at": fields["submitted_at"],
        "started_at": "", "finished_at": "", "consumed_at": "", "boot_id": "",
    }  # fmt: skip
    assert abs(float(fields["submitted_at"]) - redis_time_s(client)) < 5
    assert store.load_input(job.request_id) == "[1,2,3]"
    assert client.zrange(KEYS.prefetch_jobs, 0, -1) == [job.request_id]


def test_a_job_goes_through_its_states_and_keeps_their_times(store: PrefetchStore) -> None:
    job = ended(store)

    assert job == store.load(job.request_id)
    assert (job.chunks, job.total_keys, job.found_keys, job.missing_keys) == (3, 6, 5, 1)
    assert job.submitted_at is not None
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.submitted_at <= job.started_at <= job.finished_at
    assert store.load_input(job.request_id) is None


def test_an_end_that_could_not_be_written_at_once_keeps_its_time(client: redis.Redis, store: PrefetchStore) -> None:
    job = dataclasses.replace(running(store), status=FAILED, error="why")

    written = store.write(job, Rule.OWN, "boot-1", stamp="finished_at", seconds_ago=100.0)

    assert written is not None
    assert written.finished_at == pytest.approx(redis_time_s(client) - 100, abs=5)


@pytest.mark.parametrize(
    ("rule", "by", "allowed"),
    [
        (Rule.START, "boot-1", {SUBMITTED}),
        (Rule.OWN, "boot-1", {SUBMITTED, RUNNING, "lost"}),
        (Rule.OWN, "boot-2", {SUBMITTED, "lost"}),
        (Rule.ADOPT, "boot-1", {SUBMITTED}),
        (Rule.ADOPT, "boot-2", {SUBMITTED, RUNNING}),
    ],
)
def test_who_may_write_in_which_state(
    client: redis.Redis, store: PrefetchStore, rule: Rule, by: str, allowed: set[str]
) -> None:
    written = set()
    for state in (*STATES, "lost"):
        job = submitted(store) if state == SUBMITTED else running(store) if state != "lost" else submitted(store)
        if state in ENDED:
            job = ended(store, state)
        if state == "lost":
            client.flushall()
        change = dataclasses.replace(job, status=RUNNING, boot_id=by, found_keys=4)
        if store.write(change, rule, by) is not None:
            written.add(state)
            assert store.load(job.request_id) == change
        else:
            assert store.load(job.request_id) == (None if state == "lost" else job)

    assert written == allowed


def test_only_one_start_happens(store: PrefetchStore) -> None:
    job = submitted(store)
    starts = [
        store.write(dataclasses.replace(job, status=RUNNING, boot_id=boot), Rule.START, boot, stamp="started_at")
        for boot in ("boot-1", "boot-1", "boot-2")
    ]

    assert [start is not None for start in starts] == [True, False, False]


def test_what_is_withdrawn_was_not_started(client: redis.Redis, store: PrefetchStore) -> None:
    waiting, started, over = submitted(store), running(store), ended(store)

    assert [store.withdraw(job.request_id) for job in (waiting, started, over)] == [True, False, False]
    assert store.withdraw(new_request_id()) is False
    assert client.exists(KEYS.prefetch(waiting.request_id), KEYS.prefetch_input(waiting.request_id)) == 0
    assert client.zrange(KEYS.prefetch_jobs, 0, -1) == [started.request_id, over.request_id]


@pytest.mark.parametrize("status", ENDED)
def test_a_poll_sees_the_end_once(client: redis.Redis, store: PrefetchStore, status: str) -> None:
    job = ended(store, status)

    first, second = store.consume(job.request_id), store.consume(job.request_id)

    assert first is not None
    assert (first.status, first.found_keys, first.total_keys) == (status, 5, 6)
    assert second is None
    kept = store.load(job.request_id)
    assert kept == dataclasses.replace(job, consumed_at=first.consumed_at)
    assert first.consumed_at == pytest.approx(redis_time_s(client), abs=5)


def test_a_poll_leaves_a_job_that_is_not_over(store: PrefetchStore) -> None:
    for job in (submitted(store), running(store)):
        assert [store.consume(job.request_id), store.consume(job.request_id)] == [job, job]
    assert store.consume(new_request_id()) is None


def test_racing_polls_see_each_end_exactly_once(any_redis: RedisServer, store: PrefetchStore) -> None:
    ids = [ended(store).request_id for _ in range(RACED_JOBS)]
    seen: Counter[str] = Counter()
    counting = threading.Lock()
    together = threading.Barrier(2)

    def poll_all() -> None:
        own = open_redis(any_redis.url)
        polls = PrefetchStore(own, KEYS)
        together.wait(10)
        got = [request_id for request_id in ids if polls.consume(request_id) is not None]
        with counting:
            seen.update(got)
        own.close()

    threads = [threading.Thread(target=poll_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert seen == Counter(ids)


def test_everything_expires(client: redis.Redis, store: PrefetchStore) -> None:
    waiting, started, over = submitted(store), running(store), ended(store)

    def ttl(key: str) -> float:
        return client.pttl(key) / 1000

    for job in (waiting, started):
        assert PREFETCH_TTL_S - 60 < ttl(KEYS.prefetch(job.request_id)) <= PREFETCH_TTL_S
        assert PREFETCH_TTL_S - 60 < ttl(KEYS.prefetch_input(job.request_id)) <= PREFETCH_TTL_S
    assert PREFETCH_ENDED_TTL_S - 60 < ttl(KEYS.prefetch(over.request_id)) <= PREFETCH_ENDED_TTL_S
    assert 0 < ttl(KEYS.prefetch_jobs) <= 2 * PREFETCH_TTL_S
    store.consume(over.request_id)
    assert 0 < ttl(KEYS.prefetch(over.request_id)) <= PREFETCH_ENDED_TTL_S


def test_a_record_written_anew_expires_too(client: redis.Redis, store: PrefetchStore) -> None:
    job = running(store)
    client.flushall()

    store.write(dataclasses.replace(job, found_keys=1), Rule.OWN, "boot-1")

    assert 0 < client.ttl(KEYS.prefetch(job.request_id)) <= PREFETCH_TTL_S
    assert store.newest(5) == [dataclasses.replace(job, found_keys=1)]


def test_the_oldest_that_is_over_makes_room(client: redis.Redis) -> None:
    store = PrefetchStore(client, KEYS, max_jobs=3)
    waiting, over, started = submitted(store), ended(store), running(store)

    late = submitted(store)

    assert store.load(over.request_id) is None
    assert {job.request_id for job in store.newest(9)} == {waiting.request_id, started.request_id, late.request_id}
    assert store.create(PrefetchJob(new_request_id(), "m", 1, ""), "[]") is False


def test_the_list_is_newest_first_and_passes_over_what_expired(client: redis.Redis, store: PrefetchStore) -> None:
    jobs = [submitted(store) for _ in range(5)]
    client.delete(KEYS.prefetch(jobs[3].request_id))

    assert store.newest(2) == [jobs[4], jobs[2]]
    assert store.newest(100) == [jobs[4], jobs[2], jobs[1], jobs[0]]
    assert client.zcard(KEYS.prefetch_jobs) == 4


def test_a_long_list_is_read_in_pages(client: redis.Redis, store: PrefetchStore) -> None:
    jobs = [submitted(store) for _ in range(230)]
    client.delete(*(KEYS.prefetch(job.request_id) for job in jobs[30:225]))

    assert store.newest(6) == [*jobs[:-6:-1], jobs[29]]
    assert store.newest(230) == [*jobs[:-6:-1], *jobs[29::-1]]


def test_the_unfinished_are_found_and_the_expired_leave_the_list(client: redis.Redis, store: PrefetchStore) -> None:
    waiting, gone, started, over = submitted(store), submitted(store), running(store), ended(store)
    client.delete(KEYS.prefetch(gone.request_id))

    assert store.unfinished() == [waiting.request_id, started.request_id]
    assert client.zscore(KEYS.prefetch_jobs, gone.request_id) is None
    assert client.zscore(KEYS.prefetch_jobs, over.request_id) is not None


def test_a_hash_that_is_no_record_is_none(client: redis.Redis, store: PrefetchStore) -> None:
    job = submitted(store)
    client.hset(KEYS.prefetch(job.request_id), "world_size", "two")
    strange = submitted(store)
    client.hset(KEYS.prefetch(strange.request_id), "status", "asleep")

    assert store.load(job.request_id) is None
    assert store.consume(strange.request_id) is None
    assert store.newest(5) == []


def test_cancelled_is_an_end_like_the_others(store: PrefetchStore) -> None:
    job = submitted(store)

    written = store.write(dataclasses.replace(job, status=CANCELLED), Rule.ADOPT, "boot-1", stamp="finished_at")

    assert written is not None
    assert written.has_ended
    assert store.load_input(job.request_id) is None


def test_ids_cannot_be_guessed_and_name_nothing_else() -> None:
    ids = {new_request_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(map(is_request_id, ids))
    for text in ("", "x" * 32, "A" * 32, "0" * 31, "0" * 33, "0" * 32 + ":input", "0" * 32 + "\n", "٠" * 32):
        assert not is_request_id(text)
