"""What clients register, and which bytes one cached chunk then has.

An object (one chunk, one rank) is a plain run of bytes. Two kinds exist:

kind           registered by                 order of the bytes
-------------  ----------------------------  ----------------------------------------------------------------
engine-driven  EngineDrivenRegistration      one C-contiguous array, shape (2, layers, slots, hidden); without
                                             the leading 2 where K and V are one plane
blocks         TensorDescriptor and KVGroup  group by group, layer by layer, plane by plane, blocks in token
               (geometry in engine/device)   order; inside a block as it lies in the client's memory

The fingerprint of a layout covers all that must agree before bytes stored by one client may be handed to another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod

from engine.errors import BadRequest

FINGERPRINT_BYTES = 16
MAX_OBJECT_BYTES = 1 << 36
MAX_SEGMENT_BYTES = 1 << 47
MAX_RANK = 8
MAX_LAYERS = 1024
MAX_TOKENS = 1 << 31

DTYPE_BYTES: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "uint16": 2,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float64": 8,
    "int64": 8,
    "uint64": 8,
}
"""Bytes of one element, by torch's name of the dtype."""


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """How one object looks. `shape` and `dtype` are None for an object made of blocks.

    `windows` says, per KV group, how many chunks at the end of a hit must hold that group's data: 0 for all chunks,
    fewer for sliding windows and recurrent state. It is empty when every group needs all.
    """

    object_bytes: int
    fingerprint: bytes
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    windows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineDrivenRegistration:
    """A client that gathers and scatters by itself; sizes are per rank, `num_physical_slots` None means chunk_size."""

    instance_id: int
    model_name: str
    world_size: int
    block_size: int
    num_layers: int
    hidden_dim_size: int
    dtype_str: str
    use_mla: bool
    num_physical_slots: int | None = None


def engine_driven_layout(registration: EngineDrivenRegistration, chunk_size: int) -> ObjectLayout:
    """The object of an engine-driven client. Raises BadRequest for a number or dtype that cannot be."""
    checked_int("world_size", registration.world_size, 1, 1 << 16)
    checked_int("block_size", registration.block_size, 1, MAX_TOKENS)
    layers = checked_int("num_layers", registration.num_layers, 1, MAX_LAYERS)
    hidden = checked_int("hidden_dim_size", registration.hidden_dim_size, 1, MAX_TOKENS)
    slots = chunk_size
    if registration.num_physical_slots is not None:
        slots = checked_int("num_physical_slots", registration.num_physical_slots, 1, MAX_TOKENS)
    itemsize = dtype_bytes(registration.dtype_str)
    shape = (layers, slots, hidden) if registration.use_mla else (2, layers, slots, hidden)
    object_bytes = checked_object_bytes(prod(shape) * itemsize)
    text = f"engine-driven 1 chunk={chunk_size} dtype={registration.dtype_str} shape={dimensions(shape)}"
    return ObjectLayout(object_bytes, fingerprint(text), shape, registration.dtype_str)


@dataclass(frozen=True, slots=True)
class TensorDescriptor:
    """Where one layer's KV tensor lies. `stride` and `storage_offset` count elements.

    Made by `tensor_descriptor`, which checks it. An empty tensor has `nbytes` 0 or a 0 in its shape.
    """

    kind: str
    shm_name: str
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    device_uuid: str

    @property
    def is_empty(self) -> bool:
        return self.nbytes == 0 or 0 in self.shape or not self.shape


