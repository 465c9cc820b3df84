"""From tensor descriptors to byte offsets: where the blocks of each layer lie, and where they go in an object.

tensor shape, hint                  format name             block axis  planes
----------------------------------  ----------------------  ----------  ------
(2, NB, BS, NH, HS), NHD            TWO_NB_BS_NH_HS         1           2
(2, NB, NH, BS, HS), HND            TWO_NB_NH_BS_HS         1           2
(NB, 2, BS, NH, HS), NHD            NB_TWO_BS_NH_HS         0           1
(NB, 2, NH, BS, HS), HND            NB_TWO_NH_BS_HS         0           1
(NB, BS, NH, 2*HS), NHD             NB_BS_NH_TWO_HS         0           1
(NB, NH, BS, 2*HS), HND             NB_NH_BS_TWO_HS         0           1
(NB, BS, HS), MLA and the like      NB_BS_HS                0           1

A plane is what one index before the block axis selects. A block is opaque: its bytes are kept in the order of the
client's memory, so that a block that is dense there is one run, however its axes are permuted.
The hints BLNHC and BLHNC mean NHD and HND with interleaved layers, which only the strides show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from engine.errors import BadRequest, Unsupported
from engine.kv_layout import (
    MAX_LAYERS,
    MAX_TOKENS,
    KVGroup,
    ObjectLayout,
    TensorDescriptor,
    checked_int,
    checked_object_bytes,
    dimensions,
    dtype_bytes,
    fingerprint,
)

MAX_PIECES_PER_BLOCK = 4096
MAX_PIECES_PER_CHUNK = 1 << 20

_LAYOUT_OF_HINT = {"NHD": "NHD", "BLNHC": "NHD", "HND": "HND", "BLHNC": "HND"}


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """Offsets, strides and sizes are bytes, offsets from the start of the segment.

    `memory_order` names the inner axes longer than 1, outermost in memory first.
    """

    index: int
    descriptor: TensorDescriptor
    format_name: str
    block_axis: int
    slots: int
    num_blocks: int
    plane_offsets: tuple[int, ...]
    block_stride: int
    block_bytes: int
    piece_offsets: tuple[int, ...]
    piece_bytes: int
    memory_order: tuple[int, ...]

    def chunk_bytes(self, blocks: int) -> int:
        return len(self.plane_offsets) * blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class GroupGeometry:
    """One group. `kept_blocks` counts the last blocks of each chunk: not all under a small sliding window."""

    group: KVGroup
    layers: tuple[LayerGeometry, ...]
    tokens_per_block: int
    blocks_per_chunk: int
    kept_blocks: int
    num_blocks: int

    @property
    def chunk_bytes(self) -> int:
        return sum(layer.chunk_bytes(self.kept_blocks) for layer in self.layers)


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """All of a client's tensors. `layers` are all that hold data, also those which no group names."""

    layers: tuple[LayerGeometry, ...]
    groups: tuple[GroupGeometry, ...]
    layout: ObjectLayout


def kv_geometry(
    descriptors: Sequence[TensorDescriptor],
    groups: Sequence[KVGroup],
    layout_hints: Mapping[str, object],
    chunk_size: int,
) -> KVGeometry:
    """Geometry of a registration; no groups means one group of all layers. Raises BadRequest for what does not fit."""
    if not 1 <= len(descriptors) <= MAX_LAYERS:
        raise BadRequest(f"{len(descriptors)} KV tensors; 1 to {MAX_LAYERS} are possible")
    if len(groups) > MAX_LAYERS:
        raise BadRequest(f"{len(groups)} KV groups; at most {MAX_LAYERS} are possible")
    groups = groups or [KVGroup(0, tuple(range(len(descriptors))), _tokens_hint(layout_hints))]
    _check_layer_indices(groups, len(descriptors))
    layers, shaped = _layers_and_groups(descriptors, groups, layout_hints, chunk_size)
    _check_piece_count(shaped)
    object_bytes = checked_object_bytes(sum(group.chunk_bytes for group in shaped))
    digest = fingerprint(_canonical_text(shaped, chunk_size))
    return KVGeometry(layers, shaped, ObjectLayout(object_bytes, digest, windows=_windows(shaped, chunk_size)))


