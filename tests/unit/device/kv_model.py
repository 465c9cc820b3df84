"""Random KV registrations over one or more shared segments, and a plain numpy model of what a chunk of them holds."""

import itertools
import mmap
import os
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from engine.kv_layout import DTYPE_BYTES, KVGroup, TensorDescriptor, tensor_descriptor

Array = np.ndarray[Any, Any]
_numbers = itertools.count()


class Segment:
    """A shared segment as a client makes it. `grow` before `open`, views after."""

    def __init__(self) -> None:
        self.name = f"/lmcache_kv_{os.getpid()}_t{next(_numbers)}"
        self.nbytes = 0
        self.memory: Array | None = None
        self._mapping: mmap.mmap | None = None

    def grow(self, nbytes: int) -> int:
        """Room for `nbytes` more; where it starts. Everything starts at a multiple of 8."""
        start = self.nbytes
        self.nbytes += nbytes + 7 & ~7
        return start

    def open(self) -> None:
        path = "/dev/shm" + self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(descriptor, max(1, self.nbytes))
        self._mapping = mmap.mmap(descriptor, max(1, self.nbytes))
        os.close(descriptor)
        self.memory = np.frombuffer(self._mapping, dtype=np.uint8)

    def fill(self, seed: int) -> None:
        assert self.memory is not None
        self.memory[:] = np.random.default_rng(seed).integers(0, 256, len(self.memory), dtype=np.uint8)

    def truncate(self, nbytes: int) -> None:
        os.truncate("/dev/shm" + self.name, nbytes)

    def close(self) -> None:
        self.memory = None
        if self._mapping is not None:
            os.unlink("/dev/shm" + self.name)
            self._mapping = None


@dataclass
class Layer:
    """One layer: `shape` as registered, `order` its axes from outermost to innermost in memory."""

    shape: tuple[int, ...]
    dtype: str
    order: tuple[int, ...]
    segment: Segment
    gap: int = 0
    start: int = 0
    stride: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        itemsize = DTYPE_BYTES[self.dtype]
        stride, step = [0] * len(self.shape), 1
        for position, axis in enumerate(reversed(self.order)):
            stride[axis] = step
            step = step * self.shape[axis] + (self.gap if position == 0 else 0)
        self.stride = tuple(stride)
        self.start = self.segment.grow(step * itemsize) // itemsize

    @property
    def block_axis(self) -> int:
        return 1 if len(self.shape) == 5 and self.shape[0] == 2 else 0

    def descriptor(self) -> TensorDescriptor:
        return tensor_descriptor(
            kind="cpu_shm",
            shm_name=self.segment.name,
            nbytes=self.segment.nbytes,
            dtype=self.dtype,
            shape=list(self.shape),
            stride=list(self.stride),
            storage_offset=self.start,
        )

    def view(self) -> Array:
        """The tensor as unsigned integers of its element size."""
        assert self.segment.memory is not None
        itemsize = DTYPE_BYTES[self.dtype]
        flat = self.segment.memory[: self.segment.nbytes // itemsize * itemsize].view(f"u{itemsize}")[self.start :]
        return np.lib.stride_tricks.as_strided(flat, self.shape, tuple(step * itemsize for step in self.stride))

    def blocks(self, ids: list[int]) -> Array:
        """A copy of these blocks, one after the other along the block axis."""
        return self.view().take(ids, axis=self.block_axis)


@dataclass
class Registration:
    """Layers, groups and hints of one client."""

    layers: list[Layer]
    groups: list[KVGroup]
    hints: dict[str, object] = field(default_factory=dict)

    def segments(self) -> list[Segment]:
        return list({id(layer.segment): layer.segment for layer in self.layers}.values())

    def open(self) -> None:
        for segment in self.segments():
            segment.open()

    def fill(self, seed: int) -> None:
        for number, segment in enumerate(self.segments()):
            segment.fill(1000 * seed + number)

    def close(self) -> None:
        for segment in self.segments():
            segment.close()

    def descriptors(self) -> list[TensorDescriptor]:
        return [layer.descriptor() for layer in self.layers]

    def object_bytes(self, chunk_size: int) -> int:
        """Bytes of the blocks kept of each chunk, counted from the shapes alone."""
        total = 0
        for group in self.groups:
            kept = chunk_size // group.tokens_per_block
            if 0 < group.sw_size_tokens < chunk_size:
                kept = (group.sw_size_tokens + group.tokens_per_block - 1) // group.tokens_per_block
            for index in group.layer_indices:
                layer = self.layers[index]
                total += prod(layer.shape) // layer.shape[layer.block_axis] * kept * DTYPE_BYTES[layer.dtype]
        return total
