"""The decoder: what 0.5.6 sends is understood, anything else is a BadRequest and never another exception."""

from array import array

import msgspec
import pytest

from engine.dataplane import wire
from engine.dataplane.token_reader import TokenReader
from engine.errors import BadRequest, Unsupported
from tests.unit.dataplane.raw_client import encode, key

TOKENS = TokenReader()


def decoded(**changes):
    return wire.decode_request(encode(key(**changes)), TOKENS)


def test_a_key_becomes_a_request():
    request = decoded(cache_salt="tenant", num_kv_readers=4)

    assert request.tokens == array("I", range(40))
    assert (request.model_name, request.world_size, request.worker_id) == ("meta/llama", 1, 0)
    assert (request.start, request.end, request.request_id) == (0, 32, "req-1")
    assert (request.cache_salt, request.num_kv_readers) == ("tenant", 4)


def test_a_key_without_the_newer_fields_has_their_defaults():
    old = {name: value for name, value in key().items() if name not in ("request_configs", "num_kv_readers")}

    assert wire.decode_request(encode(old), TOKENS).num_kv_readers == 1


@pytest.mark.parametrize(("world_size", "tp_size", "readers"), [(2, 2, 1), (1, 4, 4), (4, 2, 1), (1, 0, 1)])
def test_a_client_that_tells_no_readers_has_one_unless_all_ranks_share_the_object(world_size, tp_size, readers):
    frame = encode(key(world_size=world_size, num_kv_readers=0))

    assert wire.decode_request(frame, TOKENS, tp_size=tp_size).num_kv_readers == readers


def test_a_key_with_known_tokens_is_decoded_as_if_they_were_new():
    many = list(range(500))
    known = TokenReader()
    first = wire.decode_request(encode(key(token_ids=many)), known)

    again = wire.decode_request(encode(key(token_ids=many, worker_id=None, request_id="other", start=16)), known)

    assert again.tokens is first.tokens
    assert (again.worker_id, again.request_id, again.start, again.end) == (None, "other", 16, 32)
    with pytest.raises(BadRequest):
        wire.decode_request(encode(key(token_ids=many, world_size="1")), known)


def test_known_tokens_that_are_not_those_of_the_key_are_not_used():
    many, few = list(range(500)), list(range(64))
    known = TokenReader()
    wire.decode_request(encode(key(token_ids=many)), known)
    own = encode(key(token_ids=few))
    decoy = encode("token_ids") + encode(many)

    for first_item in (encode("x") + b"\x81" + decoy, encode("x") + encode(decoy), decoy):
        frame = bytes([own[0] + 1]) + first_item + own[1:]

        assert wire.decode_request(frame, known).tokens == array("I", few)


def test_unknown_keys_are_ignored():
    assert decoded(added_later={"deep": [1, {"x": b"y"}]}).request_id == "req-1"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "a@b"},
        {"model_name": "m" * 1025},
        {"model_name": b"bytes"},
        {"cache_salt": "a/b"},
        {"cache_salt": "a\\b"},
        {"cache_salt": "a@b"},
        {"cache_salt": "a\0b"},
        {"cache_salt": "s" * 129},
        {"request_id": "r" * 1025},
        {"request_id": 7},
        {"world_size": 0},
        {"world_size": 256},
        {"world_size": True},
        {"world_size": "1"},
        {"worker_id": 1},
        {"worker_id": -1},
        {"start": -1},
        {"end": 41},
        {"end": 1.5},
        {"start": 33},
        {"num_kv_readers": -1},
        {"num_kv_readers": 1 << 40},
        {"token_ids": None},
        {"token_ids": b"abc"},
        {"token_ids": {"a": 1}},
        {"token_ids": [-1] * 40},
        {"token_ids": [1 << 32] * 40},
        {"token_ids": [1.0] * 40},
        {"token_ids": [True] * 40},
        {"token_ids": [None] * 40},
        {"token_ids": [[1]] * 40},
    ],
    ids=str,
)
def test_a_key_that_breaks_a_rule_is_refused(changes):
    with pytest.raises(BadRequest):
        decoded(**changes)


@pytest.mark.parametrize("missing", ["model_name", "world_size", "token_ids", "start", "end", "request_id"])
def test_a_key_without_a_field_that_has_no_default_is_refused(missing):
    with pytest.raises(BadRequest):
        wire.decode_request(encode({name: value for name, value in key().items() if name != missing}), TOKENS)


def test_more_tokens_than_allowed_are_refused_before_they_are_decoded():
    claimed = b"\xdd\xff\xff\xff\xff"

    with pytest.raises(BadRequest, match="4294967295 token ids"):
        TOKENS.read("req", claimed)


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x91" * 200_000, b"\xdf\xff\xff\xff\xff", b"\x81\xa1"])
def test_bytes_that_are_no_message_are_refused(frame):
    with pytest.raises(BadRequest):
        wire.decode_request(frame, TOKENS)