def _layers_and_groups(
    descriptors: Sequence[TensorDescriptor], groups: Sequence[KVGroup], hints: Mapping[str, object], chunk_size: int
) -> tuple[tuple[LayerGeometry, ...], tuple[GroupGeometry, ...]]:
    """With the hinted axis order; without a hint HND as other CPU servers assume, or NHD where only that fits."""
    hint = hints.get("kv_layout")
    if hint is not None and str(hint) not in _LAYOUT_OF_HINT:
        raise BadRequest(f"kv_layout: {str(hint)[:64]!r} is not one of {', '.join(_LAYOUT_OF_HINT)}")
    orders = ("HND", "NHD") if hint is None else (_LAYOUT_OF_HINT[str(hint)],)
    refusal: BadRequest | None = None
    for order in orders:
        layers = tuple(
            layer_geometry(index, descriptor, order)
            for index, descriptor in enumerate(descriptors)
            if not descriptor.is_empty
        )
        by_index = {layer.index: layer for layer in layers}
        try:
            return layers, tuple(_group_geometry(group, by_index, chunk_size) for group in groups)
        except BadRequest as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _windows(groups: Sequence[GroupGeometry], chunk_size: int) -> tuple[int, ...]:
    """See ObjectLayout.windows. Of a recurrent state only the last one counts."""
    windows = tuple(_window(group, chunk_size) for group in groups)
    return windows if any(windows) else ()


