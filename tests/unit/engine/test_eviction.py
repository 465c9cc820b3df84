"""What each eviction policy lets go first."""

from itertools import islice

from engine.l1.cache import L1Cache
from engine.l1.eviction import ARC, LRU, EvictionPolicy, IsolatedLRU, make_policy
from engine.l1.pool import PAGE, SlotPool
from engine.object_key import ObjectKey

LAYOUT = b"layout"


def key(number: int, salt: str = "") -> ObjectKey:
    return ObjectKey(number.to_bytes(4, "big"), "model", 16777472, 0, salt)


def cache(policy: EvictionPolicy, pages: int = 8) -> L1Cache:
    return L1Cache(SlotPool(pages * PAGE), policy, write_ttl_s=60, read_ttl_s=60)


def store(l1: L1Cache, keys: list[ObjectKey], nbytes: int = PAGE) -> None:
    reservation = l1.reserve(keys, nbytes, LAYOUT, 1)
    assert l1.commit(reservation)


def readable(l1: L1Cache, keys: list[ObjectKey]) -> list[ObjectKey]:
    return [wanted for wanted in keys if l1.lease_prefix([[wanted]], {LAYOUT: ()}, "look", ("m", 1), 1)]


def test_a_prefix_loses_its_tail_before_its_head() -> None:
    l1 = cache(LRU())
    prefix = [key(number) for number in range(6)]
    store(l1, prefix)

    l1.evict_to(3 * PAGE)

    assert readable(l1, prefix) == prefix[:3]


def test_reading_makes_recent() -> None:
    l1 = cache(LRU())
    old, new = [key(1), key(2)], [key(3), key(4)]
    store(l1, old)
    store(l1, new)
    pin = l1.pin(old, LAYOUT, 1, "reader")
    assert pin is not None
    l1.unpin(pin)

    l1.evict_to(2 * PAGE)

    assert readable(l1, old + new) == old


def test_a_store_that_finds_the_pool_full_makes_room_at_once() -> None:
    l1 = cache(LRU(), pages=4)
    store(l1, [key(number) for number in range(4)])

    store(l1, [key(9)], nbytes=2 * PAGE)

    assert readable(l1, [key(9)]) == [key(9)]
    assert l1.usage()[0] <= 4 * PAGE
    l1.check()


def test_what_is_held_is_never_evicted_and_is_reported() -> None:
    l1 = cache(LRU())
    store(l1, [key(1), key(2)])
    l1.lease_prefix([[key(1)]], {LAYOUT: ()}, "reader", ("m", 1), 1)

    assert l1.evict_to(0) == (1, 1)
    assert l1.report()["leased_objects"] == 1


def test_isolated_lru_holds_each_salt_to_its_limit() -> None:
    limits = {"alice": 2 * PAGE, "bob": 8 * PAGE}
    l1 = cache(make_policy("IsolatedLRU", lambda salt: limits.get(salt, 0), 8 * PAGE))
    for salt in ("alice", "bob", "nobody"):
        for number in range(2 if salt == "bob" else 3):
            store(l1, [key(number, salt)])

    noted: list[tuple[str, int, int, int]] = []
    assert l1.evict_over_quota(lambda *what: noted.append(what)) == (4, 0)
    assert sorted(noted) == [("alice", 1, PAGE, 2 * PAGE), ("nobody", 3, 3 * PAGE, 0)]

    assert l1.bytes_by_salt() == {"alice": 2 * PAGE, "bob": 2 * PAGE}
    assert readable(l1, [key(number, "alice") for number in range(3)]) == [key(1, "alice"), key(2, "alice")]


def test_under_pressure_the_salt_furthest_over_its_share_gives_first() -> None:
    limits = {"small": 2 * PAGE, "large": 6 * PAGE}
    policy = IsolatedLRU(lambda salt: limits[salt], 4 * PAGE)
    for number in range(2):
        policy.add(key(number, "small"), PAGE)
        policy.add(key(number, "large"), PAGE)

    order = [found.cache_salt for found in policy.oldest()]

    assert order == ["small", "small", "large", "large"]


def test_arc_keeps_what_was_read_again_through_a_scan() -> None:
    l1 = cache(ARC(), pages=8)
    hot = [key(1), key(2)]
    store(l1, hot)
    pin = l1.pin(hot, LAYOUT, 1, "reader")
    assert pin is not None
    l1.unpin(pin)

    for number in range(100, 140):
        store(l1, [key(number)])

    assert readable(l1, hot) == hot


def test_arc_learns_from_a_ghost_that_comes_back() -> None:
    policy = ARC()
    for number in range(4):
        policy.add(key(number), PAGE)
    policy.used(key(3))
    policy.remove(key(0), PAGE, evicted=True)

    policy.add(key(0), PAGE)

    assert policy._target == 1.0
    assert key(0) in policy._again


def test_noop_offers_nobody() -> None:
    l1 = cache(make_policy("noop", lambda salt: 0, 0), pages=2)
    store(l1, [key(1), key(2)])

    refused = l1.reserve([key(3)], PAGE, LAYOUT, 1)

    assert refused.granted == []
    assert refused.refused == 1
    assert l1.evict_to(0) == (0, 0)


def test_an_order_can_be_asked_for_its_oldest_without_changing_it() -> None:
    policy = LRU()
    for number in range(5):
        policy.add(key(number), PAGE)

    assert list(islice(policy.oldest(), 2)) == [key(0), key(1)]
    assert list(policy.keys()) == [key(number) for number in range(5)]
