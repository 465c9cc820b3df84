"""Eviction from L2: what goes, in which order, down to where; and what a full, failing or hanging storage does."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from engine.l1.quota import QuotaTable
from engine.l2.base import ConnectionFault, StorageFull
from engine.l2.fs_adapter import FsAdapter
from engine.movement import l2_eviction
from engine.movement.l2_eviction import MAX_REFUSALS_IN_A_ROW, PASS_S, SETTLING_S, SLICE, L2Eviction
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThreads
from tests.unit.engine.l2_world import SALTS, SIZE, World, isolated, key, keys, loaded
from tests.waiting import wait_for


def test_above_the_watermark_the_oldest_go_down_to_the_target() -> None:
    world = World(max_bytes=10 * SIZE)
    world.put(*keys(8))
    assert world.evictor.run_pass() is None
    world.put(key(8))
    world.tier.catalog.used(key(0))

    world.evictor.run_pass()

    assert world.left() == [*keys(5, start=4), key(0)]
    assert world.evictor.run_pass() is None


def test_what_is_in_use_is_passed_over_and_said(caplog: pytest.LogCaptureFixture) -> None:
    world = World(max_bytes=10 * SIZE)
    world.put(*keys(9))
    with world.tier.calls.reading(key(0)), world.tier.calls.changing(key(1)):
        world.evictor.run_pass()
        assert world.left() == [key(0), key(1), *keys(4, start=5)]

    with ExitStack() as reading:
        for held in world.left():
            reading.enter_context(world.tier.calls.reading(held))
        world.put(*keys(4, start=20))
        for held in keys(4, start=20):
            reading.enter_context(world.tier.calls.reading(held))
        said = world.evictor.run_pass()
        world.evictor.run_pass()

    assert said is not None
    assert "10 objects are in use" in said
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    world.evictor.run_pass()
    assert len(world.left()) == 6


def test_a_salt_over_its_limit_loses_its_oldest_and_nobody_else_anything() -> None:
    world = World(loaded({"alice": 2 * SIZE, "bob": 9 * SIZE}), eviction=isolated())
    for number in range(4):
        world.put(*(key(number, salt) for salt in SALTS))
    world.tier.catalog.used(key(0, "alice"))

    world.evictor.run_pass()

    assert set(world.left()) == {key(3, "alice"), key(0, "alice"), *keys(4, "bob")}


@pytest.mark.parametrize("policy", ["LRU", "noop"])
def test_without_isolation_quotas_have_no_effect(policy: str) -> None:
    world = World(loaded({"alice": 0}), eviction={"eviction_policy": policy})
    world.put(*keys(3, "alice"))

    assert world.evictor.run_pass() is None
    assert len(world.tier.catalog) == 3


def test_nothing_is_over_a_limit_that_was_not_read_yet_or_is_suspended() -> None:
    quotas = QuotaTable()
    world = World(quotas, eviction=isolated())
    world.put(*keys(3, "alice"), *keys(3, "bob"))
    world.evictor.run_pass()
    assert len(world.left()) == 6

    quotas.suspend("the quotas may be lost")
    quotas.load({"bob": SIZE})
    world.evictor.run_pass()
    assert set(world.left()) == {*keys(3, "alice"), key(2, "bob")}

    quotas.set("bob", 2 * SIZE)
    world.evictor.run_pass()
    assert world.left() == [key(2, "bob")]


def test_while_limits_are_suspended_a_tenant_with_a_quota_is_not_the_only_one_to_give() -> None:
    quotas = loaded({"bob": 6 * SIZE})
    quotas.suspend("the quotas may be lost")
    world = World(quotas, eviction=isolated(), max_bytes=10 * SIZE)
    world.put(*keys(2, "bob"), *keys(7, "alice"))

    world.evictor.run_pass()

    assert set(world.left()) == {*keys(2, "bob"), *keys(4, "alice", start=3)}


def test_above_the_watermark_the_salt_furthest_over_its_share_gives_first() -> None:
    world = World(loaded({"alice": 8 * SIZE, "bob": 8 * SIZE}), eviction=isolated(), max_bytes=10 * SIZE)
    world.put(*keys(7, "alice"), *keys(2, "bob"))

    world.evictor.run_pass()

    assert set(world.left()) == {*keys(4, "alice", start=3), *keys(2, "bob")}


def test_a_write_that_found_no_room_gets_some_whatever_the_capacity_is_said_to_be() -> None:
    world = World()
    world.put(*keys(20))

    assert world.evictor.ask_for_room(SIZE)
    world.evictor.run_pass()
    assert world.left() == keys(16, start=4)

    assert not world.evictor.ask_for_room(3 * SIZE), "there is room to spare for this one, which began before"
    assert world.evictor.ask_for_room(SIZE), "and none for the next"
    world.evictor.run_pass()
    assert world.left() == keys(12, start=8)

    world.clock.now += SETTLING_S
    world.put(key(20))
    assert world.evictor.ask_for_room(4 * SIZE)
    assert world.evictor.ask_for_room(SIZE), "room for each of those that found none"
    world.evictor.run_pass()
    assert world.left() == keys(8, start=13)
    assert world.evictor.run_pass() is None


def test_where_making_room_does_not_help_little_is_deleted_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.put(*keys(100))

    for _ in range(600):
        world.evictor.ask_for_room(SIZE)
        world.evictor.run_pass()
        world.clock.now += 0.1

    assert 30 < len(world.left()) < 60, "after a minute of writes that find no room"
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    world.put(key(100))
    before = len(world.left())
    assert world.evictor.ask_for_room(SIZE), "something was written: room helps again"
    world.evictor.run_pass()
    assert len(world.left()) < before
    assert "works again" in caplog.text


def test_a_storage_that_is_full_takes_objects_again_after_a_pass() -> None:
    world = World(max_bytes=4 * SIZE, eviction={"trigger_watermark": 1.0})
    world.put(*keys(4))
    with pytest.raises(StorageFull):
        world.put(key(9))
    world.evictor.ask_for_room(SIZE)

    world.evictor.run_pass()
    world.put(key(9))

    assert world.left() == [*keys(3, start=1), key(9)]


def test_a_storage_that_cannot_be_reached_ends_the_pass_and_the_next_one_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(type="fault", inner={"type": "memory"}, seed=1)
    world.put(*keys(10))
    world.evictor.ask_for_room(5 * SIZE)
    world.fault(error_rate=1.0)

    for _ in range(5):
        said = world.evictor.run_pass()
        assert said is not None
        assert "cannot be reached" in said
    assert world.tier.breaker.state == "open"
    told = [record for record in caplog.records if record.name == l2_eviction.__name__]
    assert [record.levelno for record in told] == [logging.WARNING]
    world.evictor.ask_for_room(SIZE)

    world.fault()
    world.tier.breaker.succeeded()
    world.evictor.run_pass()
    assert world.left() == keys(4, start=6)


def test_an_object_that_the_storage_refuses_to_delete_does_not_keep_the_others(tmp_path: Path) -> None:
    world = World(type="fs", base_path=str(tmp_path), max_bytes=10 * SIZE)
    world.put(*keys(9))
    assert isinstance(world.tier.adapter, FsAdapter)
    (path,) = [entry for entry in tmp_path.glob("00/*") if "00000000" in entry.name]
    path.unlink()
    path.mkdir()

    said = world.evictor.run_pass()

    assert said is not None
    assert "1 in the way" in said
    assert {found for found, _ in world.tier.catalog.oldest(0, 100)} == {key(0), *keys(5, start=4)}


def test_a_storage_that_refuses_every_delete_is_not_asked_for_all_of_them() -> None:
    world = World()
    world.put(*keys(3 * MAX_REFUSALS_IN_A_ROW))
    asked = []

    def refuse(wanted: ObjectKey) -> bool:
        asked.append(wanted)
        raise PermissionError("read-only")

    world.tier.adapter.delete = refuse  # type: ignore[method-assign]
    world.evictor.ask_for_room(100 * SIZE)

    said = world.evictor.run_pass()

    assert said is not None
    assert "read-only" in said
    assert len(asked) == MAX_REFUSALS_IN_A_ROW


def test_a_pass_that_runs_out_of_time_is_gone_on_with_and_treats_salts_in_turn() -> None:
    count = SLICE + 50
    world = World(loaded({}), eviction=isolated())
    for salt in SALTS:
        world.put(*keys(count, salt))
    inner = world.tier.adapter.delete

    def slow(wanted: ObjectKey) -> bool:
        world.clock.now += PASS_S / 2 / (2 * SLICE)
        return inner(wanted)

    world.tier.adapter.delete = slow  # type: ignore[method-assign]

    world.evictor.run_pass()

    assert world.evictor.has_more_to_do
    gone = [count - sum(left.cache_salt == salt for left in world.left()) for salt in SALTS]
    assert gone == [SLICE, SLICE, 0]
    for _ in range(2):
        world.evictor.run_pass()
    assert world.left() == []
    assert not world.evictor.has_more_to_do


def test_a_drain_that_was_interrupted_goes_on_to_its_target_though_the_watermark_is_passed() -> None:
    world = World(max_bytes=10 * SIZE)
    world.put(*keys(9))
    inner = world.tier.adapter.delete

    def slow(wanted: ObjectKey) -> bool:
        world.clock.now += PASS_S
        return inner(wanted)

    world.tier.adapter.delete = slow  # type: ignore[method-assign]

    world.evictor.run_pass()
    assert world.left() == keys(8, start=1)
    assert world.evictor.has_more_to_do
    world.evictor.run_pass()
    world.evictor.run_pass()
    assert world.left() == keys(6, start=3)
    assert world.evictor.run_pass() is None


@contextmanager
def running(*worlds: World) -> Iterator[L2Eviction]:
    eviction = L2Eviction([world.tier for world in worlds], worlds[0].quotas, PeriodicThreads())
    eviction.start()
    try:
        yield eviction
    finally:
        eviction.stop()


def test_a_hanging_storage_holds_up_nobody_else() -> None:
    quotas = loaded({"": 100 * SIZE})
    hanging = World(quotas, index=0, type="fault", inner={"type": "memory"}, eviction=isolated())
    sound = World(quotas, index=1, eviction=isolated())
    for world in (hanging, sound):
        world.put(*keys(4), *keys(4, "alice"))
    hanging.fault(latency_rate=1.0, latency_s=3600.0)
    with running(hanging, sound) as eviction:
        quotas.set("", SIZE)
        eviction.wake()
        wait_for(lambda: sound.left() == [key(3)], 10, "the sound storage is brought within the quota")
        assert len(hanging.tier.catalog) == 8

        hanging.fault()
        wait_for(lambda: hanging.left() == [key(3)], 10, "the other one follows")


def test_a_full_storage_is_brought_down_without_waiting_for_the_next_round() -> None:
    world = World()
    world.put(*keys(10))
    with running(world) as eviction:
        eviction.storage_full(world.tier, SIZE)
        wait_for(lambda: len(world.left()) == 8, 10, "room is made")


def test_a_write_that_takes_the_storage_above_its_watermark_is_followed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(l2_eviction, "INTERVAL_S", 3600.0)
    world = World(max_bytes=10 * SIZE)
    with running(world) as eviction:
        world.put(*keys(8))
        eviction.stored(world.tier)
        assert len(world.left()) == 8
        world.put(key(8))
        eviction.stored(world.tier)
        wait_for(lambda: world.left() == keys(6, start=3), 10, "the oldest go")


def test_what_only_time_can_help_is_not_tried_with_every_write() -> None:
    world = World(max_bytes=10 * SIZE)
    world.put(*keys(9))
    assert world.evictor.should_look()
    with ExitStack() as in_use:
        for held in keys(9):
            in_use.enter_context(world.tier.calls.reading(held))
        world.evictor.run_pass()
        assert not world.evictor.should_look()
    world.evictor.run_pass()
    world.put(*keys(9))
    assert world.evictor.should_look()


def test_an_adapter_that_evicts_nothing_has_no_loop() -> None:
    world = World(eviction={"eviction_policy": "noop"})
    world.put(*keys(3))
    before = threading.active_count()
    with running(world) as eviction:
        assert threading.active_count() == before
        eviction.wake()
        eviction.stored(world.tier)
        eviction.storage_full(world.tier, SIZE)
    assert len(world.tier.catalog) == 3


def test_a_fault_adapter_that_loses_answers_leaves_catalog_and_storage_in_agreement() -> None:
    world = World(type="fault", inner={"type": "memory"}, seed=3)
    world.put(*keys(40))
    world.fault(error_rate=0.5)
    world.evictor.ask_for_room(30 * SIZE)
    for _ in range(200):
        world.tier.breaker.succeeded()
        world.evictor.run_pass()
        if len(world.tier.catalog) <= 10:
            break

    assert world.left() == keys(10, start=30)


def test_a_connection_fault_in_the_middle_of_a_quota_is_made_up_for_by_the_next_pass() -> None:
    world = World(loaded({}), eviction=isolated())
    world.put(*keys(10, "alice"))
    inner, calls = world.tier.adapter.delete, 0

    def breaks_once(wanted: ObjectKey) -> bool:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ConnectionFault("gone")
        return inner(wanted)

    world.tier.adapter.delete = breaks_once  # type: ignore[method-assign]

    world.evictor.run_pass()
    assert world.left() == keys(7, "alice", start=3)
    world.evictor.run_pass()
    assert world.left() == []
