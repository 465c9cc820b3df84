"""Whose hold is whose: ids that come back, commits that match, copies of the server, pauses of the process."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from engine import transfers as transfers_module
from engine.device.tensor_codec import encode_tensors
from engine.engine import Engine
from engine.errors import UnknownInstance
from engine.l1.leases import LeaseBook
from tests.unit.engine.engine_client import CONFIG, REGISTRATION, SHAPE, fill, held, hit, request, started
from tests.waiting import wait_for


@pytest.fixture
def engine() -> Iterator[Engine]:
    with started(CONFIG) as running:
        yield running


def message(*values: int) -> bytes:
    chunks = [np.full(SHAPE, value, dtype=np.float32) for value in values]
    return encode_tensors([chunk.data.cast("B") for chunk in chunks], SHAPE, "float32")


def test_a_copy_of_the_server_keeps_its_slots_when_its_worker_goes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for instance_id in (1, 2):
        engine.register_engine_driven(replace(REGISTRATION, instance_id=instance_id))
    engine.prepare_store(request(1), 1)
    copying, go_on = threading.Event(), threading.Event()
    copy_bytes = transfers_module._copy_bytes

    def slow_copy(target: memoryview, source: memoryview) -> None:
        copying.set()
        assert go_on.wait(10)
        copy_bytes(target, source)

    monkeypatch.setattr(transfers_module, "_copy_bytes", slow_copy)
    commit = threading.Thread(target=engine.commit_store, args=(request(1), 1, message(1)))
    commit.start()
    assert copying.wait(10)

    engine.unregister_engine_driven(1)
    other = engine.prepare_store(request(1, cache_salt="other"), 2)
    view = engine.segment.view(other.slots[0].offset, other.slots[0].length)
    view[:] = b"\x05" * len(view)
    go_on.set()
    commit.join(10)

    assert bytes(view) == b"\x05" * len(view), "a late copy reached another worker's slot"
    view.release()


def test_an_id_that_comes_back_keeps_what_it_prepared_when_its_former_self_is_cleaned_up(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    former = engine.registrations.find(1)
    assert former is not None
    engine.unregister_engine_driven(1)
    engine.register_engine_driven(REGISTRATION)
    engine.prepare_store(request(2), 1)

    engine.transfers.forget(former)

    assert held(engine) == {"reservations": 1}
    assert engine.commit_store(request(2), 1)


def test_a_prepare_that_was_never_committed_does_not_spoil_later_ones(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    for _ in range(3):
        engine.prepare_store(request(2), 1)
        engine.clear(force=True)

    assert fill(engine, request(2))

    assert hit(engine, request(2, "reader")) == 2
    engine.free_lookup_locks(request(2, "reader", rank=None))
    assert held(engine) == {}


def test_a_commit_makes_only_its_own_requests_slots_readable(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(1))
    assert engine.prepare_store(request(2, "slow"), 1).chunk_indices == [1]
    engine.clear(force=False)

    assert fill(engine, request(2, "quick"))

    assert hit(engine, request(2, "reader")) == 1, "the slow request has not written its chunk"
    assert engine.commit_store(request(2, "slow"), 1)
    assert hit(engine, request(2, "reader")) == 2


def test_a_reader_keeps_its_slots_until_its_own_commit(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(1))
    assert engine.prepare_retrieve(request(1, "slow"), 1).success
    assert engine.prepare_retrieve(request(1, "quick"), 1).success

    assert engine.commit_retrieve(request(1, "quick"), 1)

    assert held(engine) == {"pins": 1}
    assert engine.commit_retrieve(request(1, "slow"), 1)
    assert held(engine) == {}


def test_nobody_is_reaped_right_after_the_whole_process_was_paused() -> None:
    with started(replace(CONFIG, worker_reap_timeout_seconds=40)) as engine:
        engine.register_engine_driven(REGISTRATION)
        registration = engine.registrations.find(1)
        assert registration is not None
        engine.ping(1)
        registration.last_seen -= 1000
        engine.housekeeping._reaped_at -= 1000

        assert "after a pause" in str(engine.housekeeping._reap())
        assert engine.registrations.find(1) is registration
        engine.ping(1)
        assert engine.housekeeping._reap() is None
        registration.last_seen -= 1000
        wait_for(lambda: engine.registrations.find(1) is None, 15, "a silent worker is reaped")
        with pytest.raises(UnknownInstance):
            engine.prepare_store(request(1), 1)


def test_the_book_of_leases_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.leases.MAX_OWNERS", 3)
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(1))

    for number in range(10):
        assert hit(engine, request(1, f"reader-{number}")) == 1

    assert engine.l1.report()["lease_owners"] == 3
    assert held(engine) == {"leases": 3}
    assert isinstance(engine.l1._leases, LeaseBook)
    assert engine.l1._leases._held == 3
