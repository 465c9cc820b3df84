"""Any bytes: the decoder answers with a value or a BadRequest, and nothing else."""

import contextlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.dataplane import wire
from engine.dataplane.token_reader import TokenReader
from engine.errors import BadRequest
from tests.unit.dataplane.raw_client import encode, key
from tests.unit.dataplane.test_wire import descriptor

TOKENS = TokenReader(max_requests=8)
DECODERS = [
    wire.operation_name,
    wire.decode_int64,
    wire.decode_optional_int64,
    wire.decode_count,
    wire.decode_bool,
    wire.decode_name,
    wire.decode_seconds,
    wire.decode_block_ids,
    wire.decode_bytes,
    wire.decode_event_handle,
    wire.decode_layout_hints,
    wire.decode_registration,
    wire.decode_descriptors,
    wire.decode_groups,
    wire.decode_allocations,
    lambda frame: wire.decode_request(frame, TOKENS),
]
VALID = [
    encode(key()),
    encode([descriptor(), descriptor()]),
    encode([[1, 2, 3], [4]]),
    encode([{"engine_group_id": 0, "layer_indices": [0], "tokens_per_block": 16}]),
    encode([{"req_id": "r", "new_block_ids": [1], "new_token_ids": [2]}]),
    encode({"kv_layout": "NHD"}),
    encode("query_prefetch_status"),
    encode(b"data"),
    encode(1.5),
]
SCALAR = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary()
ANYTHING = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5)
)


def try_everywhere(frame):
    for decode in DECODERS:
        with contextlib.suppress(BadRequest):
            decode(frame)


def mutated(frame: bytes, seed: int) -> bytes:
    """`frame` with a few bytes changed, cut out, repeated or put in."""
    chance, damaged = random.Random(seed), bytearray(frame)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged) + 1)
        match chance.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([chance.choice((0, 0x80, 0x90, 0xC1, 0xC9, 0xDD, 0xDF, 0xFF, 0x7F))])
            case 1:
                del damaged[at : at + chance.randint(1, 8)]
            case 2:
                damaged[at:at] = damaged[at : at + chance.randint(1, 16)]
            case 3:
                damaged[at:at] = chance.randbytes(chance.randint(1, 5))
    return bytes(damaged)


@given(st.binary(max_size=300))
def test_any_bytes(frame):
    try_everywhere(frame)


@settings(max_examples=300)
@given(st.sampled_from(VALID), st.integers(0, 2**32))
def test_damaged_messages(frame, seed):
    try_everywhere(mutated(frame, seed))


@given(ANYTHING)
def test_any_message(value):
    try_everywhere(encode(value))


@settings(max_examples=300)
@given(st.sampled_from(sorted(key())), ANYTHING)
def test_a_key_with_anything_in_one_field(field, value):
    with contextlib.suppress(BadRequest):
        request = wire.decode_request(encode(key(**{field: value})), TOKENS)
        assert request.tokens.typecode == "I"
        assert 0 <= request.start <= request.end <= len(request.tokens)
        assert request.worker_id is None or request.worker_id < request.world_size


@given(st.sampled_from(["type", "version", "shm_name", "nbytes", "metadata"]), ANYTHING)
def test_a_descriptor_with_anything_in_one_field(field, value):
    with contextlib.suppress(BadRequest):
        wire.decode_descriptors(encode([descriptor(**{field: value})]))
