"""The pool's allocator against a plain model, and the rules of finding a run of victims."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.l1.pool import PAGE, SlotPool, round_up

PAGES = 24


class PoolHistory(RuleBasedStateMachine):
    """Random allocations, frees and wholesale clears against one owner per page."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(PAGES * PAGE)
        self.slots: dict[int, int] = {}

    def free_runs(self) -> list[int]:
        taken = [False] * PAGES
        for offset, size in self.slots.items():
            for page in range(offset // PAGE, (offset + size) // PAGE):
                assert not taken[page], "two slots share a page"
                taken[page] = True
        runs, run = [], 0
        for used in [*taken, True]:
            if used and run:
                runs.append(run * PAGE)
            run = 0 if used else run + 1
        return runs

    @rule(nbytes=st.integers(1, 7 * PAGE))
    def allocate(self, nbytes: int) -> None:
        largest = max(self.free_runs(), default=0)

        offset = self.pool.allocate(nbytes)

        assert (offset is not None) == (largest >= round_up(nbytes))
        if offset is not None:
            self.slots[offset] = round_up(nbytes)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.slots)))
        self.pool.free(offset)
        del self.slots[offset]

    @rule(data=st.data())
    def keep_only(self, data: st.DataObject) -> None:
        kept = data.draw(st.sets(st.sampled_from(sorted(self.slots)))) if self.slots else set()
        self.pool.keep_only(kept)
        self.slots = {offset: size for offset, size in self.slots.items() if offset in kept}

    @rule(nbytes=st.integers(1, 12 * PAGE), data=st.data())
    def make_room(self, nbytes: int, data: st.DataObject) -> None:
        if self.pool.largest_hole >= round_up(nbytes):
            return
        order = data.draw(st.permutations(sorted(self.slots)))
        order = order[: data.draw(st.integers(0, len(order)))]

        run = self.pool.find_run(nbytes, order)

        if run is None:
            for offset in order:
                self.pool.free(offset)
                del self.slots[offset]
            assert self.pool.largest_hole < round_up(nbytes), "there was a run"
            return
        newest = max(order.index(offset) for offset in run)
        assert self.pool.find_run(nbytes, order[:newest]) is None, "an older run would have done"
        for offset in run:
            self.pool.free(offset)
            del self.slots[offset]
        assert self.pool.largest_hole >= round_up(nbytes)

    @invariant()
    def tables_agree(self) -> None:
        assert sorted(self.pool.check()) == sorted(self.slots)
        runs = self.free_runs()
        assert self.pool.num_holes == len(runs)
        assert self.pool.largest_hole == max(runs, default=0)
        assert self.pool.used_bytes == sum(self.slots.values())


TestPoolHistory = PoolHistory.TestCase
TestPoolHistory.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_best_fit_takes_the_smallest_hole_that_is_large_enough() -> None:
    pool = SlotPool(10 * PAGE)
    offsets = [pool.allocate(size * PAGE) for size in (3, 1, 2, 1)]
    pool.free(offsets[0])
    pool.free(offsets[2])

    assert pool.allocate(2 * PAGE) == offsets[2]


def test_a_run_spares_slots_at_its_edges_that_are_not_needed() -> None:
    pool = SlotPool(4 * PAGE)
    a, b, c, d = (pool.allocate(PAGE) for _ in range(4))

    assert pool.find_run(2 * PAGE, [a, d, b, c]) == [a, b]
