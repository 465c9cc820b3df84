"""What is stored in L2: a header of one page, then the payload.

offset  bytes  field
------  -----  -------------------------------------------------------------------------------
0       8      magic "LARDERKV"
8       2      version, 1
10      2      length of the key text
12      4      missing: a bit for each KV group of which the payload holds no data (engine/l1/windows.py)
16      8      payload length
24      16     layout fingerprint
40      16     xxh3-128 of the payload
56      16     xxh3-128 of the key text
72      8      xxh3-64 of bytes 0..71
80      n      key text: the key's JSON form, compact, UTF-8; the rest of the page is zero

Integers are little-endian, digests in xxHash's canonical (big-endian) form. A record is served only when every field
agrees with what is asked for: another key, build, dtype or shape, a short or long payload, or a flipped bit is a miss.
"""

import json
import struct
from enum import Enum
from json.encoder import encode_basestring

import xxhash

from engine.errors import BadRequest
from engine.object_key import ObjectKey, key_from_json

MAGIC = b"LARDERKV"
VERSION = 1
HEADER_BYTES = 4096
_FIELDS = struct.Struct("<8sHHIQ16s16s16s")
_CHECK = struct.Struct("<Q")
_TEXT_AT = _FIELDS.size + _CHECK.size
MAX_TEXT_BYTES = HEADER_BYTES - _TEXT_AT
MAX_MISSING = 2**32 - 1


class Verdict(Enum):
    """What a stored record is worth to whoever asked."""

    GOOD = "good"
    #: A record of ours for another layout: of no use now, but not damaged.
    OTHER_LAYOUT = "other_layout"
    #: Damaged, cut short, or not the record it should be: it must not stay.
    CORRUPT = "corrupt"


def make_header(key: ObjectKey, fingerprint: bytes, payload: memoryview, missing: int = 0) -> bytes:
    """The header page for `payload`. Raises BadRequest for a key too long, or more KV groups than can be noted."""
    text = _text_of(key)
    if len(text) > MAX_TEXT_BYTES:
        raise BadRequest(f"the key takes {len(text)} bytes, at most {MAX_TEXT_BYTES} can be stored")
    if missing > MAX_MISSING:
        raise BadRequest("KV groups beyond the 32nd are missing, which a record cannot tell")
    # The payload comes last: hashing it leaves the processor's caches without anything else.
    text_digest = xxhash.xxh3_128_digest(text)
    digest = xxhash.xxh3_128_digest(payload)
    fields = _FIELDS.pack(MAGIC, VERSION, len(text), missing, len(payload), fingerprint, digest, text_digest)
    page = fields + _CHECK.pack(xxhash.xxh3_64_intdigest(fields)) + text
    return page.ljust(HEADER_BYTES, b"\0")


def verify(header: memoryview, payload: memoryview, stored_bytes: int, key: ObjectKey, fingerprint: bytes) -> Verdict:
    """Judges a record of `stored_bytes` that was read into `header` and `payload`.

    The payload is hashed only when all else agrees, about 0.05 ms per MiB. Equal texts are equal keys: reading JSON
    after a copy has emptied the processor's caches would take half as long as hashing a MiB.
    """
    fields = _FIELDS.unpack_from(header)
    magic, version, text_bytes, _, payload_bytes, stored_fingerprint, digest, text_digest = fields
    (check,) = _CHECK.unpack_from(header, _FIELDS.size)
    if magic != MAGIC or version != VERSION or check != xxhash.xxh3_64_intdigest(header[: _FIELDS.size]):
        return Verdict.CORRUPT
    text = header[_TEXT_AT : _TEXT_AT + text_bytes]
    if text_bytes > MAX_TEXT_BYTES or xxhash.xxh3_128_digest(text) != text_digest:
        return Verdict.CORRUPT
    if text != _text_of(key) and key_of(header) != key:
        return Verdict.CORRUPT
    if stored_bytes != HEADER_BYTES + payload_bytes:
        return Verdict.CORRUPT
    if stored_fingerprint != fingerprint or payload_bytes != len(payload):
        return Verdict.OTHER_LAYOUT
    return Verdict.GOOD if xxhash.xxh3_128_digest(payload) == digest else Verdict.CORRUPT


def missing_of(header: memoryview) -> int:
    """Which KV groups the payload lacks; for a header that was judged GOOD."""
    missing: int = _FIELDS.unpack_from(header)[3]
    return missing


def fingerprint_of(header: memoryview) -> bytes:
    """The layout fingerprint written in a header, to judge a record by itself."""
    fingerprint: bytes = _FIELDS.unpack_from(header)[5]
    return fingerprint


def _text_of(key: ObjectKey) -> bytes:
    """What json.dumps makes of `key_to_json(key)`, in a tenth of the time once the caches are cold."""
    return (
        f'{{"chunk_hash_hex":"{key.chunk_hash.hex()}","model_name":{encode_basestring(key.model_name)},'
        f'"kv_rank":{key.kv_rank},"object_group_id":{key.object_group_id},'
        f'"cache_salt":{encode_basestring(key.cache_salt)}}}'
    ).encode()


def key_of(header: memoryview) -> ObjectKey | None:
    """The key written in a header; None when there is none to read."""
    text_bytes = _FIELDS.unpack_from(header)[2]
    try:
        fields = json.loads(bytes(header[_TEXT_AT : _TEXT_AT + text_bytes]))
        return key_from_json(fields) if isinstance(fields, dict) else None
    except (ValueError, BadRequest):
        return None