@pytest.mark.parametrize(("number", "name"), sorted(wire.OPERATION_IDS.items()))
def test_an_operation_is_known_by_number_and_by_name(number, name):
    assert wire.operation_name(encode(number)) == name
    assert wire.operation_name(encode(name)) == name


def test_an_operation_number_in_a_longer_encoding_is_the_same():
    assert wire.operation_name(b"\xcd\x00\x16") == "ping"


@pytest.mark.parametrize("frame", [b"", encode(None), encode([1]), encode(-1), encode("x" * 200), encode(1.5)])
def test_an_operation_that_is_neither_number_nor_name_is_refused(frame):
    with pytest.raises(BadRequest):
        wire.operation_name(frame)


def test_the_retired_number_names_no_operation_of_ours():
    assert wire.operation_name(encode(11)) == "11"


def descriptor(**changes):
    fields = {
        "type": "cpu_shm",
        "version": 1,
        "shm_name": "/lmcache_kv_1_1",
        "nbytes": 2 * 4 * 16 * 2 * 8 * 2,
        "metadata": {
            "dtype": "float16",
            "shape": [2, 4, 16, 2, 8],
            "stride": [1024, 256, 16, 8, 1],
            "storage_offset": 0,
            "device_uuid": "cpu",
        },
        **changes,
    }
    return msgspec.msgpack.Ext(1, encode(fields))


def test_a_shared_memory_descriptor_is_understood():
    (found,) = wire.decode_descriptors(encode([descriptor()]))

    assert (found.kind, found.shm_name, found.dtype) == ("cpu_shm", "/lmcache_kv_1_1", "float16")
    assert (found.shape, found.stride) == ((2, 4, 16, 2, 8), (1024, 256, 16, 8, 1))


@pytest.mark.parametrize("kind", ["cuda", "cuda_raw", "cuda_vmm", "npu"])
def test_memory_of_another_kind_is_refused_by_name(kind):
    with pytest.raises(Unsupported, match=kind):
        wire.decode_descriptors(encode([descriptor(type=kind, handle=[0, b"x"])]))


@pytest.mark.parametrize(
    "item",
    [
        msgspec.msgpack.Ext(2, b""),
        msgspec.msgpack.Ext(1, b"\x80\x04."),
        msgspec.msgpack.Ext(1, b"\x91" * 60_000),
        msgspec.msgpack.Ext(1, b"\x00" * 70_000),
        descriptor(version=2),
        descriptor(nbytes=-1),
        descriptor(nbytes=1 << 63),
        descriptor(metadata={"dtype": "object", "shape": [1], "stride": [1], "storage_offset": 0}),
        descriptor(metadata={"dtype": "float16", "shape": [1 << 40], "stride": [0], "storage_offset": 0}),
        {"type": "cpu_shm"},
    ],
    ids=[
        "unknown-ext",
        "pickle",
        "deep-pickle",
        "long-pickle",
        "version",
        "negative-bytes",
        "too-many-bytes",
        "dtype",
        "stride",
        "no-fields",
    ],
)
def test_a_malformed_descriptor_is_refused(item):
    with pytest.raises(BadRequest):
        wire.decode_descriptors(encode([item]))


def test_groups_have_defaults_for_the_newer_fields():
    (group,) = wire.decode_groups(
        encode([{"engine_group_id": 0, "layer_indices": [0, 1], "tokens_per_block": 16, "sw_size_tokens": -1}])
    )

    assert (group.layer_indices, group.extra_object_group_tag, group.recurrent_state) == ((0, 1), 0, False)


def test_an_engine_driven_registration_may_leave_out_the_physical_slots():
    fields = {
        "instance_id": (1 << 63) - 1,
        "model_name": "m",
        "world_size": 2,
        "block_size": 16,
        "num_layers": 4,
        "hidden_dim_size": 64,
        "dtype_str": "bfloat16",
        "use_mla": False,
    }

    found = wire.decode_registration(encode(fields))

    assert (found.instance_id, found.num_physical_slots) == ((1 << 63) - 1, None)
    with pytest.raises(BadRequest):
        wire.decode_registration(encode({**fields, "instance_id": 1 << 63}))


@pytest.mark.parametrize("ids", [[[-1]], [[1 << 31]], [1], [[1.0]], "x", [[None]], {"0": []}])
def test_block_ids_are_lists_of_lists_of_natural_numbers(ids):
    with pytest.raises(BadRequest):
        wire.decode_block_ids(encode(ids))


def test_an_allocation_report_is_counted():
    records = [
        {"req_id": "a", "new_block_ids": [1, 2, 3], "new_token_ids": [5]},
        {"req_id": "b", "new_block_ids": [], "new_token_ids": []},
    ]

    assert wire.decode_allocations(encode(records)) == (2, 3)


def test_bytes_of_a_message_are_not_copied():
    frame = encode(b"x" * 100_000)

    assert wire.decode_bytes(frame).obj is frame
