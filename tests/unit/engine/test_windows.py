"""Hybrid models: a hit never ends where a windowed group's data is missing."""

from hypothesis import given
from hypothesis import strategies as st

from engine.l1.cache import L1Cache
from engine.l1.eviction import LRU
from engine.l1.pool import PAGE, SlotPool
from engine.l1.windows import usable_chunks
from engine.object_key import ObjectKey

LAYOUT, SCOPE = b"layout", ("model", 1)
KEYS = [ObjectKey(bytes([number]), "model", 16777472) for number in range(8)]


def is_usable(missing: list[int], windows: list[int], length: int) -> bool:
    """The rule itself: each windowed group has data in the last chunks of the prefix."""
    return all(
        not missing[chunk] >> group & 1
        for group, window in enumerate(windows)
        for chunk in range(max(0, length - window), length)
    )


@given(st.lists(st.integers(0, 7), max_size=12), st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_the_longest_usable_prefix_is_found(missing: list[int], windows: list[int]) -> None:
    expected = max(length for length in range(len(missing) + 1) if is_usable(missing, windows, length))

    assert usable_chunks(missing, windows) == (expected if any(windows) else len(missing))


def cache() -> L1Cache:
    return L1Cache(SlotPool(16 * PAGE), LRU(), write_ttl_s=60, read_ttl_s=60)


def store(l1: L1Cache, missing: list[int]) -> int:
    """Stores the first chunks; returns how many were written."""
    reservation = l1.reserve(KEYS[: len(missing)], PAGE, LAYOUT, 1, missing)
    if reservation.granted:
        assert l1.commit(reservation)
    return len(reservation.granted)


def hit(l1: L1Cache, chunks: int, windows: tuple[int, ...]) -> int:
    return l1.lease_prefix([[key] for key in KEYS[:chunks]], {LAYOUT: windows}, "reader", SCOPE, 1)


def test_a_long_hit_needs_the_window_at_its_end_only() -> None:
    l1 = cache()
    store(l1, [0b10] * 6 + [0, 0])

    assert hit(l1, 8, (0, 2)) == 8
    assert hit(l1, 7, (0, 2)) == 0
    assert hit(l1, 7, (0, 1)) == 7
    assert hit(l1, 6, (0, 1)) == 0
    assert hit(l1, 6, ()) == 6
    assert l1.report()["leased_objects"] == 6


def test_an_object_that_lacks_less_takes_the_place_of_one_that_lacks_more() -> None:
    l1 = cache()
    store(l1, [0b10, 0b10, 0])

    assert store(l1, [0b10, 0, 0b10]) == 1

    assert hit(l1, 2, (0, 1)) == 2
    l1.check()


def test_an_incomplete_object_is_not_replaced_under_its_reader() -> None:
    l1 = cache()
    store(l1, [0b10])
    assert hit(l1, 1, ()) == 1

    assert store(l1, [0]) == 0
