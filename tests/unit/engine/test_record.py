"""The record's header: what it says of the key, and what is believed."""

import json
import struct

import pytest
import xxhash

from engine.l2.record import HEADER_BYTES, Verdict, key_of, make_header, verify
from engine.object_key import ObjectKey, key_to_json
from tests.conformance.l2_conformance import ODD_KEYS

FINGERPRINT = b"layout-of-a-test"
PAYLOAD = memoryview(b"keys and values")
TEXT_AT = 80
STORED = HEADER_BYTES + len(PAYLOAD)


def key_text(header: bytes) -> bytes:
    (length,) = struct.unpack_from("<H", header, 10)
    return header[TEXT_AT : TEXT_AT + length]


def with_text(header: bytes, text: bytes) -> memoryview:
    """The same header with another key text, consistent in itself."""
    fields = bytearray(header[:72])
    struct.pack_into("<H", fields, 10, len(text))
    fields[56:72] = xxhash.xxh3_128_digest(text)
    check = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(fields)))
    return memoryview((bytes(fields) + check + text).ljust(HEADER_BYTES, b"\0"))


@pytest.mark.parametrize("key", [*ODD_KEYS, ODD_KEYS[0]._replace(model_name='quo"te \\ \n \x01 \u2028')], ids=str)
def test_the_key_text_is_the_compact_json_form(key: ObjectKey) -> None:
    header = make_header(key, FINGERPRINT, PAYLOAD)

    assert key_text(header) == json.dumps(key_to_json(key), separators=(",", ":"), ensure_ascii=False).encode()
    assert key_of(memoryview(header)) == key
    assert verify(memoryview(header), PAYLOAD, STORED, key, FINGERPRINT) is Verdict.GOOD


def test_a_key_that_another_program_spelled_differently_is_the_same_key() -> None:
    key = ODD_KEYS[0]
    fields = dict(sorted(key_to_json(key).items()))

    header = with_text(make_header(key, FINGERPRINT, PAYLOAD), json.dumps(fields, indent=1).encode())

    assert verify(header, PAYLOAD, STORED, key, FINGERPRINT) is Verdict.GOOD


def test_a_sound_record_of_another_key_is_corrupt_here() -> None:
    header = memoryview(make_header(ODD_KEYS[1], FINGERPRINT, PAYLOAD))

    assert verify(header, PAYLOAD, STORED, ODD_KEYS[0], FINGERPRINT) is Verdict.CORRUPT


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"chunk_hash_hex": "zz"}'])
def test_a_key_text_that_says_nothing_is_corrupt(text: bytes) -> None:
    header = with_text(make_header(ODD_KEYS[0], FINGERPRINT, PAYLOAD), text)

    assert verify(header, PAYLOAD, STORED, ODD_KEYS[0], FINGERPRINT) is Verdict.CORRUPT
