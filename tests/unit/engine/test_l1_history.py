"""Random histories of the L1 cache against a plain model, with every invariant checked after each step."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.l1.cache import L1Cache
from engine.l1.eviction import make_policy
from engine.l1.holds import ENGINE, Pin, Reservation
from engine.l1.index import State
from engine.l1.pool import PAGE, SlotPool
from engine.object_key import ObjectKey

PAGES = 12
WRITE_TTL_S, READ_TTL_S = 60.0, 30.0
SALTS = ("", "alice")
LAYOUTS = (b"layout-one", b"layout-two")
KEYS = [ObjectKey(bytes([number]), "model", 0x01000100, 0, salt) for salt in SALTS for number in range(5)]
OWNERS = ("request-a", "request-b")
SCOPES = (("model", 1), ("other", 1))

layouts = st.sampled_from((LAYOUTS[0], LAYOUTS[0], LAYOUTS[0], LAYOUTS[1]))
holders = st.sampled_from((1, 2, ENGINE))
prefixes = st.tuples(st.sampled_from(SALTS), st.integers(1, 5)).map(
    lambda drawn: [key for key in KEYS if key.cache_salt == drawn[0]][: drawn[1]]
)


class L1History(RuleBasedStateMachine):
    """The model knows what is readable and who holds what. Which unheld objects get evicted is the cache's choice."""

    @initialize(policy=st.sampled_from(("LRU", "IsolatedLRU", "ARC", "noop")))
    def begin(self, policy: str) -> None:
        self.now = 1000.0
        self.limits = {"": 4 * PAGE, "alice": 3 * PAGE}
        pool = SlotPool(PAGES * PAGE)
        self.policy = make_policy(policy, lambda salt: self.limits.get(salt, 0), pool.capacity)
        self.l1 = L1Cache(pool, self.policy, write_ttl_s=WRITE_TTL_S, read_ttl_s=READ_TTL_S, clock=lambda: self.now)
        self.ready: dict[ObjectKey, tuple[bytes, int]] = {}
        self.leases: dict[str, tuple[tuple[str, int], float, Counter[ObjectKey]]] = {}
        self.pins: list[Pin] = []
        self.reservations: list[Reservation] = []

    # ---- what the model can tell

    def held(self) -> set[ObjectKey]:
        pinned = {e.key for pin in self.pins for e in pin.entries if e.state is State.READY}
        return pinned | {key for _, _, counts in self.leases.values() for key in counts}

    def learn_evictions(self) -> set[ObjectKey]:
        """Drops from the model what is gone; what went must not have been held."""
        gone = {key for key in self.ready if self.l1._index.readable(key) is None}
        assert not gone & self.held(), "a held object was evicted"
        for key in gone:
            del self.ready[key]
        return gone

    def forget_doomed(self) -> None:
        """After a forced clear nothing is readable, so nothing readable is leased either."""
        self.ready = {}
        self.leases = {}

    # ---- writing

    @rule(keys=prefixes, pages=st.integers(1, 2), layout=layouts, holder=holders)
    def store(self, keys: list[ObjectKey], pages: int, layout: bytes, holder: int | str) -> None:
        reservation = self.l1.reserve(keys, pages * PAGE, layout, holder)
        self.learn_evictions()
        assert self.l1.commit(reservation) == bool(reservation.granted)
        self.ready |= {entry.key: (entry.fingerprint, entry.nbytes) for entry in reservation.granted}

    @rule(keys=prefixes, pages=st.integers(1, 4), layout=layouts, holder=holders)
    def reserve(self, keys: list[ObjectKey], pages: int, layout: bytes, holder: int | str) -> None:
        writing = {e.key for r in self.reservations for e in r.granted if e.state is State.WRITING}
        present = {key for key in keys if self.ready.get(key, (b"", 0))[0] == layout}
        held = self.held()

        reservation = self.l1.reserve(keys, pages * PAGE, layout, holder)

        self.learn_evictions()
        for key, entry in zip(keys, reservation.entries, strict=True):
            if entry is not None:
                assert key not in present | writing | held
                assert key not in self.ready
        if reservation.granted:
            self.reservations.append(reservation)

    @precondition(lambda self: self.reservations)
    @rule(data=st.data(), commits=st.booleans())
    def finish(self, data: st.DataObject, commits: bool) -> None:
        reservation = self.reservations.pop(data.draw(st.integers(0, len(self.reservations) - 1)))
        in_time = self.now < reservation.deadline
        whole = all(entry.state is State.WRITING for entry in reservation.granted)
        if not commits:
            self.l1.abort(reservation)
            return

        committed = self.l1.commit(reservation)

        assert committed == (in_time and whole)
        for entry in reservation.granted:
            if committed:
                self.ready[entry.key] = (entry.fingerprint, entry.nbytes)
        assert not self.l1.commit(reservation), "a reservation is committed once"

    # ---- reading

    @rule(keys=prefixes, owner=st.sampled_from(OWNERS), readers=st.integers(1, 3), scope=st.sampled_from(SCOPES))
    def lookup(self, keys: list[ObjectKey], owner: str, readers: int, scope: tuple[str, int]) -> None:
        expected = 0
        for key in keys:
            if key not in self.ready or self.ready[key][0] != self.ready[keys[0]][0]:
                break
            expected += 1

        hit = self.l1.lease_prefix([[key] for key in keys], dict.fromkeys(LAYOUTS, ()), owner, scope, readers)

        assert hit == expected
        self.leases.pop(owner, None)
        if hit:
            counts = Counter(dict.fromkeys(keys[:hit], readers))
            self.leases[owner] = (scope, self.now + READ_TTL_S, counts)

    @rule(keys=prefixes, owner=st.sampled_from(OWNERS), readers=st.integers(1, 4))
    def release(self, keys: list[ObjectKey], owner: str, readers: int) -> None:
        self.l1.release(owner, keys, readers)
        self.give_back(owner, keys, readers)

    def give_back(self, owner: str, keys: list[ObjectKey], readers: int) -> None:
        if owner in self.leases:
            counts = self.leases[owner][2]
            for key in keys:
                counts[key] = counts[key] - readers
            for key in [key for key, number in counts.items() if number <= 0]:
                del counts[key]
            if not counts:
                del self.leases[owner]

    @rule(keys=prefixes, owner=st.sampled_from(OWNERS), layout=layouts, holder=holders)
    def pin(self, keys: list[ObjectKey], owner: str, layout: bytes, holder: int | str) -> None:
        possible = all(self.ready.get(key, (b"", 0))[0] == layout for key in keys)

        pin = self.l1.pin(keys, layout, holder, owner)

        assert (pin is not None) == possible
        self.give_back(owner, keys, 1)
        if pin is not None:
            assert [entry.key for entry in pin.entries] == keys
            self.pins.append(pin)

    @precondition(lambda self: self.ready)
    @rule(data=st.data(), owner=st.sampled_from(OWNERS), holder=holders)
    def pin_what_is_there(self, data: st.DataObject, owner: str, holder: int | str) -> None:
        key = data.draw(st.sampled_from(sorted(self.ready)))

        pin = self.l1.pin([key], self.ready[key][0], holder, owner)

        assert pin is not None
        self.give_back(owner, [key], 1)
        self.pins.append(pin)

    @rule(keys=prefixes, layout=layouts)
    def hold(self, keys: list[ObjectKey], layout: bytes) -> None:
        pins = self.l1.hold(keys, (layout,))

        assert [pin is not None for pin in pins] == [self.ready.get(key, (b"", 0))[0] == layout for key in keys]
        self.pins += [pin for pin in pins if pin is not None]

    @rule(key=st.sampled_from(KEYS), layout=layouts, readable=st.booleans())
    def load(self, key: ObjectKey, layout: bytes, readable: bool) -> None:
        reservation = self.l1.reserve([key], PAGE, layout, ENGINE)
        self.learn_evictions()
        if not readable or not reservation.granted:
            self.l1.abort(reservation)
            return

        pin = self.l1.commit_pinned(reservation)

        assert pin is not None
        assert pin.entries == reservation.granted
        self.pins.append(pin)
        self.ready[key] = (layout, PAGE)

    @rule(keys=prefixes)
    def drop_written(self, keys: list[ObjectKey]) -> None:
        held = self.held()
        entries = [entry for entry in map(self.l1._index.readable, keys) if entry is not None]

        dropped = self.l1.drop_written(entries)

        expected = {entry.key for entry in entries} - held
        assert dropped == len(expected)
        assert self.learn_evictions() == expected

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pin = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        self.l1.unpin(pin)
        self.l1.unpin(pin)

    @rule(keys=prefixes)
    def touch(self, keys: list[ObjectKey]) -> None:
        self.l1.touch(keys)

    # ---- letting go

    @rule(pages=st.integers(3, PAGES))
    def evict(self, pages: int) -> None:
        evicted, _ = self.l1.evict_to(pages * PAGE)

        gone = self.learn_evictions()

        assert evicted == len(gone)
        if self.policy.name != "noop" and self.l1.usage()[0] > pages * PAGE:
            assert set(self.ready) <= self.held(), "something evictable was spared"

    @rule()
    def enforce_quotas(self) -> None:
        self.l1.evict_over_quota()

        gone = self.learn_evictions()

        if self.policy.name != "IsolatedLRU":
            assert not gone
            return
        for salt in SALTS:
            nbytes = sum(size for key, (_, size) in self.ready.items() if key.cache_salt == salt)
            if nbytes > self.limits.get(salt, 0):
                assert {key for key in self.ready if key.cache_salt == salt} <= self.held()

    @rule(salt=st.sampled_from(SALTS), pages=st.integers(0, 6))
    def set_limit(self, salt: str, pages: int) -> None:
        self.limits[salt] = pages * PAGE

    @rule(force=st.booleans())
    def clear(self, force: bool) -> None:
        held = self.held()
        before = len(self.ready)

        result = self.l1.clear(force=force)

        if force:
            self.forget_doomed()
            assert result.kept == 0
            assert self.l1.report()["total_object_count"] == 0
        else:
            self.ready = {key: value for key, value in self.ready.items() if key in held}
            assert result.removed == before - len(self.ready)
            assert result.doomed == 0

    @rule(keys=prefixes, force=st.booleans())
    def delete(self, keys: list[ObjectKey], force: bool) -> None:
        writing = {e.key for r in self.reservations for e in r.granted if e.state is State.WRITING}
        in_use = self.held() | writing
        there = [key for key in keys if key in self.ready or key in writing]
        spared = [] if force else [key for key in there if key in in_use]

        counts = self.l1.delete([*keys, keys[0]], force=force)

        assert (counts.deleted, counts.skipped) == (len(there) - len(spared), len(spared))
        for key in set(there) - set(spared):
            self.ready.pop(key, None)
            for owner in list(self.leases):
                self.give_back(owner, [key], self.leases[owner][2][key])

    @rule(seconds=st.sampled_from((1.0, 10.0, 31.0, 61.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.l1.expire()
        self.leases = {owner: lease for owner, lease in self.leases.items() if lease[1] > self.now}

    @rule(holder=st.sampled_from((1, 2)))
    def client_dies(self, holder: int) -> None:
        self.l1.release_holder(holder)
        self.pins = [pin for pin in self.pins if pin.holder != holder]
        for reservation in [r for r in self.reservations if r.holder == holder]:
            self.reservations.remove(reservation)
            assert not self.l1.commit(reservation), "the commit of a dead client's reservation is refused"

    @rule(scope=st.sampled_from(SCOPES))
    def last_worker_leaves(self, scope: tuple[str, int]) -> None:
        self.l1.release_scope(scope)
        self.leases = {owner: lease for owner, lease in self.leases.items() if lease[0] != scope}

    # ---- what must hold after every step

    @invariant()
    def model_and_cache_agree(self) -> None:
        if not hasattr(self, "l1"):
            return
        self.l1.check()
        readable = {key for key in KEYS if self.l1._index.readable(key) is not None}
        assert readable == set(self.ready)
        report = self.l1.report()
        assert report["reservations"] == len(self.reservations)
        assert report["pins"] == len(self.pins)
        sums: dict[str, int] = {}
        for key, (_, nbytes) in self.ready.items():
            sums[key.cache_salt] = sums.get(key.cache_salt, 0) + nbytes
        assert self.l1.bytes_by_salt() == sums

    def teardown(self) -> None:
        """When everybody has let go, nothing is held, doomed or reserved."""
        if not hasattr(self, "l1"):
            return
        for pin in self.pins:
            self.l1.unpin(pin)
        for reservation in self.reservations:
            self.l1.abort(reservation)
        self.now += READ_TTL_S + 1
        self.l1.expire()
        report = self.l1.report()
        names = ("reservations", "pins", "leases", "lease_owners", "doomed_objects", "doomed_bytes")
        assert [report[name] for name in names] == [0] * len(names)
        self.l1.clear(force=True)
        assert self.l1.usage()[0] == 0
        self.l1.check()


TestL1History = L1History.TestCase
TestL1History.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.soak
@pytest.mark.timeout(900)
class TestLongL1History(L1History.TestCase):  # type: ignore[misc,valid-type]  # made by hypothesis
    """The same for minutes."""

    settings = settings(max_examples=4000, stateful_step_count=80, deadline=None)
