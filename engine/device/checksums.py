"""MD5 of registered blocks, to compare what is in client memory before a store and after a retrieve.

Each layer's blocks are taken along its block axis, in order; a chunk of them is hashed in C order of the layer's own
axes. bfloat16 is widened to float32 first, as other servers do.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import md5
from typing import Any, Protocol

import numpy as np

from engine.device.geometry import LayerGeometry
from engine.errors import BadRequest
from engine.kv_layout import dtype_bytes

MAX_BLOCK_IDS = 1 << 16
MAX_BYTES = 1 << 35

ReadPiece = Callable[[int, int, memoryview], None]
"""(layer index, byte offset in its segment, buffer to fill)"""


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: Any, /) -> None: ...


def whole_checksums(
    layers: Sequence[LayerGeometry], read: ReadPiece, block_ids: Sequence[int], chunk_size: int
) -> dict[str, object]:
    """One digest per chunk over all layers in order: {"chunk_checksums": [hex], "num_chunks": n}."""
    digests = []
    for ids in _chunks(layers, block_ids, chunk_size):
        digest = md5(usedforsecurity=False)
        for layer in layers:
            _feed(digest, layer, read, ids)
        digests.append(digest.hexdigest())
    return {"chunk_checksums": digests, "num_chunks": len(digests)}


def layer_checksums(
    layers: Sequence[LayerGeometry], read: ReadPiece, block_ids: Sequence[int], chunk_size: int
) -> dict[str, object]:
    """One digest per layer and chunk: {"chunk_checksums": {"layer_0": [hex], ...}, "num_chunks": n}."""
    digests: dict[str, list[str]] = {f"layer_{layer.index}": [] for layer in layers}
    chunks = _chunks(layers, block_ids, chunk_size)
    for ids in chunks:
        for layer in layers:
            digest = md5(usedforsecurity=False)
            _feed(digest, layer, read, ids)
            digests[f"layer_{layer.index}"].append(digest.hexdigest())
    return {"chunk_checksums": digests, "num_chunks": len(chunks)}


def _chunks(layers: Sequence[LayerGeometry], block_ids: Sequence[int], chunk_size: int) -> list[Sequence[int]]:
    if chunk_size < 1:
        raise BadRequest(f"chunk_size must be positive, got {chunk_size}")
    size = sum(layer.chunk_bytes(len(block_ids)) for layer in layers)
    if len(block_ids) > MAX_BLOCK_IDS or size > MAX_BYTES:
        limits = f"{MAX_BLOCK_IDS} blocks and {MAX_BYTES} bytes"
        raise BadRequest(f"{len(block_ids)} blocks with {size} bytes wanted; at most {limits} are hashed at once")
    return [block_ids[start : start + chunk_size] for start in range(0, len(block_ids), chunk_size)]


def _feed(digest: Digest, layer: LayerGeometry, read: ReadPiece, block_ids: Sequence[int]) -> None:
    """C order runs through a plane's blocks one after the other, so one block in memory at a time is enough."""
    for block in blocks_in_logical_order(layer, read, block_ids):
        hash_elements(digest, layer, block)


def hash_elements(digest: Digest, layer: LayerGeometry, elements: np.ndarray[Any, Any]) -> None:
    """Feeds elements of a layer, which come as integers, in C order."""
    if layer.descriptor.dtype == "bfloat16":
        elements = elements.astype(np.uint32) << 16
    digest.update(np.ascontiguousarray(elements))


def blocks_in_logical_order(
    layer: LayerGeometry, read: ReadPiece, block_ids: Sequence[int]
) -> Iterator[np.ndarray[Any, Any]]:
    """Blocks as integer arrays of the inner axes that are longer than 1, in the tensor's own order of axes."""
    buffer = bytearray(layer.block_bytes)
    shape = [layer.descriptor.shape[axis] for axis in layer.memory_order]
    stored = np.frombuffer(buffer, dtype=f"u{dtype_bytes(layer.descriptor.dtype)}").reshape(shape)
    logical = stored.transpose(np.argsort(layer.memory_order))
    view = memoryview(buffer)
    for plane in layer.plane_offsets:
        for block_id in block_ids:
            start = plane + block_id * layer.block_stride
            for number, piece in enumerate(layer.piece_offsets):
                read(layer.index, start + piece, view[number * layer.piece_bytes : (number + 1) * layer.piece_bytes])
            yield logical
