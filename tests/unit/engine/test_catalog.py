"""The catalog: what a scan finds, what happens meanwhile, and that its sums and its order agree with its table."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.l1.eviction import LRU
from engine.l2.base import Stored
from engine.l2.catalog import Catalog
from engine.object_key import ObjectKey

KEYS = [ObjectKey(bytes([number]), "model", 16777472, 0, salt) for salt in ("", "alice") for number in range(6)]


def check(catalog: Catalog, expected: dict[ObjectKey, int]) -> None:
    listed = dict(catalog.oldest(0, 1000))
    assert listed == expected
    assert dict(catalog.keys_after(0, 1000)) == expected
    assert catalog.bytes_used == sum(expected.values())
    sums: dict[str, int] = {}
    for key, size in expected.items():
        sums[key.cache_salt] = sums.get(key.cache_salt, 0) + size
    assert catalog.bytes_by_salt() == sums
    assert all(catalog.contains(key) == (key in expected) for key in KEYS)


steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "used"]), st.sampled_from(KEYS), st.integers(1, 9)), max_size=30
)


@given(steps, steps, st.dictionaries(st.sampled_from(KEYS), st.integers(1, 9)), steps)
def test_whatever_happens_before_during_and_after_a_scan_the_newest_word_counts(
    before: list[tuple[str, ObjectKey, int]],
    during: list[tuple[str, ObjectKey, int]],
    on_disk: dict[ObjectKey, int],
    after: list[tuple[str, ObjectKey, int]],
) -> None:
    catalog, expected, removed = Catalog(LRU()), {}, set()

    def run(history: list[tuple[str, ObjectKey, int]]) -> None:
        for what, key, size in history:
            if what == "add":
                catalog.add(key, size)
                expected[key] = size
                removed.discard(key)
            elif what == "remove":
                assert catalog.remove(key) == (key in expected)
                expected.pop(key, None)
                removed.add(key)
            else:
                catalog.used(key)

    def scan() -> Iterator[Stored]:
        for number, (key, size) in enumerate(on_disk.items()):
            yield Stored(key, size, float(number))
            if number == len(on_disk) // 2:
                run(during)

    run(before)
    check(catalog, expected)
    assert not catalog.complete
    catalog.take_scan(scan())

    assert catalog.complete
    assert catalog.scanned == len(on_disk)
    for key, size in on_disk.items():
        if key not in removed:
            expected.setdefault(key, size)
    check(catalog, expected)
    run(after)
    check(catalog, expected)


def test_a_scan_gives_the_order_of_use_and_what_came_meanwhile_is_newer() -> None:
    catalog = Catalog(LRU())
    catalog.add(KEYS[5], 1)

    catalog.take_scan([Stored(KEYS[0], 1, 30.0), Stored(KEYS[1], 1, 10.0), Stored(KEYS[2], 1, 20.0)])

    assert [key for key, _ in catalog.oldest(0, 10)] == [KEYS[1], KEYS[2], KEYS[0], KEYS[5]]
    catalog.used(KEYS[1])
    assert [key for key, _ in catalog.oldest(2, 10)] == [KEYS[5], KEYS[1]]


def test_what_a_scan_found_before_it_broke_off_counts_and_it_may_be_repeated() -> None:
    catalog = Catalog(LRU())
    catalog.add(KEYS[0], 3)

    def broken() -> Iterator[Stored]:
        yield Stored(KEYS[1], 1, 0.0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        catalog.take_scan(broken())

    assert not catalog.complete
    check(catalog, {KEYS[0]: 3, KEYS[1]: 1})
    catalog.take_scan([Stored(KEYS[1], 1, 0.0)])
    assert catalog.complete
    check(catalog, {KEYS[0]: 3, KEYS[1]: 1})
