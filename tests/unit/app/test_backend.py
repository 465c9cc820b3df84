"""What the web tier remembers for a moment: a silent Redis, a snapshot, audit notes. And its Redis keys."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.audit import MAX_WAITING, AuditTrail
from app.backend import QueueBackend, QuotaState
from app.fuse import Fuse
from app.shared_read import LastChange, SharedRead
from contract import snapshots
from contract.commands import SetQuota
from contract.engine_record import write_beat
from contract.errors import EngineAway, QueueFull, RedisAway
from contract.keys import Keys
from tests.stack import RedisServer
from tests.unit.app.memory_backend import BOOT, record
from tests.waiting import wait_for

KEYS = Keys("default")


@pytest.fixture
def backend(redis_server: RedisServer, tmp_path: Path) -> Iterator[QueueBackend]:
    made = QueueBackend(redis_server.url, KEYS, tmp_path, max_waiting=12, queue_limits=(10, 10_000))
    yield made
    made.close()


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    QueueBackend("redis://127.0.0.1:1/0", KEYS, tmp_path, max_waiting=1, queue_limits=(1, 1)).close()


def test_a_snapshot_of_another_boot_is_not_shown(
    backend: QueueBackend, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client()
    try:
        write_beat(client, KEYS, tmp_path, record())
        snapshots.publish(client, KEYS, "status", {"n": 1}, "an older boot")

        with pytest.raises(EngineAway):
            backend.read_text("status")
        assert backend.last_text("status") == '{"n":1}'

        snapshots.publish(client, KEYS, "status", {"n": 2}, BOOT)
        assert wait_for(lambda: shown(backend) == '{"n":2}', 10, "the new boot's status")
    finally:
        client.close()


def shown(backend: QueueBackend) -> str:
    try:
        return backend.read_text("status")
    except EngineAway:
        return ""


def test_the_heartbeat_in_redis_is_enough(backend: QueueBackend, redis_server: RedisServer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another host"
    elsewhere.mkdir()
    client = redis_server.client()
    try:
        assert backend.engine_record() is None
        write_beat(client, KEYS, elsewhere, record("draining"))

        found = backend.engine_record(reuse=False)

        assert found is not None
        assert found.boot_id == BOOT
        with pytest.raises(EngineAway) as away:
            backend.require_engine()
        assert away.value.state == "draining"
    finally:
        client.close()


def test_quotas_come_from_the_two_hashes(backend: QueueBackend, redis_server: RedisServer, tmp_path: Path) -> None:
    client = redis_server.client()
    try:
        write_beat(client, KEYS, tmp_path, record())
        client.set(KEYS.quota_epoch, "a life")
        assert backend.quotas() == {}
        client.hset(KEYS.quota, mapping={"_default": "5", "alice": "7"})
        usages = {"alice": '{"l1_bytes": 3, "l2_bytes": 8}', "bob": '{"l1_bytes": 9, "l2_bytes": 1}'}
        client.hset(KEYS.usage, mapping=usages)

        assert backend.quotas() == {"": QuotaState(5, 0, 0), "alice": QuotaState(7, 3, 8)}
        assert backend.quota("bob") == QuotaState(None, 9, 1)
    finally:
        client.close()


def test_a_usage_that_somebody_broke_counts_as_nothing(
    backend: QueueBackend, redis_server: RedisServer, tmp_path: Path
) -> None:
    broken = ["{", "[1]", "7", "null", '"x"', "[" * 100_000, '{"l1_bytes": "9"}', '{"l1_bytes": -1, "l2_bytes": 1e9}']
    broken += ['{"l1_bytes": true}', '{"l2_bytes": ' + "9" * 5000 + "}", '{"l2_bytes": ' + "9" * 400 + "}"]
    client = redis_server.client()
    try:
        write_beat(client, KEYS, tmp_path, record())
        client.set(KEYS.quota_epoch, "a life")
        client.hset(KEYS.usage, mapping={str(number): text for number, text in enumerate(broken)})
        client.hset(KEYS.quota, mapping={str(number): "1" for number in range(len(broken))})

        assert set(backend.quotas().values()) == {QuotaState(1, 0, 0)}
        assert backend.quota("0") == QuotaState(1, 0, 0)
    finally:
        client.close()


def test_quotas_that_redis_has_lost_are_not_answered_as_missing(
    backend: QueueBackend, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client()
    try:
        write_beat(client, KEYS, tmp_path, record())
        client.hset(KEYS.quota, mapping={"alice": "7"})

        with pytest.raises(EngineAway):
            backend.quota("alice")
        with pytest.raises(EngineAway):
            backend.quotas()

        client.set(KEYS.quota_epoch, "a life")
        assert backend.quota("alice").limit_bytes == 7
    finally:
        client.close()


def test_a_quota_that_is_no_number_does_not_count(
    backend: QueueBackend, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client()
    try:
        write_beat(client, KEYS, tmp_path, record())
        client.set(KEYS.quota_epoch, "a life")
        client.hset(KEYS.quota, mapping={"alice": "7", "bob": "5 GB", "carol": "-1", "dave": "\u0663"})

        assert {salt: state.limit_bytes for salt, state in backend.quotas().items()} == {"alice": 7}
        assert backend.quota("bob").limit_bytes is None
    finally:
        client.close()


def test_other_callers_do_not_get_the_words_about_this_ones_command(
    backend: QueueBackend, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client()
    try:
        write_beat(client, KEYS, tmp_path, record())
    finally:
        client.close()
    assert backend.engine_record() is not None
    redis_server.kill()

    with pytest.raises(RedisAway, match=r"quota\.set may still be done"):
        backend.call(SetQuota("alice", 1))
    with pytest.raises(RedisAway) as away:
        backend.quota("alice")

    assert "quota.set" not in str(away.value)


def test_a_dead_redis_and_no_file_is_redis_away_not_a_missing_engine(
    backend: QueueBackend, redis_server: RedisServer
) -> None:
    redis_server.kill()

    with pytest.raises(RedisAway):
        backend.engine_record()
    with pytest.raises(RedisAway):
        backend.require_engine()


def test_a_blown_fuse_lets_one_caller_through_at_a_time() -> None:
    fuse = Fuse(patience_s=60.0)
    fuse.check()
    fuse.blow("timed out")
    with pytest.raises(RedisAway, match="timed out"):
        fuse.check()

    wait_for(lambda: passes(fuse), 10, "one caller is let through")

    assert not passes(fuse)
    fuse.mend()
    assert passes(fuse)
    assert passes(fuse)


def passes(fuse: Fuse) -> bool:
    try:
        fuse.check()
    except RedisAway:
        return False
    return True


def test_a_change_ends_the_use_of_an_older_read() -> None:
    numbers = iter(range(1000))
    last_change = LastChange()
    shared = SharedRead(lambda: next(numbers), last_change)
    before = shared.get()

    last_change.note()

    assert shared.get() > before


def test_a_change_in_another_process_counts_too() -> None:
    last_change = LastChange()
    before = last_change.moment_ns()

    child = os.fork()
    if child == 0:
        last_change.note()
        os._exit(0)
    os.waitpid(child, 0)

    assert last_change.moment_ns() > before


def test_a_read_serves_for_a_moment_only() -> None:
    numbers = iter(range(1_000_000))
    shared = SharedRead(lambda: next(numbers), LastChange())
    first = shared.get()

    assert wait_for(lambda: shared.get() > first, 10, "a newer read")


def test_a_read_that_fails_serves_nobody() -> None:
    answers = iter([RedisAway("once"), "text"])

    def read() -> str:
        answer = next(answers)
        if isinstance(answer, RedisAway):
            raise answer
        return answer

    shared = SharedRead(read, LastChange())

    with pytest.raises(RedisAway):
        shared.get()
    assert shared.get() == "text"


def test_notes_are_written_in_order_and_the_last_ones_at_close() -> None:
    written: list[str] = []
    trail = AuditTrail(lambda batch: written.extend(entry["n"] for entry in batch), lambda count: None)

    for number in range(50):
        trail.note({"n": str(number)})
    trail.close()

    assert written == [str(number) for number in range(50)]


def test_what_cannot_be_noted_is_counted_and_bounded() -> None:
    lost: list[int] = []
    redis_is_back = threading.Event()

    def write(batch: list[dict[str, str]]) -> None:
        redis_is_back.wait(30)
        raise RedisAway("gone")

    trail = AuditTrail(write, lost.append)
    for _ in range(3 * MAX_WAITING):
        trail.note({})
    redis_is_back.set()
    trail.close()

    assert sum(lost) == 3 * MAX_WAITING


def test_the_audit_stream_is_capped(backend: QueueBackend, redis_server: RedisServer) -> None:
    client = redis_server.client()
    try:
        for _ in range(11):
            backend.write_audit([{"action": "x"}] * 1000)

        assert 10_000 <= client.xlen(KEYS.audit) < 11_000
    finally:
        client.close()


def test_polls_leave_places_to_commands(backend: QueueBackend) -> None:
    with ExitStack() as held:
        assert [held.enter_context(backend.poll_place()) for _ in range(10)] == [True] * 8 + [False] * 2
        for _ in range(4):
            held.enter_context(backend.waiting_place())
        with pytest.raises(QueueFull), backend.waiting_place():
            pytest.fail("there are 12 places")
    with ExitStack() as held:
        for _ in range(12):
            held.enter_context(backend.waiting_place())
        assert not held.enter_context(backend.poll_place())
    with backend.poll_place() as may_wait:
        assert may_wait
