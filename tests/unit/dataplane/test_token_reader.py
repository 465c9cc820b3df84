"""Tokens are decoded once, and never confused: the answer is always that of decoding from scratch."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.dataplane.token_reader import TokenReader, array_length
from engine.errors import BadRequest
from tests.unit.dataplane.raw_client import encode, key

TOKEN = st.integers(0, 2**32 - 1)


def test_equal_bytes_give_the_same_array_again():
    reader = TokenReader()
    raw = encode([1, 200, 70_000, 2**32 - 1])

    first = reader.read("r", raw)

    assert first == array("I", [1, 200, 70_000, 2**32 - 1])
    assert reader.read("r", bytes(bytearray(raw))) == first


def test_a_grown_request_leaves_the_older_array_as_it_was():
    reader = TokenReader()
    older = reader.read("r", encode(list(range(10))))

    newer = reader.read("r", encode(list(range(20))))

    assert (older, newer) == (array("I", range(10)), array("I", range(20)))


def message(tokens, **fields):
    return encode({"model_name": "m", "token_ids": tokens, **fields})


def test_a_known_array_is_found_in_any_message_that_has_it():
    reader = TokenReader()
    tokens = reader.read("r", encode(list(range(100))))

    start, known = reader.find(message(list(range(100)), end=1))

    assert known.tokens is tokens
    assert message(list(range(100)))[start:].startswith(known.raw)


@pytest.mark.parametrize("other", [[], [1], list(range(99)), list(range(101)), [*range(99), 7]])
def test_another_array_is_not_taken_for_a_known_one(other):
    reader = TokenReader()
    reader.read("r", encode(list(range(100))))

    assert reader.find(message(other)) is None
    assert reader.find(message(list(range(100)))[:-1]) is None
    assert reader.find(b"") is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(TOKEN, max_size=40)), max_size=20))
def test_any_history_of_requests_reads_as_if_it_were_the_first(history):
    reader = TokenReader(max_requests=1)

    for request_id, tokens in history:
        assert reader.read(request_id, encode(tokens)) == array("I", tokens)


@given(st.lists(TOKEN, max_size=300), st.lists(TOKEN, max_size=300))
def test_a_request_may_grow_across_every_form_of_array_header(start, more):
    reader = TokenReader()
    reader.read("r", encode(start))

    assert reader.read("r", encode(start + more)) == array("I", start + more)


def test_a_bad_tail_is_refused_and_the_known_tokens_stay_right():
    reader = TokenReader()
    reader.read("r", encode([1, 2]))

    with pytest.raises(BadRequest):
        reader.read("r", encode([1, 2, "x"]))

    assert reader.read("r", encode([1, 2])) == array("I", [1, 2])


def test_what_is_remembered_is_bounded_by_number_and_by_bytes():
    for reader in (TokenReader(max_requests=2), TokenReader(max_bytes=150)):
        for number in range(4):
            reader.read(f"r{number}", encode([number] * 10))

        assert [reader.find(message([number] * 10)) is None for number in range(4)] == [True, True, False, False]


def test_a_request_larger_than_the_whole_memory_is_read_all_the_same():
    assert len(TokenReader(max_bytes=10).read("r", encode([7] * 1000))) == 1000


@pytest.mark.parametrize("raw", [b"", b"\xdc", b"\xdc\x00", b"\xdd\x00\x00", b"\xc0", b"\x92\x01", b"\x91\x01\x01"])
def test_a_truncated_or_foreign_array_is_refused(raw):
    with pytest.raises(BadRequest):
        TokenReader().read("r", raw)


@pytest.mark.parametrize("count", [0, 15, 16, 65535, 65536])
def test_the_number_of_tokens_is_told_from_their_header(count):
    assert array_length(encode(key(token_ids=[1] * count))) == count


@pytest.mark.parametrize(
    "message",
    [
        key(model_name="token_ids\x90"),
        {name: value for name, value in key().items() if name != "token_ids"},
        key(token_ids=7),
        key(token_ids={}),
    ],
)
def test_a_number_that_is_not_plain_to_see_is_not_guessed(message):
    assert array_length(encode(message)) is None