def _window(group: GroupGeometry, chunk_size: int) -> int:
    if not group.layers:
        return 0
    if group.group.recurrent_state:
        return 1
    return -(-group.group.sw_size_tokens // chunk_size) if group.group.sw_size_tokens > 0 else 0


def _group_geometry(group: KVGroup, layers: Mapping[int, LayerGeometry], chunk_size: int) -> GroupGeometry:
    members = tuple(layers[index] for index in group.layer_indices if index in layers)
    slots = {layer.slots for layer in members}
    tokens = group.tokens_per_block
    if tokens == 0:
        if len(slots) != 1:
            raise BadRequest(f"tokens_per_block is 0 and the tensors of the group show {sorted(slots)} slots per block")
        tokens = next(iter(slots))
    if chunk_size % tokens:
        raise BadRequest(f"chunk_size {chunk_size} is no multiple of tokens_per_block {tokens}")
    if not group.recurrent_state and any(tokens % count for count in slots):
        raise BadRequest(f"tokens_per_block {tokens} is no multiple of the {sorted(slots)} slots of a block")
    blocks = chunk_size // tokens
    kept = blocks
    if 0 < group.sw_size_tokens < chunk_size:
        kept = -(-group.sw_size_tokens // tokens)
    num_blocks = min((layer.num_blocks for layer in members), default=0)
    return GroupGeometry(group, members, tokens, blocks, kept, num_blocks)


def layer_geometry(index: int, descriptor: TensorDescriptor, order: str) -> LayerGeometry:
    """Byte offsets of one layer, `order` NHD or HND. Raises Unsupported for a shape outside the table above."""
    name, block_axis, slot_axis = _format_of(index, descriptor.shape, order)
    shape, itemsize = descriptor.shape, dtype_bytes(descriptor.dtype)
    stride = tuple(step * itemsize for step in descriptor.stride)
    start = descriptor.storage_offset * itemsize
    planes = shape[0] if block_axis == 1 else 1
    inner = [axis for axis in range(block_axis + 1, len(shape)) if shape[axis] > 1]
    inner.sort(key=lambda axis: -stride[axis])
    piece_bytes = itemsize
    dense = len(inner)
    while dense and stride[inner[dense - 1]] == piece_bytes:
        dense -= 1
        piece_bytes *= shape[inner[dense]]
    outer = inner[:dense]
    if prod(shape[axis] for axis in outer) > MAX_PIECES_PER_BLOCK:
        raise Unsupported(f"layer {index}: a block lies in more than {MAX_PIECES_PER_BLOCK} pieces")
    pieces = tuple(
        sum(step * stride[axis] for step, axis in zip(steps, outer, strict=True))
        for steps in product(*(range(shape[axis]) for axis in outer))
    )
    return LayerGeometry(
        index=index,
        descriptor=descriptor,
        format_name=name,
        block_axis=block_axis,
        slots=shape[slot_axis],
        num_blocks=shape[block_axis],
        plane_offsets=tuple(start + plane * stride[0] for plane in range(planes)),
        block_stride=stride[block_axis],
        block_bytes=piece_bytes * len(pieces),
        piece_offsets=pieces,
        piece_bytes=piece_bytes,
        memory_order=tuple(inner),
    )


def _format_of(index: int, shape: tuple[int, ...], order: str) -> tuple[str, int, int]:
    """Format name, block axis, axis of the token slots in a block."""
    nhd = order == "NHD"
    if len(shape) == 5 and shape[0] == 2:
        return ("TWO_NB_BS_NH_HS", 1, 2) if nhd else ("TWO_NB_NH_BS_HS", 1, 3)
    if len(shape) == 5 and shape[1] == 2:
        return ("NB_TWO_BS_NH_HS", 0, 2) if nhd else ("NB_TWO_NH_BS_HS", 0, 3)
    if len(shape) == 4:
        return ("NB_BS_NH_TWO_HS", 0, 1) if nhd else ("NB_NH_BS_TWO_HS", 0, 2)
    if len(shape) == 3:
        return "NB_BS_HS", 0, 1
    raise Unsupported(f"layer {index}: KV tensors of shape {dimensions(shape)} are not supported")


def _canonical_text(groups: Sequence[GroupGeometry], chunk_size: int) -> str:
    """Everything two clients must have in common before one may read what the other stored."""
    lines = [f"blocks 1 chunk={chunk_size}"]
    for group in groups:
        kept = f"kept={group.kept_blocks}/{group.blocks_per_chunk} window={_window(group, chunk_size)}"
        lines.append(
            f"group tokens_per_block={group.tokens_per_block} {kept} recurrent={group.group.recurrent_state:d}"
        )
        for layer in group.layers:
            inner = dimensions(layer.descriptor.shape[layer.block_axis + 1 :])
            where = f"planes={len(layer.plane_offsets)} inner={inner} order={dimensions(layer.memory_order)}"
            lines.append(f"layer {layer.index} {layer.descriptor.dtype} {layer.format_name} {where}")
    return "\n".join(lines)


def _check_layer_indices(groups: Sequence[KVGroup], num_layers: int) -> None:
    named = [index for group in groups for index in group.layer_indices]
    if any(index >= num_layers for index in named):
        raise BadRequest(f"layer index {max(named)} is out of range: {num_layers} KV tensors are registered")
    if len(set(named)) != len(named):
        raise BadRequest("a layer is named by more than one KV group")


def _check_piece_count(groups: Sequence[GroupGeometry]) -> None:
    pieces = sum(
        len(layer.plane_offsets) * len(layer.piece_offsets) * group.kept_blocks
        for group in groups
        for layer in group.layers
    )
    if pieces > MAX_PIECES_PER_CHUNK:
        raise Unsupported(f"one chunk lies in {pieces} pieces of memory; at most {MAX_PIECES_PER_CHUNK} are supported")


def _tokens_hint(layout_hints: Mapping[str, object]) -> int:
    hint = layout_hints.get("tokens_per_block")
    return 0 if hint is None else checked_int("tokens_per_block", hint, 0, MAX_TOKENS)
