"""The wire protocol of lmcache 0.5.6: frames, operation names, strict decoding, encoding of replies.

direction  frames
---------  ------------------------------------------------------------------------------
request    identity (added by our socket), request id, operation, one frame per parameter
reply      identity, request id, operation, value
void       identity, request id, operation
refusal    identity, request id, "error", text

Every frame is one msgpack value. Request id and operation are echoed byte for byte. An operation is named by a number
or by its name. Unknown map keys are ignored, missing ones have the defaults below; types are never coerced.
"""

import os
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from engine.cache_request import MAX_NAME_CHARACTERS, CacheRequest, make_request
from engine.dataplane.token_reader import TokenReader
from engine.errors import BadRequest, Unsupported
from engine.kv_layout import EngineDrivenRegistration, KVGroup, TensorDescriptor, kv_group, tensor_descriptor

OPERATION_IDS: Final = {
    1: "register_kv_cache",
    2: "unregister_kv_cache",
    3: "register_q_cache",
    4: "unregister_q_cache",
    5: "store_q",
    6: "store",
    7: "retrieve",
    8: "lookup",
    9: "query_prefetch_status",
    10: "wait_prefetch_status",
    12: "free_lookup_locks",
    13: "end_session",
    14: "register_kv_cache_engine_driven_context",
    15: "unregister_kv_cache_engine_driven_context",
    16: "prepare_store",
    17: "commit_store",
    18: "prepare_retrieve",
    19: "commit_retrieve",
    20: "clear",
    21: "get_chunk_size",
    22: "ping",
    23: "report_block_allocation",
    24: "noop",
    25: "cb_register_rope",
    26: "cb_unregister_rope",
    27: "cb_retrieve_pre_computed",
    28: "cb_unified_lookup",
    29: "p2p_lookup_and_lock",
    30: "p2p_query_lookup_results",
    31: "p2p_unlock_objects",
    32: "get_experimental",
    33: "cb_protocol_handshake",
}
"""Numbers that 0.5.6 sends in place of names; 11 is retired."""

#: Ext type of a device descriptor.
DESCRIPTOR_EXT: Final = 1
#: An operation frame with these bytes belongs to an event stream; there are none here.
STREAM_CONTROL: Final = b""

MAX_OPERATION_BYTES: Final = 128
MAX_BLOCK_IDS: Final = 1 << 20
MAX_GROUPS: Final = 1024
MAX_RECORDS: Final = 65536
MAX_EVENT_HANDLE_BYTES: Final = 4096
MAX_DESCRIPTOR_BYTES: Final = 1 << 16

Frame = bytes | memoryview

InstanceId = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
BlockId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
BlockIdGroups = Annotated[list[Annotated[list[BlockId], Meta(max_length=MAX_BLOCK_IDS)]], Meta(max_length=MAX_GROUPS)]

_T = TypeVar("_T")


class WireKey(msgspec.Struct, frozen=True):
    """Which tokens of whose request, as every lookup and transfer sends it. The tokens stay encoded."""

    model_name: Name
    world_size: int
    token_ids: msgspec.Raw
    start: int
    end: int
    request_id: Name
    worker_id: int | None = None
    cache_salt: Name = ""
    num_kv_readers: int = 0


class WireRegistration(msgspec.Struct, frozen=True):
    """Registration of a client that copies by itself."""

    instance_id: InstanceId
    model_name: Name
    world_size: int
    block_size: int
    num_layers: int
    hidden_dim_size: int
    dtype_str: Name
    use_mla: bool
    num_physical_slots: int | None = None


class WireGroup(msgspec.Struct, frozen=True):
    """Layers with one block table."""

    engine_group_id: int
    layer_indices: list[int]
    tokens_per_block: int
    sw_size_tokens: int = -1
    extra_object_group_tag: int = 0
    recurrent_state: bool = False


class WireTensorMetadata(msgspec.Struct, frozen=True):
    """Shape and strides of one tensor, in elements."""

    dtype: Name
    shape: list[int]
    stride: list[int]
    storage_offset: int
    device_uuid: Name = "cpu"


class WireDescriptor(msgspec.Struct, frozen=True):
    """Where one tensor lies. The fields after `metadata` are those of `type` cpu_shm."""

    type: Name
    version: int
    metadata: WireTensorMetadata
    shm_name: Name = ""
    nbytes: int = 0


class WireAllocation(msgspec.Struct, frozen=True):
    """Blocks a scheduler gave to one request. Only their number is of use here."""

    new_block_ids: list[BlockId] = []


