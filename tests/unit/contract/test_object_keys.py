"""The rules for keys are the engine's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.object_keys import MAX_INTEGER, MAX_SALT_CHARACTERS, EncodedKey, check_key
from engine import object_key
from engine.errors import BadRequest

GOOD = EncodedKey("00ff", "model", 16777472)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"chunk_hash_hex": "0"}, "chunk_hash_hex '0' is not hexadecimal"),
        ({"chunk_hash_hex": "zz"}, "chunk_hash_hex"),
        ({"chunk_hash_hex": "00 ff"}, "chunk_hash_hex"),
        ({"chunk_hash_hex": "0" * 4098}, "chunk_hash_hex has more than 4096 characters"),
        ({"model_name": "m" * 4097}, "model_name has more than 4096 characters"),
        ({"model_name": "a@b"}, "model_name 'a@b' must not contain '@'"),
        ({"model_name": "\ud800"}, "model_name is not Unicode"),
        ({"kv_rank": MAX_INTEGER + 1}, "kv_rank is beyond 64 bits"),
        ({"object_group_id": -1}, "object_group_id"),
        ({"object_group_id": MAX_INTEGER + 1}, "object_group_id"),
        ({"cache_salt": "a/b"}, "must not contain"),
        ({"cache_salt": "s" * (MAX_SALT_CHARACTERS + 1)}, "cache_salt has 129 characters"),
        ({"cache_salt": "\udfff"}, "cache_salt is not Unicode"),
    ],
)
def test_a_broken_rule_is_named(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_key(GOOD._replace(**change))


def test_the_edges_are_allowed() -> None:
    check_key(GOOD)
    check_key(EncodedKey("", "", -MAX_INTEGER, MAX_INTEGER, "é" * MAX_SALT_CHARACTERS))


@given(
    st.builds(
        EncodedKey,
        st.text("0fFgé ", max_size=4) | st.binary(max_size=4).map(bytes.hex),
        st.text("aé@/\\\0", max_size=3),
        st.integers(-(2**63) + 1, 2**63 - 1),
        st.integers(-2, 2),
        st.text("aé@/\\\0", max_size=3) | st.just("s" * 129),
    )
)
def test_what_is_allowed_here_is_allowed_by_the_engine(key: EncodedKey) -> None:
    try:
        check_key(key)
        allowed = True
    except ValueError:
        allowed = False
    try:
        object_key.key_from_json(key._asdict())
        allowed_there = True
    except BadRequest:
        allowed_there = False

    # bytes.fromhex takes spaces between bytes.
    assert allowed == (allowed_there and " " not in key.chunk_hash_hex)


def test_the_numbers_are_the_engines() -> None:
    assert MAX_SALT_CHARACTERS == object_key.MAX_SALT_CHARACTERS
    assert EncodedKey._fields[1:] == object_key.ObjectKey._fields[1:]
    assert tuple(object_key.key_to_json(object_key.ObjectKey(b"", "m", 1))) == EncodedKey._fields
