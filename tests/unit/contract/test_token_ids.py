"""Token ids as JSON text: what is written is read, in slices as in one piece, and nothing else is."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import token_ids
from contract.token_ids import read_token_ids, write_token_ids

SOME_JSON = st.lists(
    st.one_of(st.integers(-2, 5), st.integers(2**32 - 2, 2**32 + 2), st.floats(0, 3), st.text(",[]1", max_size=3))
    | st.lists(st.integers(0, 3), max_size=2)
)


def test_a_million_ids_come_back() -> None:
    some = random.Random(3)
    ids = [some.randrange(2**32) for _ in range(token_ids.MAX_TOKEN_IDS)]

    text = write_token_ids(ids)

    assert list(read_token_ids(text)) == ids


@given(ids=st.lists(st.integers(0, 2**32 - 1)), space=st.sampled_from(["", " ", "\n  "]))
def test_ids_come_back_whatever_stands_between_them(ids: list[int], space: str) -> None:
    assert list(read_token_ids(write_token_ids(ids))) == ids
    assert list(read_token_ids(f"[{(',' + space).join(map(str, ids))}{space}]")) == ids


@pytest.mark.parametrize(
    "text",
    ["", "1", "[1,]", "[,1]", "[1,,2]", "[,]", "[1.0]", "[-1]", "[4294967296]", "[null]", '["1"]', "[[1]]", "[1]2]",
     "[1][2]", '{"a":1}', "[1e2]", "[NaN]", "[" * 20_000 + "]" * 20_000, "[" + "9" * 9000 + "]"],
 ids=lambda text: text[:10],
)  # fmt: skip
@pytest.mark.parametrize("slice_characters", [1, 3, 1000])
def test_what_is_no_list_of_ids_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, slice_characters: int) -> None:
    monkeypatch.setattr(token_ids, "_SLICE", slice_characters)

    with pytest.raises(ValueError):
        read_token_ids(text)


@given(values=SOME_JSON, slice_characters=st.integers(1, 20))
def test_slices_never_change_what_is_read(values: list[object], slice_characters: int) -> None:
    text = json.dumps(values)
    are_ids = all(type(value) is int and 0 <= value < 2**32 for value in values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_ids, "_SLICE", slice_characters)
        if are_ids:
            assert list(read_token_ids(text)) == values
        else:
            with pytest.raises(ValueError):
                read_token_ids(text)
