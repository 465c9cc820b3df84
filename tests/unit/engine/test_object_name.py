"""Names of stored objects: reversible, and safe as one path part."""

from hypothesis import given
from hypothesis import strategies as st

from engine.l2.object_name import MAX_NAME_BYTES, is_digest_name, key_of_name, name_of
from engine.object_key import ObjectKey

text = st.text(st.characters(exclude_characters="@", exclude_categories=("Cs",)), max_size=40)
salts = st.text(st.characters(exclude_characters="@/\\\0", exclude_categories=("Cs",)), max_size=40)
keys = st.builds(ObjectKey, st.binary(max_size=32), text, st.integers(0, 2**32 - 1), st.integers(0, 99), salts)


@given(keys)
def test_a_name_is_one_safe_path_part_and_leads_back_to_its_key(key: ObjectKey) -> None:
    name = name_of(key)

    assert len(name.encode()) <= MAX_NAME_BYTES
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert is_digest_name(name) or key_of_name(name) == key


@given(keys, keys)
def test_two_keys_never_have_one_name(one: ObjectKey, other: ObjectKey) -> None:
    assert (name_of(one) == name_of(other)) == (one == other)


@given(st.text(max_size=80))
def test_any_text_is_a_key_only_if_it_is_that_keys_name(name: str) -> None:
    key = key_of_name(name)

    assert key is None or name_of(key) == name
