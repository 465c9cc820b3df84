"""Eviction from L2: what goes, in which order, down to where; and what a full, failing or hanging storage does."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from engine.l1.eviction import IsolatedLRU, make_policy
from engine.l1.quota import QuotaTable
from engine.l2.base import ConnectionFault, StorageFull
from engine.l2.catalog import Catalog, Form
from engine.l2.fault_adapter import FaultAdapter, Faults
from engine.l2.fs_adapter import FsAdapter
from engine.l2.metrics import TierMetrics
from engine.l2.record import HEADER_BYTES
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from engine.movement.l2_eviction import MAX_REFUSALS_IN_A_ROW, PASS_S, SETTLING_S, SLICE, L2Eviction, TierEvictor
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThreads
from tests.waiting import wait_for

FORM = Form(b"f" * 16, 0)
#: Stored bytes of one small object.
SIZE = HEADER_BYTES + 100
SALTS = ("", "alice", "bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """One adapter, its evictor and a clock."""

    def __init__(self, quotas: QuotaTable | None = None, index: int = 0, **spec: object) -> None:
        self.quotas = quotas or loaded({})
        given_spec = {"type": "memory", **spec}
        checked = read_spec(given_spec)
        policy = make_policy(checked.eviction.eviction_policy, self.quotas.limit_of, 0)
        counters = TierMetrics(CollectorRegistry()).of(checked.type_name, index)
        self.tier = Tier(index, checked, Catalog(policy), counters)
        self.tier.open()
        self.tier.refresh()
        if isinstance(policy, IsolatedLRU):
            policy.capacity = self.tier.capacity_bytes or 0
        self.clock = Clock()
        self.evictor = TierEvictor(self.tier, self.quotas, lambda: False, self.clock)

    def put(self, *keys: ObjectKey, payload_bytes: int = 100) -> None:
        for key in keys:
            self.tier.store(key, FORM, memoryview(bytearray(payload_bytes)))

    def left(self) -> list[ObjectKey]:
        """What is stored, in the order in which it would go."""
        listed = [key for key, _ in self.tier.catalog.oldest(0, 10_000)]
        assert {stored.key for stored in self.tier.adapter.scan()} == set(self.tier.catalog.keys())
        return listed

    def fault(self, **rates: float) -> None:
        assert isinstance(self.tier.adapter, FaultAdapter)
        self.tier.adapter.set_faults(Faults(**rates))


def loaded(limits: dict[str, int]) -> QuotaTable:
    quotas = QuotaTable()
    quotas.load(limits)
    return quotas


def key(number: int, salt: str = "") -> ObjectKey:
    return ObjectKey(number.to_bytes(4, "big"), "model", 16777472, 0, salt)


def keys(count: int, salt: str = "", start: int = 0) -> list[ObjectKey]:
    return [key(number, salt) for number in range(start, start + count)]


def isolated(trigger: float = 0.8, ratio: float = 0.2) -> dict[str, object]:
    return {"eviction_policy": "IsolatedLRU", "trigger_watermark": trigger, "eviction_ratio": ratio}


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
    world.put(*keys(10))

    assert world.evictor.ask_for_room(10)
    world.evictor.run_pass()
    assert world.left() == keys(8, start=2)

    assert not world.evictor.ask_for_room(10), "a write that began before room was made says nothing"
    world.clock.now += SETTLING_S
    assert world.evictor.ask_for_room(3 * SIZE)
    world.evictor.run_pass()
    assert world.left() == keys(5, start=5)


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
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert world.evictor.ask_for_room(SIZE) is False

    world.fault()
    world.tier.breaker.succeeded()
    world.evictor.run_pass()
    assert world.left() == keys(5, start=5)


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


def test_an_adapter_that_evicts_nothing_has_no_loop() -> None:
    world = World(eviction={"eviction_policy": "noop"})
    world.put(*keys(3))
    before = threading.active_count()
    with running(world) as eviction:
        assert threading.active_count() == before
        eviction.wake()
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


# ---- against a model

objects = st.lists(st.tuples(st.sampled_from(SALTS), st.integers(0, 7), st.integers(1, 5)), min_size=1, max_size=40)
chosen = st.sets(st.tuples(st.sampled_from(SALTS), st.integers(0, 7)), max_size=12)


class Model:
    """What is stored, oldest first, and what each rule lets go of, by the letter."""

    def __init__(self, busy: set[ObjectKey]) -> None:
        self.sizes: dict[ObjectKey, int] = {}
        self.busy = busy

    def put(self, stored: ObjectKey, size: int) -> None:
        self.sizes.pop(stored, None)
        self.sizes[stored] = size

    def use(self, stored: ObjectKey) -> None:
        if stored in self.sizes:
            self.sizes[stored] = self.sizes.pop(stored)

    def used(self, salt: str | None = None) -> int:
        return sum(size for stored, size in self.sizes.items() if salt in (None, stored.cache_salt))

    def bring_down(self, goal: int, salt: str | None = None) -> None:
        for stored in list(self.sizes):
            if self.used(salt) <= goal:
                return
            if salt in (None, stored.cache_salt) and stored not in self.busy:
                del self.sizes[stored]


@given(objects, chosen, chosen, st.dictionaries(st.sampled_from(SALTS), st.integers(0, 30)), st.integers(10, 60))
def test_one_pass_does_what_the_rules_say(
    stored: list[tuple[str, int, int]],
    used: set[tuple[str, int]],
    busy: set[tuple[str, int]],
    limits: dict[str, int],
    capacity: int,
) -> None:
    quotas = loaded({salt: limit * SIZE for salt, limit in limits.items()})
    isolating = World(quotas, eviction=isolated(0.5, 0.5))
    plain = World(eviction={"trigger_watermark": 0.5, "eviction_ratio": 0.5})
    model, plain_model = (Model({key(number, salt) for salt, number in busy}) for _ in range(2))
    for salt, number, units in stored:
        for world, expected in ((isolating, model), (plain, plain_model)):
            world.put(key(number, salt), payload_bytes=units * SIZE - HEADER_BYTES)
            expected.put(key(number, salt), units * SIZE)
    for salt, number in sorted(used):
        for world, expected in ((isolating, model), (plain, plain_model)):
            world.tier.catalog.used(key(number, salt))
            expected.use(key(number, salt))

    plain.tier._capacity_bytes = capacity * SIZE
    with ExitStack() as in_use:
        for world in (isolating, plain):
            for held in model.busy:
                in_use.enter_context(world.tier.calls.reading(held))
            world.evictor.run_pass()

    for salt in SALTS:
        model.bring_down(quotas.limit_of(salt), salt)
    assert {left: world_size(isolating, left) for left in isolating.left()} == model.sizes
    if plain_model.used() > int(capacity * SIZE * 0.5):
        plain_model.bring_down(int(int(capacity * SIZE * 0.5) * 0.5))
    assert plain.left() == list(plain_model.sizes)


def world_size(world: World, stored: ObjectKey) -> int | None:
    return world.tier.catalog.size_of(stored)


@given(objects, chosen, st.integers(5, 40))
def test_under_isolation_a_full_storage_comes_down_to_its_target_with_each_salts_newest(
    stored: list[tuple[str, int, int]], busy: set[tuple[str, int]], capacity: int
) -> None:
    world = World(loaded(dict.fromkeys(SALTS, 1000 * SIZE)), eviction=isolated(0.5, 0.5))
    world.tier._capacity_bytes = capacity * SIZE
    for salt, number, units in stored:
        world.put(key(number, salt), payload_bytes=units * SIZE - HEADER_BYTES)
    before = world.left()
    held = {key(number, salt) for salt, number in busy}
    trigger, catalog = int(capacity * SIZE * 0.5), world.tier.catalog
    full = catalog.bytes_used > trigger
    with ExitStack() as in_use:
        for reader in held:
            in_use.enter_context(world.tier.calls.reading(reader))
        world.evictor.run_pass()

    left = set(world.left())
    assert held & set(before) <= left
    if not full:
        assert left == set(before)
    elif left - held:
        assert catalog.bytes_used <= trigger * 0.5
    for salt in SALTS:
        order = [found for found in before if found.cache_salt == salt and found not in held]
        kept = [found in left for found in order]
        assert kept == sorted(kept), "a newer object went before an older one of its salt"


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
