"""The keys of stored objects as they travel: the fields, and the rules that a well-formed one may still break.

field            rule
---------------  ------------------------------------------------------
chunk_hash_hex   hexadecimal of even length, may be empty, at most 4096 characters
model_name       no `@`, at most 4096 characters
kv_rank          an integer of 64 bits
object_group_id  not negative, of 64 bits
cache_salt       none of `@ / \\ NUL`, at most 128 characters

The engine has the same rules and more to say about them; here they are for answering a caller before the engine is
asked. Texts must be whole Unicode.
"""

import re
from typing import NamedTuple

MAX_SALT_CHARACTERS = 128
MAX_INTEGER = 2**63 - 1
#: Of a hash or a model's name; what is longer does not fit the header of a stored object.
MAX_CHARACTERS = 4096
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*", re.ASCII)
_SALT_FORBIDDEN = frozenset("@/\\\0")


class EncodedKey(NamedTuple):
    """One key, its fields in the order in which a command carries them."""

    chunk_hash_hex: str
    model_name: str
    kv_rank: int
    object_group_id: int = 0
    cache_salt: str = ""


def check_key(key: EncodedKey) -> None:
    """Raises ValueError saying which rule is broken."""
    for name in ("chunk_hash_hex", "model_name"):
        if len(getattr(key, name)) > MAX_CHARACTERS:
            raise ValueError(f"{name} has more than {MAX_CHARACTERS} characters")
    if not _HEX.fullmatch(key.chunk_hash_hex):
        raise ValueError(f"chunk_hash_hex {key.chunk_hash_hex[:80]!r} is not hexadecimal of even length")
    if "@" in key.model_name:
        raise ValueError(f"model_name {key.model_name[:80]!r} must not contain '@'")
    if abs(key.kv_rank) > MAX_INTEGER:
        raise ValueError("kv_rank is beyond 64 bits")
    if not 0 <= key.object_group_id <= MAX_INTEGER:
        raise ValueError("object_group_id must be from 0 to 2^63 - 1")
    if len(key.cache_salt) > MAX_SALT_CHARACTERS:
        raise ValueError(f"cache_salt has {len(key.cache_salt)} characters, at most {MAX_SALT_CHARACTERS} are allowed")
    if not _SALT_FORBIDDEN.isdisjoint(key.cache_salt):
        raise ValueError(f"cache_salt {key.cache_salt!r} must not contain '@', '/', '\\' or NUL")
    for name in ("model_name", "cache_salt"):
        if not _is_whole(getattr(key, name)):
            raise ValueError(f"{name} is not Unicode: it has one half of a surrogate pair")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
