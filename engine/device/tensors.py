"""Registered KV tensors of one client, as the engine sees them, and the one place that opens them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.device.cpu_shm import CpuShmTensors
from engine.device.geometry import kv_geometry
from engine.errors import Unsupported
from engine.kv_layout import KVGroup, ObjectLayout, TensorDescriptor

BlockIds = Sequence[Sequence[int]]
"""Per group, the block ids of a token range in token order."""


class KVTensors(Protocol):
    """KV memory that a client registered.

    Ids are checked once per request with `check_block_ids`; the verbs that copy rely on that. Copies of different
    chunks may run in several threads at once. `close` may come while they run: they finish, later ones raise
    ClientMemoryError. Equal `memory_id` means the same segments, and in them the same tensors at the same places.
    """

    layout: ObjectLayout
    blocks_per_chunk: tuple[int, ...]
    num_blocks: tuple[int, ...]
    memory_id: tuple[object, ...]

    def check_block_ids(self, block_ids: BlockIds, num_chunks: int) -> None:
        """Raises NotEnoughBlocks for a list too short for `num_chunks`, BadRequest for any other fault in the lists."""

    def null_chunks(self, block_ids: BlockIds, num_chunks: int) -> set[int]:
        """Chunks whose ids are 0 in every group: the inference engine keeps no data for them."""

    def missing_groups(self, block_ids: BlockIds, num_chunks: int) -> list[int]:
        """Per chunk, a bit for each windowed group of which a block to be kept is the null block (id 0)."""

    def gather(self, chunk: int, block_ids: BlockIds, into: memoryview) -> None:
        """Fill `into` (layout.object_bytes long) with chunk number `chunk` of the range. Raises ClientMemoryError."""

    def scatter(self, chunk: int, block_ids: BlockIds, data: memoryview, *, skip_tokens: int) -> None:
        """Write an object back into the blocks of chunk number `chunk`. Raises ClientMemoryError.

        The whole blocks within the chunk's first `skip_tokens` tokens are left untouched.
        """

    def checksums(self, block_ids: Sequence[int], chunk_size: int, *, layerwise: bool) -> dict[str, object]:
        """MD5 of the blocks as they are in client memory, `chunk_size` blocks each: chunk_checksums, num_chunks.

        Raises BadRequest for an id out of range or too many ids, ClientMemoryError.
        """

    def slot_checksums(self, slots: Sequence[int], chunk_size: int | None, *, layerwise: bool) -> dict[str, object]:
        """The same over token slots, `chunk_size` slots each; without a chunk size they are only checked.

        Slot s is token s % n of block s // n in a layer with n tokens per block.
        """

    def layers(self) -> dict[str, dict[str, object]]:
        """Name -> shape, dtype, device of each tensor that holds data."""

    def describe(self) -> dict[str, object]:
        """The object `kv_cache_layout` of GET /status: layers, blocks, bytes per token, groups."""

    def close(self) -> None:
        """Let go of the client's memory. May be called twice."""


def open_kv_tensors(
    descriptors: Sequence[TensorDescriptor],
    groups: Sequence[KVGroup],
    layout_hints: Mapping[str, object],
    chunk_size: int,
) -> KVTensors:
    """Attach to a client's tensors. Raises BadRequest; nothing stays open then.

    The caller owns the result and closes it.
    """
    kinds = sorted({descriptor.kind for descriptor in descriptors} - {"cpu_shm"})
    if kinds:
        raise Unsupported(f"KV tensors of type {', '.join(kinds)} are not supported; supported is cpu_shm")
    return CpuShmTensors(kv_geometry(descriptors, groups, layout_hints, chunk_size))