class Decoder:
    """Decodes one parameter frame; raises BadRequest for everything that is not exactly the wanted type."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)

    def __call__(self, frame: Frame) -> Any:
        try:
            return self._decoder.decode(frame)
        except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError) as error:
            raise BadRequest(f"undecodable parameter of {len(frame)} bytes: {str(error)[:200]}") from None


decode_int64 = Decoder(InstanceId)
decode_optional_int64 = Decoder(InstanceId | None)
decode_count = Decoder(Annotated[int, Meta(ge=0, le=(1 << 31) - 1)])
decode_bool = Decoder(bool)
decode_name = Decoder(Name)
decode_seconds = Decoder(Annotated[float, Meta(ge=0)])
decode_block_ids = Decoder(BlockIdGroups)
decode_bytes = Decoder(memoryview)
decode_event_handle = Decoder(Annotated[bytes, Meta(max_length=MAX_EVENT_HANDLE_BYTES)])
decode_layout_hints = Decoder(dict[Name, Name | int | bool | None])
_decode_allocations = Decoder(Annotated[list[WireAllocation], Meta(max_length=MAX_RECORDS)])
_decode_key = Decoder(WireKey)
_decode_registration = Decoder(WireRegistration)
_decode_groups = Decoder(Annotated[list[WireGroup], Meta(max_length=MAX_GROUPS)])
_decode_ext_list = Decoder(Annotated[list[msgspec.msgpack.Ext], Meta(max_length=MAX_GROUPS)])
_decode_descriptor = Decoder(WireDescriptor)
_decode_operation = Decoder(Annotated[int, Meta(ge=0)] | Name)

encode = msgspec.msgpack.Encoder().encode

_PLACEHOLDER = encode(os.urandom(16))

#: The usual encodings, so that the common path is one dictionary look-up.
_NAME_OF_FRAME = {encode(number): name for number, name in OPERATION_IDS.items()}
_NAME_OF_FRAME.update({encode(name): name for name in OPERATION_IDS.values()})


def operation_name(frame: bytes) -> str:
    """The name of the operation a request asks for, also an unknown one. Raises BadRequest."""
    name = _NAME_OF_FRAME.get(frame)
    if name is not None:
        return name
    if len(frame) > MAX_OPERATION_BYTES:
        raise BadRequest(f"operation of {len(frame)} bytes, at most {MAX_OPERATION_BYTES} are allowed")
    value = _decode_operation(frame)
    if isinstance(value, str):
        return value
    return OPERATION_IDS.get(value, str(value))


def decode_request(frame: Frame, tokens: TokenReader, *, tp_size: int = 1) -> CacheRequest:
    """The request that a key frame describes. Raises BadRequest.

    `num_kv_readers` 0 comes from clients which do not know the field: then one worker reads each object, or
    `tp_size` of them where that exceeds the number of pieces (all ranks read the same object).
    """
    key, token_ids = _decode_known_key(frame, tokens) or _decode_new_key(frame, tokens)
    readers = key.num_kv_readers
    if readers == 0:
        readers = tp_size if tp_size > key.world_size else 1
    return make_request(
        key.model_name,
        key.world_size,
        key.worker_id,
        token_ids,
        key.start,
        key.end,
        key.request_id,
        key.cache_salt,
        readers,
    )


def _decode_new_key(frame: Frame, tokens: TokenReader) -> "tuple[WireKey, array[int]]":
    key: WireKey = _decode_key(frame)
    return key, tokens.read(key.request_id, bytes(key.token_ids))


def _decode_known_key(frame: Frame, tokens: TokenReader) -> "tuple[WireKey, array[int]] | None":
    """The key, when its token array is a known one: decoded with a placeholder in its place, since scanning takes long.

    Up to the array both messages are the same bytes, so when the placeholder turns up as the value of `token_ids`, the
    array would have. Nobody outside knows the placeholder, so it cannot turn up from elsewhere.
    """
    if not isinstance(frame, bytes) or (found := tokens.find(frame)) is None:
        return None
    start, known = found
    try:
        key: WireKey = _decode_key(frame[:start] + _PLACEHOLDER + frame[start + len(known.raw) :])
    except BadRequest:
        return None
    if bytes(key.token_ids) != _PLACEHOLDER:
        return None
    tokens.remember(key.request_id, known)
    return key, known.tokens


def decode_registration(frame: Frame) -> EngineDrivenRegistration:
    """An engine-driven registration; its numbers are checked where the layout is made. Raises BadRequest."""
    wire: WireRegistration = _decode_registration(frame)
    return EngineDrivenRegistration(
        instance_id=wire.instance_id,
        model_name=wire.model_name,
        world_size=wire.world_size,
        block_size=wire.block_size,
        num_layers=wire.num_layers,
        hidden_dim_size=wire.hidden_dim_size,
        dtype_str=wire.dtype_str,
        use_mla=wire.use_mla,
        num_physical_slots=wire.num_physical_slots,
    )


def decode_descriptors(frame: Frame) -> list[TensorDescriptor]:
    """The tensors of a server-driven client, in layer order. Raises BadRequest; Unsupported for foreign kinds."""
    return [_descriptor(ext) for ext in _decode_ext_list(frame)]


def decode_groups(frame: Frame) -> list[KVGroup]:
    """The KV groups of a server-driven client; none means one group of all layers. Raises BadRequest."""
    groups: Sequence[WireGroup] = _decode_groups(frame)
    return [kv_group(**msgspec.structs.asdict(group)) for group in groups]


def decode_allocations(frame: Frame) -> tuple[int, int]:
    """Numbers of records and of blocks in an allocation report. Raises BadRequest."""
    records: Sequence[WireAllocation] = _decode_allocations(frame)
    return len(records), sum(len(record.new_block_ids) for record in records)


def _descriptor(ext: msgspec.msgpack.Ext) -> TensorDescriptor:
    if ext.code != DESCRIPTOR_EXT:
        raise BadRequest(f"ext type {ext.code} is not a device descriptor (type {DESCRIPTOR_EXT})")
    data = bytes(ext.data)
    if len(data) > MAX_DESCRIPTOR_BYTES:
        raise BadRequest(f"device descriptor of {len(data)} bytes, at most {MAX_DESCRIPTOR_BYTES} are allowed")
    wire: WireDescriptor = _decode_descriptor(data)
    if wire.type != "cpu_shm":
        raise Unsupported(f"device descriptor of type {wire.type[:64]!r}: only cpu_shm is supported")
    if wire.version != 1:
        raise Unsupported(f"device descriptor of version {wire.version}: only 1 is supported")
    return tensor_descriptor(
        kind=wire.type,
        shm_name=wire.shm_name,
        nbytes=wire.nbytes,
        dtype=wire.metadata.dtype,
        shape=wire.metadata.shape,
        stride=wire.metadata.stride,
        storage_offset=wire.metadata.storage_offset,
        device_uuid=wire.metadata.device_uuid,
    )
