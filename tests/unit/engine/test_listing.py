"""Pages of keys: a walk meets every object that stays exactly once, whatever else comes and goes."""

import base64
import itertools
import json
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from engine.errors import BadRequest, TooBusy, Unsupported
from engine.l1.eviction import LRU
from engine.l2 import listing
from engine.l2.base import ConnectionFault, Stored
from engine.l2.catalog import Catalog
from engine.l2.fault_adapter import FaultAdapter, FaultConfig, Faults
from engine.l2.listing import MAX_PAGE_SIZE, Listings, Page, key_of_token, token_of
from engine.l2.memory_adapter import MemoryAdapter, MemoryConfig
from engine.l2.metrics import TierMetrics
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from engine.object_key import ObjectKey

DATA = [memoryview(b"12345")]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class CountingAdapter(MemoryAdapter):
    """Tells how often it was read through."""

    scans = 0

    def scan(self) -> Iterator[Stored]:
        self.scans += 1
        return super().scan()


def make_tier(*, shared: bool = False, complete: bool = True) -> Tier:
    catalog = Catalog(LRU())
    if complete:
        catalog.take_scan([])
    counters = TierMetrics(CollectorRegistry()).of("memory", 0)
    tier = Tier(0, read_spec({"type": "memory", "shared": shared}), catalog, counters)
    tier.adapter, tier.codec = CountingAdapter(MemoryConfig()), None
    return tier


def put(tier: Tier, key: ObjectKey) -> None:
    tier.adapter.write(key, DATA)
    tier.catalog.add(key, 5)


def walk(listings: Listings, tier: Tier, page_size: int, model_name: str | None = None) -> list[list[ObjectKey]]:
    pages: list[list[ObjectKey]] = []
    token: str | None = ""
    while token is not None:
        page = listings.page(tier, model_name=model_name, page_size=page_size, token=token)
        pages.append([key for key, _ in page.entries])
        token = page.next_token
    return pages


keys = st.builds(
    ObjectKey,
    chunk_hash=st.binary(max_size=3),
    model_name=st.sampled_from(["m", "n", "é東"]),
    kv_rank=st.sampled_from([16777472, 33554944, -1]),
    object_group_id=st.integers(0, 1),
    cache_salt=st.sampled_from(["", "alice"]),
)
changes = st.lists(st.tuples(keys, st.booleans(), st.sampled_from([0.0, 1.0, 6.0])), max_size=60)


@given(st.sets(keys, max_size=40), changes, st.integers(1, 7), st.booleans(), st.booleans())
def test_a_walk_meets_what_stays_exactly_once(
    staying: set[ObjectKey],
    history: list[tuple[ObjectKey, bool, float]],
    page_size: int,
    shared: bool,
    restarts: bool,
) -> None:
    clock, tier, met = Clock(), make_tier(shared=shared), []
    listings, token, steps = Listings(clock), None, iter(history)
    for key in staying:
        put(tier, key)

    for number in itertools.count():
        page = listings.page(tier, model_name=None, page_size=page_size, token=token)
        met += [key for key, _ in page.entries]
        token = page.next_token
        if token is None:
            break
        assert len(page.entries) == page_size
        for key, adds, passes_s in itertools.islice(steps, 3):
            clock.now += passes_s
            if adds:
                put(tier, key)
            elif key not in staying:
                tier.delete(key)
        if restarts and number % 2:
            listings = Listings(clock)

    assert met == sorted(set(met))
    assert staying <= set(met) <= staying | {key for key, adds, _ in history if adds}


@given(keys)
def test_a_token_is_read_back(key: ObjectKey) -> None:
    assert key_of_token(token_of(key)) == key
    assert key_of_token(token_of(key)) == ObjectKey(*key)


def encode(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!!",
        "e30",
        "bm90IGpzb24",
        "é",
        "A" * 9000,
        encode(["00", "m", 1, 0]),
        encode(["00", "m", 1, 0, "", 1]),
        encode(["0", "m", 1, 0, ""]),
        encode(["00", "a@b", 1, 0, ""]),
        encode(["00", "m", 1.0, 0, ""]),
        encode(["00", "m", 1, -1, ""]),
        encode([None, "m", 1, 0, ""]),
        encode("00m1a"),
        encode(["00", "m", 1, 0, ""]),  # with spaces after the commas, as token_of never writes it
        token_of(ObjectKey(b"\0", "m", 1)) + "=",
        base64.urlsafe_b64encode(b"[" * 6000).decode(),
    ],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(BadRequest, match="page_token is malformed"):
        Listings().page(make_tier(), model_name=None, page_size=5, token=token)


@given(st.text(max_size=40))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        key = key_of_token(text)
    except BadRequest:
        return
    assert token_of(key) == text


@pytest.mark.parametrize("page_size", [0, -1, MAX_PAGE_SIZE + 1])
def test_page_sizes_have_limits(page_size: int) -> None:
    with pytest.raises(BadRequest, match="page_size"):
        Listings().page(make_tier(), model_name=None, page_size=page_size, token=None)


