"""MD5 of single token slots: what checksums.py does for blocks, for those who know a request by its slot mapping.

Slot s is token s % n of block s // n. A layer's slots are taken along its token axis, plane by plane, each in C order
of the layer's other axes. Chunks are of `chunk_size` slots; the last may be shorter.
"""

from collections.abc import Sequence
from hashlib import md5

import numpy as np

from engine.device.checksums import MAX_BYTES, ReadPiece, blocks_in_logical_order, hash_elements
from engine.device.geometry import LayerGeometry
from engine.errors import BadRequest

MAX_SLOTS = 1 << 16


def digest_slots(
    layers: Sequence[LayerGeometry], read: ReadPiece, slots: Sequence[int], chunk_size: int | None, *, layerwise: bool
) -> dict[str, object]:
    """{"chunk_checksums": [hex] or {"layer_0": [hex], ...}, "num_chunks": n}; no chunks without a chunk size."""
    if chunk_size is not None and chunk_size < 1:
        raise BadRequest(f"chunk_size must be positive, got {chunk_size}")
    # In the worst case each slot has a block read for it.
    if len(slots) > MAX_SLOTS or len(slots) * sum(layer.chunk_bytes(1) for layer in layers) > MAX_BYTES:
        raise BadRequest(f"{len(slots)} slots; at most {MAX_SLOTS}, in blocks of {MAX_BYTES} bytes, are hashed at once")
    chunks = [slots[start : start + chunk_size] for start in range(0, len(slots), chunk_size)] if chunk_size else []
    if layerwise:
        by_layer = {f"layer_{layer.index}": [_digest([layer], read, chunk) for chunk in chunks] for layer in layers}
        return {"chunk_checksums": by_layer, "num_chunks": len(chunks)}
    return {"chunk_checksums": [_digest(layers, read, chunk) for chunk in chunks], "num_chunks": len(chunks)}


def _digest(layers: Sequence[LayerGeometry], read: ReadPiece, slots: Sequence[int]) -> str:
    digest = md5(usedforsecurity=False)
    for layer in layers:
        runs = _runs(slots, layer.slots)
        blocks = blocks_in_logical_order(layer, read, [block for block, _ in runs])
        axis = _token_axis(layer)
        for number, block in enumerate(blocks):
            tokens = runs[number % len(runs)][1]
            rows = block[np.newaxis] if axis is None else np.moveaxis(block, axis, 0)
            hash_elements(digest, layer, rows[tokens])
    return digest.hexdigest()


def _runs(slots: Sequence[int], slots_per_block: int) -> list[tuple[int, list[int]]]:
    """(block, tokens in it) in order; neighbours of one block together, so that it is read once."""
    runs: list[tuple[int, list[int]]] = []
    for slot in slots:
        block, token = divmod(slot, slots_per_block)
        if runs and runs[-1][0] == block:
            runs[-1][1].append(token)
        else:
            runs.append((block, [token]))
    return runs


def _token_axis(layer: LayerGeometry) -> int | None:
    """Which axis of a block in logical order its tokens are; None for blocks of one token, which have no such axis."""
    axis = layer.format_name.split("_").index("BS")
    return sorted(layer.memory_order).index(axis) if axis in layer.memory_order else None
