"""What the fields of the commands may hold: a rule per name, the same in every command that has a field of it.

A rule returns the value as the command keeps it, or raises ValueError with the words for what is allowed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from contract.object_keys import EncodedKey
from contract.prefetch_jobs import is_request_id

MAX_SALT_CHARACTERS = 1024
MAX_BLOCK_IDS = 1_000_000
MAX_INTEGER = 2**63 - 1
MAX_KEYS = 10_000
MAX_PAGE_SIZE = 5000
#: Objects of L1 in one reply.
MAX_FOUND = 100
#: Of a chunk hash, or of its beginning.
MIN_HASH_DIGITS, MAX_HASH_DIGITS = 4, 128
MAX_TEXT = 16_384
MAX_SCRIPT_BYTES = 65_536
SCRUB_ACTIONS = ("start", "stop", "state")
CHUNK_STEPS = ("start", "stop", "reset")
MOCK_VERBS = ("store", "retrieve")
SWITCHES = ("freeze", "hot_cache", "bypass", "block_log")


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("an integer of 64 bits")
    return value


def _count(value: object) -> int:
    number = _integer(value)
    if number < 0:
        raise ValueError("0 or more")
    return number


def _salt(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_SALT_CHARACTERS:
        raise ValueError(f"a text of at most {MAX_SALT_CHARACTERS} characters")
    return value


def _request_id(value: object) -> str:
    if not isinstance(value, str) or not is_request_id(value):
        raise ValueError("the id of a prefetch job")
    return value


def is_hash_prefix(text: str) -> bool:
    """Whether it may begin a chunk hash, in lower-case hexadecimal."""
    return MIN_HASH_DIGITS <= len(text) <= MAX_HASH_DIGITS and not text.strip("0123456789abcdef")


def _hash_prefix(value: object) -> str:
    if not isinstance(value, str) or not is_hash_prefix(value):
        raise ValueError(f"{MIN_HASH_DIGITS} to {MAX_HASH_DIGITS} lower-case hexadecimal digits")
    return value


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_BLOCK_IDS:
        raise ValueError(f"a list of at most {MAX_BLOCK_IDS} integers")
    return tuple(_integer(item) for item in value)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"a text of at most {MAX_TEXT} characters")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _script(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_SCRIPT_BYTES:
        raise ValueError(f"a text of at most {MAX_SCRIPT_BYTES} characters")
    return value


def _optional_integer(value: object) -> int | None:
    return None if value is None else _integer(value)


def _page_size(value: object) -> int:
    if not 1 <= _integer(value) <= MAX_PAGE_SIZE:
        raise ValueError(f"from 1 to {MAX_PAGE_SIZE}")
    return _integer(value)


def _one_of(words: Sequence[str]) -> Callable[[object], str]:
    def rule(value: object) -> str:
        if value not in words:
            raise ValueError("one of " + ", ".join(words))
        return str(value)

    return rule


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def _keys(value: object) -> tuple[EncodedKey, ...]:
    if not isinstance(value, list) or len(value) > MAX_KEYS:
        raise ValueError(f"a list of at most {MAX_KEYS} keys")
    return tuple(_key(item) for item in value)


def _key(value: object) -> EncodedKey:
    if not isinstance(value, list) or len(value) != len(EncodedKey._fields):
        raise ValueError(f"lists of {', '.join(EncodedKey._fields)}")
    digest, model, rank, group, salt = value
    return EncodedKey(_text(digest), _text(model), _integer(rank), _count(group), _text(salt))


FIELD_RULES: dict[str, Callable[[object], Any]] = {
    "force": _boolean,
    "name": _text,
    "thread_id": _optional_integer,
    "script": _script,
    "cache_salt": _salt,
    "limit_bytes": _count,
    "instance_id": _integer,
    "block_ids": _integers,
    "chunk_size": _integer,
    "layerwise": _boolean,
    "request_id": _request_id,
    "adapter": _optional_text,
    "model_name": _optional_text,
    "page_token": _optional_text,
    "page_size": _page_size,
    "action": _one_of(SCRUB_ACTIONS),
    "step": _one_of(CHUNK_STEPS),
    "switch": _one_of(SWITCHES),
    "on": _boolean,
    "values": _object,
    "worker": _optional_integer,
    "slots": _integers,
    "slots_per_chunk": _optional_integer,
    "backend": _text,
    "operation": _text,
    "adapter_index": _integer,
    "fields": _object,
    "keys": _keys,
    "hash_prefix": _hash_prefix,
    "verb": _one_of(MOCK_VERBS),
    "start": _count,
    "end": _count,
}