def tensor_descriptor(
    *,
    kind: object,
    shm_name: object,
    nbytes: object,
    dtype: object,
    shape: object,
    stride: object,
    storage_offset: object,
    device_uuid: object = "cpu",
) -> TensorDescriptor:
    """A checked descriptor from values as they came off the wire. Raises BadRequest.

    Every element lies inside `nbytes`, and no tensor has more elements than its storage: strides that make one place
    count many times would let a small segment claim any size.
    """
    descriptor = TensorDescriptor(
        kind=checked_str("descriptor type", kind, 64),
        shm_name=checked_str("shm_name", shm_name, 255),
        nbytes=checked_int("nbytes", nbytes, 0, MAX_SEGMENT_BYTES),
        dtype=checked_str("dtype", dtype, 64),
        shape=_dimension_tuple("shape", shape),
        stride=_dimension_tuple("stride", stride),
        storage_offset=checked_int("storage_offset", storage_offset, 0, MAX_SEGMENT_BYTES),
        device_uuid=checked_str("device_uuid", device_uuid, 255),
    )
    itemsize = dtype_bytes(descriptor.dtype)
    if len(descriptor.shape) != len(descriptor.stride):
        raise BadRequest(f"shape has {len(descriptor.shape)} dimensions, stride {len(descriptor.stride)}")
    if not descriptor.is_empty:
        reach = sum((size - 1) * step for size, step in zip(descriptor.shape, descriptor.stride, strict=True))
        last = itemsize * (descriptor.storage_offset + 1 + reach)
        if max(last, itemsize * prod(descriptor.shape)) > descriptor.nbytes:
            raise BadRequest(
                f"tensor {dimensions(descriptor.shape)} {descriptor.dtype} with stride {dimensions(descriptor.stride)} "
                f"and offset {descriptor.storage_offset} does not fit into {descriptor.nbytes} bytes"
            )
    return descriptor


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share one block table. `tokens_per_block` 0: as the tensor shows; `sw_size_tokens` -1: no window."""

    engine_group_id: int
    layer_indices: tuple[int, ...]
    tokens_per_block: int
    sw_size_tokens: int = -1
    extra_object_group_tag: int = 0
    recurrent_state: bool = False


def kv_group(
    *,
    engine_group_id: object,
    layer_indices: object,
    tokens_per_block: object,
    sw_size_tokens: object = -1,
    extra_object_group_tag: object = 0,
    recurrent_state: object = False,
) -> KVGroup:
    """A checked group from values as they came off the wire. Raises BadRequest."""
    if not isinstance(layer_indices, list | tuple) or not 1 <= len(layer_indices) <= MAX_LAYERS:
        raise BadRequest(f"layer_indices: a list of 1 to {MAX_LAYERS} layer numbers is wanted")
    indices = tuple(checked_int("layer index", index, 0, MAX_LAYERS - 1) for index in layer_indices)
    if not isinstance(recurrent_state, bool):
        raise BadRequest("recurrent_state: true or false is wanted")
    return KVGroup(
        engine_group_id=checked_int("engine_group_id", engine_group_id, -(1 << 31), 1 << 31),
        layer_indices=indices,
        tokens_per_block=checked_int("tokens_per_block", tokens_per_block, 0, MAX_TOKENS),
        sw_size_tokens=checked_int("sw_size_tokens", sw_size_tokens, -1, MAX_TOKENS),
        extra_object_group_tag=checked_int("extra_object_group_tag", extra_object_group_tag, -(1 << 31), 1 << 31),
        recurrent_state=recurrent_state,
    )


def fingerprint(canonical_text: str) -> bytes:
    """16 bytes that stand for a layout written out in full."""
    return blake2b(canonical_text.encode(), digest_size=FINGERPRINT_BYTES).digest()


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element. Raises BadRequest for a name torch does not have."""
    itemsize = DTYPE_BYTES.get(dtype)
    if itemsize is None:
        raise BadRequest(f"dtype {dtype[:64]!r} is not known; known are {', '.join(sorted(DTYPE_BYTES))}")
    return itemsize


def dimensions(shape: Sequence[int]) -> str:
    """A shape as text: [2, 64, 16]."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def checked_object_bytes(size: int) -> int:
    """`size`, if an object may have it. Raises BadRequest."""
    if not 0 < size <= MAX_OBJECT_BYTES:
        raise BadRequest(f"one chunk would have {size} bytes; 1 to {MAX_OBJECT_BYTES} are possible")
    return size


def checked_int(name: str, value: object, low: int, high: int) -> int:
    """`value`, if it is an integer in [low, high]. Raises BadRequest naming it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"{name}: an integer is wanted, got {type(value).__name__}")
    if not low <= value <= high:
        raise BadRequest(f"{name}: {value} is not in {low}..{high}")
    return value


def checked_str(name: str, value: object, max_length: int) -> str:
    """`value`, if it is text of at most `max_length` characters. Raises BadRequest naming it."""
    if not isinstance(value, str):
        raise BadRequest(f"{name}: text is wanted, got {type(value).__name__}")
    if len(value) > max_length:
        raise BadRequest(f"{name}: {len(value)} characters, at most {max_length} are allowed")
    return value


def _dimension_tuple(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_RANK:
        raise BadRequest(f"{name}: a list of at most {MAX_RANK} integers is wanted")
    return tuple(checked_int(name, size, 0, MAX_SEGMENT_BYTES) for size in value)
