"""What people are told about single objects of L1."""

import pytest

from engine.l1 import finder
from engine.l1.cache import L1Cache
from engine.l1.eviction import ARC, LRU, EvictionPolicy, IsolatedLRU, Noop
from engine.l1.finder import FoundObject
from engine.l1.pool import PAGE, SlotPool
from engine.object_key import ObjectKey

LAYOUT = b"layout"


def key(digits: str, salt: str = "") -> ObjectKey:
    return ObjectKey(bytes.fromhex(digits), "model", 16777472, 0, salt)


def filled(policy: EvictionPolicy, *keys: ObjectKey) -> L1Cache:
    """A cache in which these were stored one after the other."""
    l1 = L1Cache(SlotPool(64 * PAGE), policy, write_ttl_s=60, read_ttl_s=60)
    for one in keys:
        assert l1.commit(l1.reserve([one], 100, LAYOUT, 1))
    return l1


def places(l1: L1Cache, *keys: ObjectKey) -> list[tuple[int | None, int | None]]:
    found = {item.key: (item.colder, item.ordered) for item in l1.find("", 100)[0]}
    return [found[one] for one in keys]


def test_objects_are_found_by_the_beginning_of_their_hash() -> None:
    keys = [key("0a1b00"), key("0a1b01"), key("0a2c00"), key("ff1b00")]
    l1 = filled(LRU(), *keys)

    def found(prefix: str) -> list[ObjectKey]:
        return [item.key for item in l1.find(prefix, 100)[0]]

    assert found("0a1b") == keys[:2]
    assert found("0a1b0") == keys[:2]
    assert found("0a1b01") == [keys[1]]
    assert found("0a2") == [keys[2]]
    assert found("0a1b0100") == found("1b00") == []


def test_no_more_are_told_than_asked_for() -> None:
    keys = [key(f"aabb{number:04x}") for number in range(300)]
    l1 = filled(Noop(), *[key("aabb")])
    assert l1.find("aabb", 1) == ([FoundObject(key("aabb"), 100, "ready", 0, 0, None, None)], False)

    l1 = L1Cache(SlotPool(400 * PAGE), LRU(), write_ttl_s=60, read_ttl_s=60)
    assert l1.commit(l1.reserve(keys, 1, LAYOUT, 1))
    found, has_more = l1.find("aabb", 290)

    assert ([item.key for item in found], has_more) == (keys[:290], True)
    assert {(item.colder, item.ordered) for item in found} == {(place, 300) for place in range(10, 300)}


def test_holders_and_writers_are_counted() -> None:
    read, written = key("aa"), key("bb")
    l1 = filled(LRU(), read)
    assert l1.lease_prefix([[read]], {LAYOUT: ()}, "request", ("model", 1), 3) == 1
    pin = l1.pin([read], LAYOUT, 1, "another")
    reservation = l1.reserve([written], 200, LAYOUT, 1)

    assert l1.find("aa", 1) == ([FoundObject(read, 100, "ready", 3, 1, 0, 1)], False)
    assert l1.find("bb", 1) == ([FoundObject(written, 200, "writing", 0, 0, None, None)], False)
    assert pin is not None
    l1.unpin(pin)
    l1.abort(reservation)
    assert l1.find("bb", 1) == ([], False)
    l1.clear(force=True)
    assert l1.find("", 9) == ([], False)
    l1.release("request", [read], 3)


def test_an_object_that_was_read_is_the_last_to_go() -> None:
    first, second = key("aa"), key("bb")
    l1 = filled(LRU(), first, second)
    assert places(l1, first, second) == [(0, 2), (1, 2)]

    l1.touch([first])

    assert places(l1, first, second) == [(1, 2), (0, 2)]


def test_a_tenant_has_an_order_of_its_own_when_tenants_are_isolated() -> None:
    keys = [key("aa"), key("bb", "alice"), key("cc")]

    assert places(filled(IsolatedLRU(lambda salt: 1 << 20, 0), *keys), *keys) == [(0, 2), (0, 1), (1, 2)]


def test_objects_that_were_used_again_have_an_order_of_their_own_under_arc() -> None:
    keys = [key("aa"), key("bb"), key("cc")]
    l1 = filled(ARC(), *keys)
    pin = l1.pin([keys[0]], LAYOUT, 1, "reader")
    assert pin is not None
    l1.unpin(pin)

    assert places(l1, *keys) == [(0, 1), (0, 2), (1, 2)]


def test_a_long_order_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key("aa"), key("bb")]
    l1 = filled(LRU(), *keys)
    monkeypatch.setattr(finder, "MAX_ORDERED", 1)

    assert places(l1, *keys) == [(None, None), (None, None)]
