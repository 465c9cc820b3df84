"""KV tensors in POSIX shared memory of the client.

The memory is never mapped: bytes go between the segment and the slot with preadv and pwritev on the segment's
descriptor. A client that truncates its segment makes a copy fail; it cannot raise SIGBUS here. Both calls release the
GIL.
"""

import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from engine.device.block_runs import PieceTable, Transfer
from engine.device.checksums import layer_checksums, whole_checksums
from engine.device.describe import describe_geometry, describe_layers
from engine.device.descriptor_count import SEGMENT_DESCRIPTORS
from engine.device.geometry import KVGeometry
from engine.device.slot_checksums import digest_slots
from engine.errors import BadRequest, ClientMemoryError, NotEnoughBlocks
from engine.kv_layout import TensorDescriptor

SHM_DIRECTORY = "/dev/shm"
#: Most buffers that one system call takes.
IOV_MAX = 1024
_NAME = re.compile(r"/lmcache_kv_[A-Za-z0-9_.-]{1,200}")


class CpuShmTensors:
    """See KVTensors. Thread-safe: the lock guards only the count of running copies and the closing."""

    def __init__(self, geometry: KVGeometry) -> None:
        """Opens every segment. Raises BadRequest when one is not what its descriptor says; nothing stays open then."""
        self._geometry = geometry
        self.layout = geometry.layout
        self.blocks_per_chunk = tuple(group.blocks_per_chunk for group in geometry.groups)
        self.num_blocks = tuple(group.num_blocks for group in geometry.groups)
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._segments: list[_Segment] = []
        number_of: dict[str, int] = {}
        try:
            for layer in geometry.layers:
                self._attach(layer.descriptor, number_of)
        except BadRequest:
            self.close()
            raise
        self._segment_of = {layer.index: number_of[layer.descriptor.shm_name] for layer in geometry.layers}
        self.memory_id = self._identify()
        self._tables = self._piece_tables()

    def _attach(self, descriptor: TensorDescriptor, number_of: dict[str, int]) -> None:
        number = number_of.get(descriptor.shm_name)
        if number is None:
            number = number_of[descriptor.shm_name] = len(self._segments)
            self._segments.append(_Segment(descriptor.shm_name))
        self._segments[number].need(descriptor.nbytes)

    def _identify(self) -> tuple[object, ...]:
        places = (
            (self._segment_of[layer.index], layer.descriptor.storage_offset, layer.descriptor.shape,
             layer.descriptor.stride)
            for layer in self._geometry.layers
        )  # fmt: skip
        return (*(segment.identity for segment in self._segments), *places)

    def _piece_tables(self) -> list[PieceTable]:
        tables, object_start = [], 0
        for group in self._geometry.groups:
            numbers = [self._segment_of[layer.index] for layer in group.layers]
            tables.append(PieceTable(group.layers, numbers, group.kept_blocks, object_start))
            object_start += group.chunk_bytes
        return tables

    def check_block_ids(self, block_ids: Sequence[Sequence[int]], num_chunks: int) -> None:
        groups = self._geometry.groups
        if len(block_ids) != len(groups):
            raise BadRequest(f"{len(block_ids)} lists of block ids; {len(groups)} KV groups are registered")
        for number, (ids, group) in enumerate(zip(block_ids, groups, strict=True)):
            wanted = num_chunks * group.blocks_per_chunk
            if len(ids) < wanted:
                raise NotEnoughBlocks(f"KV group {number}: {wanted} block ids wanted, {len(ids)} given")
            if group.layers:
                check_ids(ids[:wanted], group.num_blocks, f"KV group {number}")

    def null_chunks(self, block_ids: Sequence[Sequence[int]], num_chunks: int) -> set[int]:
        return {
            chunk
            for chunk in range(num_chunks)
            if not any(
                any(ids[chunk * blocks : (chunk + 1) * blocks])
                for ids, blocks in zip(block_ids, self.blocks_per_chunk, strict=True)
            )
        }

    def missing_groups(self, block_ids: Sequence[Sequence[int]], num_chunks: int) -> list[int]:
        missing = [0] * num_chunks
        for bit, window in enumerate(self.layout.windows):
            group = self._geometry.groups[bit]
            for chunk in range(num_chunks if window else 0):
                stop = (chunk + 1) * group.blocks_per_chunk
                if 0 in block_ids[bit][stop - group.kept_blocks : stop]:
                    missing[chunk] |= 1 << bit
        return missing

    def gather(self, chunk: int, block_ids: Sequence[Sequence[int]], into: memoryview) -> None:
        with self._in_use():
            for number, offset, length, ranges in self._transfers(chunk, block_ids, 0):
                self._segments[number].read(offset, length, ranges, into)

    def scatter(self, chunk: int, block_ids: Sequence[Sequence[int]], data: memoryview, *, skip_tokens: int) -> None:
        with self._in_use():
            for segment in self._segments:
                segment.check_not_shrunk()
            for number, offset, length, ranges in self._transfers(chunk, block_ids, skip_tokens):
                self._segments[number].write(offset, length, ranges, data)

    def _transfers(self, chunk: int, block_ids: Sequence[Sequence[int]], skip_tokens: int) -> Iterator[Transfer]:
        for group, table, ids in zip(self._geometry.groups, self._tables, block_ids, strict=True):
            begin = chunk * group.blocks_per_chunk
            dropped = group.blocks_per_chunk - group.kept_blocks
            skipped = max(skip_tokens // group.tokens_per_block, dropped)
            yield from table.transfers(ids[begin + skipped : begin + group.blocks_per_chunk], skipped - dropped)

    def checksums(self, block_ids: Sequence[int], chunk_size: int, *, layerwise: bool) -> dict[str, object]:
        layers = self._geometry.layers
        check_ids(block_ids, min(layer.num_blocks for layer in layers), "block_ids")
        digest = layer_checksums if layerwise else whole_checksums
        with self._in_use():
            return digest(layers, self._read_piece, block_ids, chunk_size)

    def slot_checksums(self, slots: Sequence[int], chunk_size: int | None, *, layerwise: bool) -> dict[str, object]:
        layers = self._geometry.layers
        check_ids(slots, min(layer.num_blocks * layer.slots for layer in layers), "slot_mapping")
        with self._in_use():
            return digest_slots(layers, self._read_piece, slots, chunk_size, layerwise=layerwise)

    def layers(self) -> dict[str, dict[str, object]]:
        return describe_layers(self._geometry)

    def _read_piece(self, layer_index: int, offset: int, into: memoryview) -> None:
        self._segments[self._segment_of[layer_index]].read(offset, len(into), [(0, len(into))], into)

    def describe(self) -> dict[str, object]:
        return describe_geometry(self._geometry)

    def close(self) -> None:
        with self._lock:
            idle = not self._closed and self._users == 0
            self._closed = True
        if idle:
            self._close_segments()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps descriptors open, so that a number the system gives to another file is never written to."""
        with self._lock:
            if self._closed:
                raise ClientMemoryError("the KV tensors were unregistered")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and self._users == 0
            if last:
                self._close_segments()

    def _close_segments(self) -> None:
        for segment in self._segments:
            segment.close()


def check_ids(ids: Sequence[int], num_blocks: int, what: str) -> None:
    """Raises BadRequest unless all ids are integers in 0..num_blocks-1."""
    try:
        array: np.ndarray[Any, Any] = np.asarray(ids)
    except (OverflowError, ValueError) as error:
        raise BadRequest(f"{what}: block ids must be a list of integers") from error
    if not array.size:
        return
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise BadRequest(f"{what}: block ids must be a list of integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_blocks:
        raise BadRequest(f"{what}: block id {low if low < 0 else high} is out of range 0..{num_blocks - 1}")


class _Segment:
    """An open shared-memory segment of a client."""

    def __init__(self, name: str) -> None:
        self.name = name
        if not _NAME.fullmatch(name):
            raise BadRequest(f"shared memory name {name!r}: a name like /lmcache_kv_<pid>_<n> is wanted")
        SEGMENT_DESCRIPTORS.take(name)
        try:
            self._fd = os.open(SHM_DIRECTORY + name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            SEGMENT_DESCRIPTORS.give_back()
            raise BadRequest(f"shared memory {name} cannot be opened: {error.strerror}") from error
        self._nbytes = 0
        facts = os.fstat(self._fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            self.close()
            raise BadRequest(f"shared memory {name} is not a regular segment of user {os.geteuid()}")
        #: Tells a segment from a later one of the same name.
        self.identity = (name, facts.st_dev, facts.st_ino)

    def need(self, nbytes: int) -> None:
        """Raises BadRequest when the segment has fewer bytes."""
        size = os.fstat(self._fd).st_size
        if size < nbytes:
            raise BadRequest(f"shared memory {self.name} has {size} bytes, {nbytes} were registered")
        self._nbytes = max(self._nbytes, nbytes)

    def check_not_shrunk(self) -> None:
        """Before a write, which would silently make a truncated segment longer again."""
        size = os.fstat(self._fd).st_size
        if size < self._nbytes:
            raise ClientMemoryError(f"shared memory {self.name} shrank from {self._nbytes} to {size} bytes")

    def read(self, offset: int, length: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        """Fill these ranges of `into`, in order, from one run of the segment. Raises ClientMemoryError."""
        if len(ranges) > IOV_MAX:
            for part in _parts(offset, ranges):
                self.read(*part, into)
            return
        try:
            done = os.preadv(self._fd, [into[start:stop] for start, stop in ranges], offset)
        except OSError as error:
            raise self._failure(f"reading {length} bytes at {offset}: {error.strerror}") from error
        if done != length:
            raise self._failure(f"{done} of {length} bytes at {offset} could be read")

    def write(self, offset: int, length: int, ranges: Sequence[tuple[int, int]], data: memoryview) -> None:
        """Write these ranges of `data`, in order, to one run of the segment. Raises ClientMemoryError."""
        if len(ranges) > IOV_MAX:
            for part in _parts(offset, ranges):
                self.write(*part, data)
            return
        try:
            done = os.pwritev(self._fd, [data[start:stop] for start, stop in ranges], offset)
        except OSError as error:
            raise self._failure(f"writing {length} bytes at {offset}: {error.strerror}") from error
        if done != length:
            raise self._failure(f"{done} of {length} bytes at {offset} could be written")

    def _failure(self, text: str) -> ClientMemoryError:
        return ClientMemoryError(f"shared memory {self.name}: {text}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            SEGMENT_DESCRIPTORS.give_back()


def _parts(offset: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Sequence[tuple[int, int]]]]:
    """The same transfer in calls that the system accepts, as (offset, length, ranges)."""
    for low in range(0, len(ranges), IOV_MAX):
        part = ranges[low : low + IOV_MAX]
        length = sum(stop - start for start, stop in part)
        yield offset, length, part
        offset += length
