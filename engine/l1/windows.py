"""How long a prefix is of use when some of its objects lack the data of some KV groups.

Hybrid models have groups with a sliding window or a recurrent state. The inference engine keeps no blocks of such a
group in front of its window, so an object stored from there holds nothing for the group. That is no harm for a hit that
ends far enough behind it; for a hit that ends within the window it would be wrong data.
"""

from collections.abc import Sequence

from engine.l1.index import Entry


def servable_chunks(found: Sequence[Sequence[Entry]], windows: Sequence[Sequence[int]]) -> int:
    """How many of the chunks may be served to every rank. `found[i][r]` is rank r's object of chunk i, `windows[r]`
    are the windows of its layout, empty when it has none.
    """
    windowed = [(rank, of_rank) for rank, of_rank in enumerate(windows) if of_rank]
    hit, before = len(found), -1
    while windowed and hit != before:
        before = hit
        for rank, of_rank in windowed:
            hit = usable_chunks([entries[rank].missing for entries in found[:hit]], of_rank)
    return hit


def usable_chunks(missing: Sequence[int], windows: Sequence[int]) -> int:
    """The longest prefix of the chunks whose last `windows[g]` chunks hold group g, for every windowed group g.

    `missing[i]` has bit g set when chunk i lacks group g. A window of 0 is no window: nothing is asked of that group.
    """
    length = len(missing)
    while length:
        gaps = [_last_gap(missing, group, length - window, length) for group, window in enumerate(windows) if window]
        gap = max(gaps, default=_NO_GAP)
        if gap == _NO_GAP:
            return length
        # Any length from here down to the gap has the gap in its window too.
        length = gap
    return 0


_NO_GAP = -1


def _last_gap(missing: Sequence[int], group: int, start: int, stop: int) -> int:
    for chunk in range(stop - 1, max(0, start) - 1, -1):
        if missing[chunk] >> group & 1:
            return chunk
    return _NO_GAP
