"""The text form of a list of blocks: `0,[2,5],8` is 0, 2, 3, 4, 5, 8.

    list  = [item] { "," [item] }
    item  = number | range { range }
    range = "[" number "," number "]"          both ends included, first <= second

White space does not count, empty items are skipped, order and repeats are kept.
"""

import re
from collections.abc import Iterator, Sequence

# More blocks than any engine registers; MD5 over them would take minutes.
MAX_BLOCKS = 100_000

_ITEM = re.compile(r"([0-9]{1,10})|((?:\[[0-9]{1,10},[0-9]{1,10}\])+)", re.ASCII)
_RANGE = re.compile(r"\[([0-9]+),([0-9]+)\]", re.ASCII)


def parse_block_ids(text: str) -> list[int]:
    """The block ids of a text. Raises ValueError: malformed, a reversed range, more than MAX_BLOCKS."""
    text = "".join(text.split())
    block_ids: list[int] = []
    position = 0
    while position < len(text):
        if text[position] != ",":
            item = _ITEM.match(text, position)
            if item is None:
                raise ValueError(f"malformed at character {position}")
            block_ids.extend(_blocks_of(item, room=MAX_BLOCKS - len(block_ids)))
            position = item.end()
            if position < len(text) and text[position] != ",":
                raise ValueError(f"malformed at character {position}")
        position += 1
    return block_ids


def show_block_ids(block_ids: Sequence[int]) -> str:
    """The shortest text that says the same: runs of three or more as ranges, shorter ones as numbers."""
    items: list[str] = []
    for run in runs_of(block_ids):
        items.extend([f"[{run[0]},{run[-1]}]"] if len(run) >= 3 else map(str, run))
    return ",".join(items)


def runs_of(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """The numbers in order, cut into pieces in which each is one more than that before it."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start:end]
            start = end


def _blocks_of(item: re.Match[str], room: int) -> list[int]:
    if item[1]:
        ranges = [(int(item[1]), int(item[1]))]
    else:
        ranges = [(int(first), int(last)) for first, last in _RANGE.findall(item[2])]
    if any(first > last for first, last in ranges):
        raise ValueError("a range is reversed")
    if sum(last - first + 1 for first, last in ranges) > room:
        raise ValueError(f"more than {MAX_BLOCKS} blocks")
    return [block for first, last in ranges for block in range(first, last + 1)]