@pytest.mark.parametrize("shared", [False, True])
def test_pages_of_one_model_are_full(shared: bool) -> None:
    tier = make_tier(shared=shared)
    for number in range(30):
        put(tier, ObjectKey(bytes([number * 7]), "wanted" if number % 3 == 0 else "other", 1))

    pages = walk(Listings(), tier, 4, "wanted")

    assert [len(page) for page in pages] == [4, 4, 2]
    assert {key.model_name for page in pages for key in page} == {"wanted"}
    assert walk(Listings(), tier, 4, "nobody") == [[]]
    assert [len(page) for page in walk(Listings(), tier, 15)] == [15, 15]


def test_sizes_are_those_of_what_is_stored() -> None:
    for shared in (False, True):
        tier, key = make_tier(shared=shared), ObjectKey(b"k", "m", 1)
        put(tier, key)
        assert Listings().page(tier, model_name=None, page_size=1, token="") == Page([(key, 5)], None)


@pytest.mark.parametrize(("shared", "complete"), [(True, True), (False, False)])
def test_a_storage_is_read_through_once_for_a_walk(shared: bool, complete: bool) -> None:
    tier, clock = make_tier(shared=shared, complete=complete), Clock()
    assert isinstance(tier.adapter, CountingAdapter)
    for number in range(200):
        tier.adapter.write(ObjectKey(number.to_bytes(2), "m", 1), DATA)
    listings = Listings(clock)

    pages = walk(listings, tier, 1)

    assert len(pages) == 200
    assert tier.adapter.scans == 1
    clock.now += 60
    listings.page(tier, model_name=None, page_size=1, token=token_of(pages[-1][0]))
    assert tier.adapter.scans == 2


def test_what_was_forgotten_is_looked_up_again() -> None:
    tier, listings = make_tier(shared=True), Listings(Clock())
    key = ObjectKey(b"k", "m", 1)
    put(tier, key)
    first = listings.page(tier, model_name=None, page_size=1, token=token_of(ObjectKey(b"", "m", 1)))
    tier.delete(key)
    listings.forget(tier)

    assert first.entries
    assert listings.page(tier, model_name=None, page_size=1, token=token_of(ObjectKey(b"", "m", 1))).entries == []


def test_a_catalog_that_has_become_complete_is_used() -> None:
    tier, clock = make_tier(complete=False), Clock()
    listings, key = Listings(clock), ObjectKey(b"k", "m", 1)
    assert listings.page(tier, model_name=None, page_size=1, token=None) == Page([], None)

    tier.catalog.take_scan([Stored(key, 7, 0.0)])

    assert listings.page(tier, model_name=None, page_size=1, token=None).entries == [(key, 7)]


def test_old_keys_are_let_go() -> None:
    tier, clock = make_tier(), Clock()
    listings = Listings(clock)
    listings.page(tier, model_name=None, page_size=1, token=None)
    assert listings.kept() == 1

    clock.now += 6
    listings.drop_old()

    assert listings.kept() == 0


def test_a_storage_that_fails_says_so_and_its_breaker_learns_it() -> None:
    tier = make_tier(shared=True)
    put(tier, ObjectKey(b"k", "m", 1))
    tier.adapter = FaultAdapter(FaultConfig(inner={"type": "memory"}), tier.adapter)
    tier.adapter.set_faults(Faults(error_rate=1.0))
    listings = Listings()

    for _ in range(4):
        with pytest.raises(ConnectionFault):
            listings.page(tier, model_name=None, page_size=1, token=None)

    assert tier.breaker.state == "open"


def test_a_storage_of_too_many_objects_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_SCANNED", 300)
    tier = make_tier(shared=True)
    for number in range(600):
        tier.adapter.write(ObjectKey(number.to_bytes(2), "m", 1), DATA)

    with pytest.raises(Unsupported, match="does not support listing more than 300 objects"):
        Listings().page(tier, model_name=None, page_size=1, token=None)


def test_a_storage_that_takes_too_long_is_given_up() -> None:
    clock = Clock()

    class Slow(MemoryAdapter):
        def scan(self) -> Iterator[Stored]:
            for number in itertools.count():
                clock.now += 0.1
                yield Stored(ObjectKey(number.to_bytes(4), "m", 1), 5, 0.0)

    tier = make_tier(shared=True)
    tier.adapter = Slow(MemoryConfig())

    with pytest.raises(TooBusy, match="not read through within 50 s"):
        Listings(clock).page(tier, model_name=None, page_size=1, token=None)


def test_who_waits_for_another_reading_gives_up_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "WAIT_S", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    class Waiting(MemoryAdapter):
        def scan(self) -> Iterator[Stored]:
            begun.set()
            assert go_on.wait(30)
            yield Stored(ObjectKey(b"k", "m", 1), 5, 0.0)

    tier, listings, pages = make_tier(shared=True), Listings(), []
    tier.adapter = Waiting(MemoryConfig())

    def ask() -> None:
        pages.append(listings.page(tier, model_name=None, page_size=1, token=None))

    first = threading.Thread(target=ask)
    first.start()
    try:
        assert begun.wait(30)
        with pytest.raises(TooBusy, match="still being read through"):
            ask()
    finally:
        go_on.set()
        first.join(30)
    assert [len(page.entries) for page in pages] == [1]
