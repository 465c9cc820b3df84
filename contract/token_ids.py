"""Token ids as JSON text: a list of whole numbers from 0 to 2**32 - 1, read in slices.

A million ids take a twentieth of a second to read. In one call that would be one pause for all threads of the
process; between slices the others get their turn.
"""

import json
from array import array

MAX_TOKEN_IDS = 1_000_000
MAX_TOKEN_ID = 2**32 - 1
_SLICE = 32_768


def read_token_ids(text: str) -> "array[int]":
    """The ids in a JSON list. Raises ValueError for anything that is no plain list of such numbers."""
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError("not a list")
    ids = array("I")
    end = len(text) - 1
    start = 1
    while start <= end:
        cut = end if end - start <= _SLICE else text.find(",", start + _SLICE, end)
        cut = end if cut < 0 else cut
        _append(ids, text[start:cut], may_be_empty=start == 1 and cut == end)
        start = cut + 1
    return ids


def _append(ids: "array[int]", text: str, *, may_be_empty: bool) -> None:
    """Adds the ids of a slice between two commas. json reads `1, [2], "3"` too, an array does not take it."""
    try:
        values = json.loads(f"[{text}]")
    except RecursionError as error:
        raise ValueError("nested") from error
    if not values and not may_be_empty:
        raise ValueError("a comma without a number")
    try:
        ids.fromlist(values)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not a whole number from 0 to {MAX_TOKEN_ID}: {error}") from error


def write_token_ids(ids: "array[int] | list[int]") -> str:
    """The JSON list of these ids."""
    pieces = (json.dumps(list(ids[at : at + _SLICE]), separators=(",", ":"))[1:-1] for at in range(0, len(ids), _SLICE))
    return f"[{','.join(pieces)}]"
