"""The engine's verbs as a client of the data plane uses them, with real shared memory."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from engine.cache_request import CacheRequest
from engine.device.tensor_codec import decode_tensors, encode_tensors
from engine.engine import Engine
from engine.errors import BadRequest, StartError, UnknownInstance, Unsupported
from engine.tenants import Usage
from tests.unit.engine.engine_client import (
    CHUNK,
    CONFIG,
    OBJECT_BYTES,
    REGISTRATION,
    SHAPE,
    fill,
    held,
    hit,
    request,
    started,
)
from tests.waiting import wait_for


@pytest.fixture
def engine() -> Iterator[Engine]:
    with started(CONFIG) as running:
        yield running


def test_what_is_stored_is_found_and_read_back(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)

    assert fill(engine, request(3), value=9)
    assert hit(engine, request(4, "reader")) == 3
    assert engine.take_lookup_result("reader") == 0

    found = engine.prepare_retrieve(request(3, "reader"), 1)
    assert found.success
    assert [bytes(engine.segment.view(s.offset, s.length)) for s in found.slots] == [b"\x09" * OBJECT_BYTES] * 3
    assert found.slots[0].shape == SHAPE
    assert held(engine) == {"pins": 1}
    assert engine.commit_retrieve(request(3, "reader"), 1)
    assert held(engine) == {}


def test_an_uncommitted_store_is_invisible_and_its_chunks_are_not_handed_out_twice(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    first = engine.prepare_store(request(2), 1)

    second = engine.prepare_store(request(3, "other"), 1)

    assert first.chunk_indices == [0, 1]
    assert second.chunk_indices == [2]
    assert hit(engine, request(3, "reader")) == 0
    assert engine.commit_store(request(3, "other"), 1)
    assert engine.commit_store(request(2), 1)
    assert hit(engine, request(3, "reader")) == 3


def test_a_commit_without_its_prepare_answers_false(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)

    assert not engine.commit_store(request(2), 1)
    assert fill(engine, request(2))
    assert not engine.commit_store(request(2), 1)
    assert engine.commit_retrieve(request(2), 1)


def test_a_chunk_counts_only_when_every_rank_has_stored_it(engine: Engine) -> None:
    for instance_id in (1, 2):
        engine.register_engine_driven(replace(REGISTRATION, instance_id=instance_id, world_size=2))
    assert fill(engine, request(3, ws=2, rank=0), 1)
    assert fill(engine, request(2, ws=2, rank=1), 2)

    assert hit(engine, request(3, "reader", ws=2)) == 2
    assert held(engine) == {"leases": 4}
    for rank, instance_id in ((0, 1), (1, 2)):
        assert engine.prepare_retrieve(request(2, "reader", ws=2, rank=rank), instance_id).success
        assert engine.commit_retrieve(request(2, "reader", ws=2, rank=rank), instance_id)
    assert held(engine) == {}


def test_salts_and_models_share_nothing(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(2, cache_salt="alice"))

    assert hit(engine, request(2, "a", cache_salt="bob")) == 0
    assert hit(engine, request(2, "b")) == 0
    assert hit(engine, request(2, "c", cache_salt="alice")) == 2
    assert engine.usage_by_salt() == {"alice": Usage(2 * OBJECT_BYTES, 0)}


def test_freeing_locks_rounds_an_unaligned_end_down(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(4))
    assert hit(engine, request(4, "reader")) == 4

    engine.free_lookup_locks(request(4, "reader", rank=None, end=2 * CHUNK + 5))

    assert held(engine) == {"leases": 2}
    engine.free_lookup_locks(request(4, "reader", rank=None, start=2 * CHUNK))
    engine.free_lookup_locks(request(4, "reader", rank=None))
    assert held(engine) == {}


def test_freeing_before_asking_takes_the_result_and_spares_other_owners(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(2))
    engine.lookup(request(2, "one", rank=None))
    engine.lookup(request(2, "two", rank=None, num_kv_readers=3))

    engine.free_lookup_locks(request(2, "one", rank=None))

    assert engine.take_lookup_result("one") == 0
    assert engine.take_lookup_result("two") == 2
    assert held(engine) == {"leases": 6}


def test_a_second_lookup_replaces_the_first_and_end_session_keeps_leases(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(4))

    assert [hit(engine, request(4, "reader")), hit(engine, request(2, "reader"))] == [4, 2]
    engine.end_session("reader")
    engine.end_session("never seen")

    assert held(engine) == {"leases": 2}
    assert engine.prepare_retrieve(request(2, "reader"), 1).success
    assert engine.commit_retrieve(request(2, "reader"), 1)
    assert held(engine) == {}


def test_a_lookup_for_a_model_nobody_registered_finds_nothing(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(2))
    engine.unregister_engine_driven(1)

    assert hit(engine, request(2, "reader")) == 0
    with pytest.raises(UnknownInstance):
        engine.prepare_store(request(2), 1)


def test_bytes_of_another_layout_are_a_miss_and_are_replaced(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(2), value=1)
    engine.unregister_engine_driven(1)
    engine.register_engine_driven(replace(REGISTRATION, dtype_str="int32"))

    assert hit(engine, request(2, "reader")) == 0
    assert not engine.prepare_retrieve(request(2, "reader"), 1).success
    assert fill(engine, request(2), value=2)
    assert hit(engine, request(2, "reader")) == 2
    assert bytes(engine.segment.view(engine.prepare_retrieve(request(1), 1).slots[0].offset, 1)) == b"\x02"


def test_what_a_client_held_goes_with_it(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(2))
    assert hit(engine, request(2, "reader")) == 2
    assert engine.prepare_retrieve(request(2), 1).success
    assert engine.prepare_store(request(4), 1).chunk_indices == [2, 3]
    assert held(engine) == {"leases": 2, "pins": 1, "reservations": 1}

    engine.unregister_engine_driven(1)

    assert held(engine) == {}
    assert engine.l1.report()["total_object_count"] == 2


def test_a_forced_clear_empties_at_once_and_refuses_commits_begun_before(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(2))
    pinned = engine.prepare_retrieve(request(2), 1)
    engine.prepare_store(request(3), 1)

    result = engine.clear(force=True)

    assert (result.removed, result.kept, result.doomed) == (0, 0, 3)
    assert hit(engine, request(3, "reader")) == 0
    assert not engine.commit_store(request(3), 1)
    assert held(engine) == {"pins": 1, "doomed_objects": 2}
    assert bytes(engine.segment.view(pinned.slots[0].offset, 1)) == b"\x07"
    assert engine.commit_retrieve(request(2), 1)
    assert engine.l1.usage()[0] == 0


def test_a_plain_clear_spares_what_is_held(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    assert fill(engine, request(4))
    assert hit(engine, request(2, "reader")) == 2

    result = engine.clear(force=False)

    assert (result.removed, result.kept, result.doomed) == (2, 2, 0)


def test_messages_carry_the_bytes_when_no_memory_is_shared() -> None:
    with started(replace(CONFIG, shm_name="off")) as engine:
        assert engine.register_engine_driven(REGISTRATION).shm_name == ""
        assert not engine.prepare_store(request(2), 1).shared_memory
        chunks = [np.full(SHAPE, number, dtype=np.float32) for number in (1, 2)]

        assert engine.commit_store(request(2), 1, encode_tensors([c.data.cast("B") for c in chunks], SHAPE, "float32"))

        found = engine.prepare_retrieve(request(2), 1)
        assert found.success
        assert [bytes(t) for t in decode_tensors(found.data, SHAPE, "float32", 2)] == [c.tobytes() for c in chunks]
        assert engine.commit_retrieve(request(2), 1)
        with pytest.raises(BadRequest):
            engine.commit_store(request(3), 1, b"no pickle")


def test_a_client_that_could_not_map_the_pool_is_served_by_messages(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    engine.prepare_store(request(1), 1)
    chunk = np.arange(np.prod(SHAPE), dtype=np.float32)

    assert engine.commit_store(request(1), 1, encode_tensors([chunk.data.cast("B")], SHAPE, "float32"))

    assert held(engine) == {}
    found = engine.prepare_retrieve(request(1), 1)
    assert bytes(decode_tensors(found.data, SHAPE, "float32", 1)[0]) == chunk.tobytes()
    engine.prepare_store(request(2), 1)
    with pytest.raises(BadRequest):
        engine.commit_store(request(2), 1, b"broken")
    assert held(engine) == {}


@pytest.mark.parametrize(
    "wanted",
    [
        request(2, start=3),
        request(2, rank=None),
        replace(request(2), model_name="other"),
        request(2, ws=2),
    ],
)
def test_a_transfer_that_does_not_fit_its_registration_changes_nothing(engine: Engine, wanted: CacheRequest) -> None:
    engine.register_engine_driven(REGISTRATION)

    with pytest.raises(BadRequest):
        engine.prepare_store(wanted, 1)
    with pytest.raises(BadRequest):
        engine.store(wanted, 1, [[0]])

    assert held(engine) == {}


def test_the_first_ping_of_an_instance_this_boot_does_not_know_fails(engine: Engine) -> None:
    assert [engine.ping(5), engine.ping(5), engine.ping(None)] == [False, True, True]
    engine.register_engine_driven(replace(REGISTRATION, instance_id=6))
    assert engine.ping(6)
    engine.unregister_engine_driven(6)
    assert [engine.ping(6), engine.ping(6)] == [False, True]


def test_a_silent_worker_is_removed_with_all_it_held() -> None:
    config = replace(CONFIG, worker_reap_timeout_seconds=0.4, worker_registration_grace_seconds=60)
    with started(config) as engine:
        changes: list[int] = []
        engine.on_change = lambda: changes.append(1)
        engine.register_engine_driven(REGISTRATION)
        engine.register_engine_driven(replace(REGISTRATION, instance_id=2, model_name="quiet"))
        assert fill(engine, request(2))
        engine.prepare_store(request(4), 1)
        assert hit(engine, request(2, "reader")) == 2
        assert engine.ping(1)

        wait_for(lambda: engine.registrations.find(1) is None, 10, "worker 1 is reaped")

        wait_for(lambda: held(engine) == {}, 5, "nothing is held")
        assert engine.registrations.find(2) is not None, "a worker that never pinged has the grace time"
        assert not engine.ping(1)
        wait_for(lambda: len(changes) >= 3, 5, "all three changes told")


def test_leases_and_reservations_run_out() -> None:
    with started(replace(CONFIG, l1_read_ttl_seconds=0.2, l1_write_ttl_seconds=0.2)) as engine:
        for instance_id in (1, 2):
            engine.register_engine_driven(replace(REGISTRATION, instance_id=instance_id))
        engine.prepare_store(request(2), 1)
        wait_for(lambda: held(engine).get("doomed_objects") == 2, 5, "the reservation expires")
        assert fill(engine, request(2), 2), "its keys are free again"
        assert not engine.commit_store(request(2), 1)
        assert hit(engine, request(2, "reader")) == 2
        wait_for(lambda: held(engine) == {}, 5, "the leases expire")


def test_usage_above_the_watermark_is_brought_down_without_waiting_for_the_next_round() -> None:
    with started(replace(CONFIG, eviction_trigger_watermark=0.5, eviction_ratio=0.5)) as engine:
        engine.register_engine_driven(REGISTRATION)
        assert fill(engine, request(40))

        wait_for(lambda: engine.l1.usage()[0] <= engine.l1.usage()[1] // 4, 5, "eviction reaches its target")

        assert hit(engine, request(40, "reader")) == 16, "the head of the prefix stays"
        assert 'larder_l1_evicted_objects_total{reason="capacity"} 24.0' in engine.metrics_text()


def test_quotas_act_only_once_they_were_read_and_only_under_isolated_lru() -> None:
    with started(replace(CONFIG, eviction_policy="IsolatedLRU")) as engine:
        engine.register_engine_driven(REGISTRATION)
        assert fill(engine, request(4, "a", cache_salt="alice"))
        assert fill(engine, request(2, "b", cache_salt="bob"))
        engine.housekeeping.evict_now()
        assert engine.l1.bytes_by_salt() == {"alice": 4 * OBJECT_BYTES, "bob": 2 * OBJECT_BYTES}

        engine.load_quotas({"alice": 3 * OBJECT_BYTES})

        wait_for(lambda: engine.l1.bytes_by_salt() == {"alice": 3 * OBJECT_BYTES}, 5, "quotas are enforced")
        engine.set_quota("alice", 0)
        wait_for(lambda: engine.usage_by_salt() == {}, 5, "a limit of 0 keeps nothing")
        assert engine.delete_quota("alice")
        assert not engine.delete_quota("alice")


def test_more_than_the_pool_holds_is_refused_without_failing(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    prepared = engine.prepare_store(request(80), 1)

    assert len(prepared.slots) == 64
    assert engine.commit_store(request(80), 1)
    assert "lmcache_mp_l1_allocation_failure_chunks_total 16.0" in engine.metrics_text()


def test_checksums_need_memory_that_the_server_copies(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    with pytest.raises(UnknownInstance):
        engine.checksum_blocks(9, [0], 1, False)
    with pytest.raises(Unsupported):
        engine.checksum_blocks(1, [0], 1, False)


def test_a_transfer_mode_that_is_switched_off_takes_no_registrations() -> None:
    with started(replace(CONFIG, supported_transfer_mode="lmcache_driven")) as engine, pytest.raises(Unsupported):
        engine.register_engine_driven(REGISTRATION)


def test_a_pool_that_does_not_fit_is_a_start_error_with_both_numbers() -> None:
    engine = Engine(replace(CONFIG, l1_size_bytes=1 << 50))

    with pytest.raises(StartError, match=rf"{1 << 50} bytes.*has \d+ bytes free"):
        engine.start()


def test_a_pool_name_of_a_running_engine_is_refused_and_that_of_a_dead_one_is_taken_over() -> None:
    config = replace(CONFIG, shm_name=f"larder_unit_shared_name_{os.getpid()}")
    with started(config), pytest.raises(StartError, match="belongs to a running process"):
        Engine(config).start()
    with started(config) as engine:
        assert engine.segment.name == config.shm_name


def test_status_and_configuration_tell_what_the_contract_asks_for(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)

    status, configuration = engine.status(), engine.configuration()

    assert status["is_healthy"] is True
    assert status["engine_type"] == "MPCacheServer"
    assert status["registered_non_cuda_instance_ids"] == [1]
    assert status["storage_manager"]["l1_manager"]["memory_total_bytes"] == CONFIG.l1_size_bytes  # type: ignore[index]
    assert set(configuration) == {"mp", "storage_manager", "observability"}
