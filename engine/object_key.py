"""The name of a stored object: the KV bytes of one chunk, for one kv_rank and one object group.

Every field is part of the identity, so tenants (`cache_salt`) and models never share an object.
The packing of `kv_rank` and the JSON form are those of LMCache 0.5.
"""

from collections.abc import Mapping
from typing import NamedTuple

from engine.errors import BadRequest

MAX_SALT_CHARACTERS = 128
#: World size and rank travel in one byte each.
MAX_WORLD_SIZE = 255
_SALT_FORBIDDEN = frozenset("@/\\\0")


class ObjectKey(NamedTuple):
    """Identity of an object. `chunk_hash` covers the chunk's tokens and all tokens before it."""

    chunk_hash: bytes
    model_name: str
    kv_rank: int
    object_group_id: int = 0
    cache_salt: str = ""


def pack_kv_rank(world_size: int, worker_id: int) -> int:
    """Four bytes, high to low: world size, global rank, local world size, local rank.

    The client tells the first two only, so they are repeated. Raises BadRequest when out of range.
    """
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise BadRequest(f"world_size {world_size} is not in 1..{MAX_WORLD_SIZE}")
    if not 0 <= worker_id < world_size:
        raise BadRequest(f"worker_id {worker_id} is not in 0..{world_size - 1}")
    return world_size << 24 | worker_id << 16 | world_size << 8 | worker_id


def check_model_name(model_name: str) -> None:
    """Raises BadRequest for a name that could not be told apart in a joined key."""
    if "@" in model_name:
        raise BadRequest(f"model_name {model_name[:80]!r} must not contain '@'")


def check_cache_salt(cache_salt: str) -> None:
    """Raises BadRequest for a salt that is too long or has a forbidden character."""
    if len(cache_salt) > MAX_SALT_CHARACTERS:
        raise BadRequest(f"cache_salt has {len(cache_salt)} characters, at most {MAX_SALT_CHARACTERS} are allowed")
    if not _SALT_FORBIDDEN.isdisjoint(cache_salt):
        raise BadRequest(f"cache_salt {cache_salt!r} must not contain '@', '/', '\\' or NUL")


def key_to_json(key: ObjectKey) -> dict[str, str | int]:
    """The form in which keys travel over HTTP."""
    return {
        "chunk_hash_hex": key.chunk_hash.hex(),
        "model_name": key.model_name,
        "kv_rank": key.kv_rank,
        "object_group_id": key.object_group_id,
        "cache_salt": key.cache_salt,
    }


def key_from_json(fields: Mapping[str, object]) -> ObjectKey:
    """The key that `key_to_json` wrote; the last two fields may be absent. Raises BadRequest."""
    digest, model_name, kv_rank = fields.get("chunk_hash_hex"), fields.get("model_name"), fields.get("kv_rank")
    group, salt = fields.get("object_group_id", 0), fields.get("cache_salt", "")
    if not isinstance(digest, str) or not isinstance(model_name, str) or not isinstance(salt, str):
        raise BadRequest("chunk_hash_hex, model_name and cache_salt must be strings")
    if not isinstance(kv_rank, int) or not isinstance(group, int):
        raise BadRequest("kv_rank and object_group_id must be integers")
    check_model_name(model_name)
    check_cache_salt(salt)
    if group < 0:
        raise BadRequest(f"object_group_id {group} is negative")
    try:
        chunk_hash = bytes.fromhex(digest)
    except ValueError:
        raise BadRequest(f"chunk_hash_hex {digest[:80]!r} is not hexadecimal of even length") from None
    return ObjectKey(chunk_hash, model_name, kv_rank, group, salt)
