"""Eviction from L2 against a model of its rules, and under an engine that writes more than the storage holds."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.l2.record import HEADER_BYTES
from engine.object_key import ObjectKey
from tests.unit.engine.engine_client import CONFIG, OBJECT_BYTES, REGISTRATION, fill, request, started
from tests.unit.engine.l2_world import SALTS, SIZE, World, isolated, key, loaded
from tests.waiting import wait_for

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


@pytest.mark.parametrize("policy", ["LRU", "IsolatedLRU"])
def test_more_than_the_storage_holds_is_written_back_and_the_newest_are_there(policy: str) -> None:
    stored_bytes = HEADER_BYTES + OBJECT_BYTES
    adapter = {"type": "memory", "max_bytes": 10 * stored_bytes, "eviction": {"eviction_policy": policy}}
    config = replace(
        CONFIG, instance_id="unit-l2-eviction", l2_adapter=(adapter,), write_back_max_bytes=CONFIG.l1_size_bytes
    )
    with started(config) as engine:
        engine.load_quotas(dict.fromkeys(SALTS, 8 * stored_bytes))
        engine.register_engine_driven(REGISTRATION)
        (tier,), (queue,) = engine.l2.tiers, engine.l2.write_back.queues
        written = tier.counters.write_back["stored"]._value.get
        for round_ in range(1, 11):
            for salt in SALTS:
                assert fill(engine, request(round_, f"{salt}-{round_}", cache_salt=salt))
            wait_for(lambda n=round_: written() == n * len(SALTS), 20, f"round {round_} is written")

        wait_for(lambda: tier.catalog.bytes_used <= 8 * stored_bytes, 10, "the storage is below its watermark")
        newest = [found for found, _ in tier.catalog.oldest(0, 100)][-len(SALTS) :]
        assert {found.cache_salt for found in newest} == set(SALTS)
        assert queue.describe()["dead_letters"] == []
        evicted = tier.counters.evicted._value.get
        wait_for(lambda: evicted() == 10 * len(SALTS) - len(tier.catalog), 10, "every object is accounted for")
