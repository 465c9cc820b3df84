"""Chunk hashes: known values, chaining, and what must change a hash."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import HASH_ALGORITHMS
from engine.token_hasher import TokenHasher, _cbor_head

CHUNK = 4
token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def hashes(algorithm: str, tokens: list[int], chunk_size: int = CHUNK) -> list[bytes]:
    found: list[bytes] = []
    TokenHasher(algorithm, chunk_size).extend(found, array("I", tokens), 1_000_000)
    return found


def test_blake3_starts_from_the_value_that_clients_of_the_protocol_use() -> None:
    start = TokenHasher("blake3", CHUNK)._start

    assert start.hex() == "7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b"


def test_blake3_hashes_the_previous_hash_and_big_endian_tokens() -> None:
    from blake3 import blake3

    start = blake3(bytes(12)).digest()
    first = blake3(start + b"".join(token.to_bytes(4, "big") for token in (1, 2, 3, 2**32 - 1))).digest()
    second = blake3(first + b"".join(token.to_bytes(4, "big") for token in (5, 6, 7, 8))).digest()

    assert hashes("blake3", [1, 2, 3, 2**32 - 1, 5, 6, 7, 8, 9]) == [first, second]


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (65536, "1a00010000"),
        (2**32, "1b0000000100000000"),
    ],
)
def test_cbor_heads_are_the_shortest_form(value: int, encoded: str) -> None:
    assert _cbor_head(0, value).hex() == encoded


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@given(tokens=token_lists)
def test_only_whole_chunks_have_a_hash(algorithm: str, tokens: list[int]) -> None:
    assert len(hashes(algorithm, tokens)) == len(tokens) // CHUNK


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12), changed=st.integers(0, 11))
def test_a_changed_token_changes_its_chunk_and_all_after_it(algorithm: str, tokens: list[int], changed: int) -> None:
    other = [*tokens]
    other[changed] ^= 1

    before, after = hashes(algorithm, tokens), hashes(algorithm, other)

    same = changed // CHUNK
    assert before[:same] == after[:same]
    assert all(a != b for a, b in zip(before[same:], after[same:], strict=True))


@pytest.mark.parametrize("algorithm", HASH_ALGORITHMS)
@given(tokens=token_lists, split=st.integers(0, 10))
def test_hashing_in_steps_gives_the_same_as_at_once(algorithm: str, tokens: list[int], split: int) -> None:
    hasher, found = TokenHasher(algorithm, CHUNK), []

    hasher.extend(found, array("I", tokens), split)
    hasher.extend(found, array("I", tokens), len(tokens))

    assert found == hashes(algorithm, tokens)
