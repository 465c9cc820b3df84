"""Which bytes of the pool are taken: allocate and free by offset.

Slots have variable size, rounded up to whole pages. All state is outside the pool, since clients may write to it.
Holes are kept by address (so that neighbours coalesce on free) and by size (best fit, lowest address first).
Not thread-safe: the cache's lock guards it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

PAGE = 4096


def round_up(nbytes: int) -> int:
    """`nbytes` in whole pages."""
    return -(-nbytes // PAGE) * PAGE


class SlotPool:
    """An address space `[0, capacity)` of slots and holes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // PAGE * PAGE
        self.used_bytes = 0
        self._slots: dict[int, int] = {}
        self._slot_ends: dict[int, int] = {}
        self._holes: dict[int, int] = {}
        self._hole_ends: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []
        if self.capacity:
            self._add_hole(0, self.capacity)

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest allocation that would succeed now."""
        return self._by_size[-1][0] if self._by_size else 0

    @property
    def num_holes(self) -> int:
        """How many separate holes there are."""
        return len(self._by_size)

    def allocate(self, nbytes: int) -> int | None:
        """Offset of a new slot for `nbytes` > 0, or None when no hole is large enough."""
        if nbytes <= 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        size = round_up(nbytes)
        at = bisect_left(self._by_size, (size, -1))
        if at == len(self._by_size):
            return None
        hole_size, offset = self._by_size[at]
        self._shrink_hole(at, offset, hole_size, size)
        self._add_slot(offset, size)
        return offset

    def free(self, offset: int) -> None:
        """Gives a slot back; KeyError when there is none at `offset`."""
        size = self._slots.pop(offset)
        del self._slot_ends[offset + size]
        self.used_bytes -= size
        end = offset + size
        before = self._hole_ends.get(offset)
        if before is not None:
            self._remove_hole(before)
            offset = before
        if end in self._holes:
            end += self._remove_hole(end)
        self._add_hole(offset, end - offset)

    def slot_size(self, offset: int) -> int:
        """Bytes that the slot at `offset` occupies."""
        return self._slots[offset]

    def keep_only(self, offsets: Iterable[int]) -> None:
        """Frees every slot that is not in `offsets`."""
        kept = sorted((offset, self._slots[offset]) for offset in set(offsets))
        self.__init__(self.capacity)  # type: ignore[misc]  # the same object, as new
        if not kept:
            return
        self._remove_hole(0)
        end = 0
        for offset, size in kept:
            if offset > end:
                self._add_hole(end, offset - end)
            self._add_slot(offset, size)
            end = offset + size
        if end < self.capacity:
            self._add_hole(end, self.capacity - end)

    def find_run(self, nbytes: int, oldest_first: Iterable[int]) -> list[int] | None:
        """Slots to free so that `nbytes` fit, or None. For when no hole is large enough by itself.

        `oldest_first` are offsets of slots that may go. Slots are considered in that order until some of them form
        one contiguous run with the holes between; so the newest victim is as old as it can be.
        """
        size = round_up(nbytes)
        starts: dict[int, int] = {}  # end of a run -> its start
        ends: dict[int, int] = {}  # start of a run -> its end
        marked: set[int] = set()
        for offset in oldest_first:
            marked.add(offset)
            end = offset + self._slots[offset]
            start = starts.pop(offset, None)
            if start is None:
                start = self._hole_ends.get(offset, offset)
            else:
                del ends[start]
            later = ends.pop(end, None)
            if later is None:
                later = end + self._holes.get(end, 0)
            else:
                del starts[later]
            starts[later], ends[start] = start, later
            if later - start >= size:
                return self._trim(start, later, size, offset)
        return None

    def _trim(self, start: int, end: int, size: int, needed: int) -> list[int]:
        """Slots of the run `[start, end)` without those at its edges that are not needed for `size` bytes."""
        run: list[int] = []
        at = start
        while at < end:
            if at in self._slots:
                run.append(at)
                at += self._slots[at]
            else:
                at += self._holes[at]
        while run[0] != needed and end - (run[0] + self._slots[run[0]]) >= size:
            start = run[0] + self._slots[run.pop(0)]
        while run[-1] != needed and run[-1] - start >= size:
            run.pop()
        return run

    def check(self) -> Sequence[int]:
        """Asserts that slots and holes tile the pool, and returns the slots' offsets."""
        at, used, previous_was_hole = 0, 0, False
        while at < self.capacity:
            is_hole = at in self._holes
            assert is_hole != (at in self._slots), f"offset {at} is not exactly one of slot and hole"
            assert not (is_hole and previous_was_hole), f"hole at {at} was not coalesced"
            size = self._holes[at] if is_hole else self._slots[at]
            ends = self._hole_ends if is_hole else self._slot_ends
            assert size > 0, f"size {size} at {at}"
            assert size % PAGE == 0, f"size {size} at {at} is not in whole pages"
            assert ends[at + size] == at, f"the end of what begins at {at} points to {ends[at + size]}"
            used += 0 if is_hole else size
            at, previous_was_hole = at + size, is_hole
        assert at == self.capacity, f"slots and holes end at {at}, the pool at {self.capacity}"
        assert used == self.used_bytes, f"{used} bytes in slots, {self.used_bytes} counted"
        assert self._by_size == sorted((size, offset) for offset, size in self._holes.items())
        assert len(self._slot_ends) == len(self._slots)
        assert len(self._hole_ends) == len(self._holes)
        return list(self._slots)

    def _add_slot(self, offset: int, size: int) -> None:
        self._slots[offset] = size
        self._slot_ends[offset + size] = offset
        self.used_bytes += size

    def _add_hole(self, offset: int, size: int) -> None:
        self._holes[offset] = size
        self._hole_ends[offset + size] = offset
        insort(self._by_size, (size, offset))

    def _shrink_hole(self, at: int, offset: int, hole_size: int, taken: int) -> None:
        """Takes the first `taken` bytes of the hole at place `at` of the order by size."""
        rest = (hole_size - taken, offset + taken)
        if hole_size == taken or (at and self._by_size[at - 1] > rest):
            self._remove_hole(offset)
            if hole_size > taken:
                self._add_hole(offset + taken, hole_size - taken)
            return
        # The usual case, one large hole that gets smaller: it keeps its place in the order.
        self._by_size[at] = rest
        del self._holes[offset]
        self._holes[offset + taken] = hole_size - taken
        self._hole_ends[offset + hole_size] = offset + taken

    def _remove_hole(self, offset: int) -> int:
        size = self._holes.pop(offset)
        del self._hole_ends[offset + size]
        del self._by_size[bisect_left(self._by_size, (size, offset))]
        return size
