"""Keys as names of files and objects: readable, reversible, and safe as one path part.

    model@kv_rank@group@hash[@salt]        kv_rank as eight hex digits, hash in hex
    @digest                                where that would be too long; the key is in the record's header

Model and salt are percent-encoded except for letters, digits and `-._` (a leading dot is encoded too), so that a name
never leaves its directory. Foreign names are no keys.
"""

from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote, unquote

from engine.errors import BadRequest
from engine.object_key import ObjectKey, key_from_json

_HEX = frozenset("0123456789abcdef")
#: Longest name that all storages take: file systems allow 255 bytes.
MAX_NAME_BYTES = 240


def name_of(key: ObjectKey) -> str:
    """The name of `key`, at most MAX_NAME_BYTES long."""
    parts = [_encode(key.model_name), f"{key.kv_rank:08x}", str(key.object_group_id), key.chunk_hash.hex()]
    if key.cache_salt:
        parts.append(_encode(key.cache_salt))
    name = "@".join(parts)
    return name if len(name) <= MAX_NAME_BYTES else "@" + blake2b(name.encode(), digest_size=32).hexdigest()


def is_digest_name(name: str) -> bool:
    """Whether this is a name that does not tell its key."""
    return len(name) == 65 and name[0] == "@" and _HEX.issuperset(name[1:])


def key_of_name(name: str) -> ObjectKey | None:
    """The key whose name this is; None for any other text."""
    parts = name.split("@")
    if len(parts) not in (4, 5) or len(parts[1]) != 8:
        return None
    salt = unquote(parts[4], errors="strict") if len(parts) == 5 else ""
    try:
        key = key_from_json(
            {
                "model_name": unquote(parts[0], errors="strict"),
                "kv_rank": int(parts[1], 16),
                "object_group_id": int(parts[2]),
                "chunk_hash_hex": parts[3],
                "cache_salt": salt,
            }
        )
        return key if name_of(key) == name else None
    except (ValueError, BadRequest):
        return None


@lru_cache(1024)  # there are few models, and no more tenants at work at a time
def _encode(text: str) -> str:
    encoded = quote(text, safe="").replace("~", "%7E")
    return "%2E" + encoded[1:] if encoded.startswith(".") else encoded
