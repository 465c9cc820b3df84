"""KV memory on the client's side: tensors in a shared segment, and gathering blocks into the server's slots.

mode           tensors live in           who copies                       classes here
-------------  ------------------------  -------------------------------  ---------------------
server-driven  a shared segment          the server, straight from there  SharedKV
engine-driven  any memory of the client  the client, into the pool        BlockArrays, PoolView
"""

import itertools
import mmap
import os
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from engine.kv_layout import DTYPE_BYTES

SHM_DIRECTORY = "/dev/shm"
_MAX_NAME_TRIES = 10_000
_numbers = itertools.count()

Array = np.ndarray[Any, Any]


class SharedKV:
    """KV tensors of one worker in one shared-memory segment, for a server that copies by itself.

    `layers` are zeroed C-contiguous numpy arrays over the segment. numpy has no bfloat16 and no float8; those come as
    unsigned integers of the same size. Any view of the segment may be registered instead, permuted or interleaved. The
    segment is removed by `close`; arrays that are still in use keep their memory until they go.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], dtype: str | Sequence[str] = "float16") -> None:
        """One shape per layer; one dtype (torch's name) for all, or one each. Raises OSError: no room in /dev/shm."""
        self.dtypes = [dtype] * len(shapes) if isinstance(dtype, str) else list(dtype)
        sizes = [prod(shape) * DTYPE_BYTES[name] for shape, name in zip(shapes, self.dtypes, strict=True)]
        starts = list(itertools.accumulate((size + 63 & ~63 for size in sizes), initial=0))
        self.nbytes = max(starts[-1], 1)
        self.name, descriptor = _create_segment()
        try:
            os.posix_fallocate(descriptor, 0, self.nbytes)
            self._mapping = mmap.mmap(descriptor, self.nbytes)
        except OSError:
            os.unlink(SHM_DIRECTORY + self.name)
            raise
        finally:
            os.close(descriptor)
        whole: Array = np.frombuffer(self._mapping, dtype=np.uint8)
        self._address = whole.ctypes.data
        self.layers: list[Array] = [
            whole[start : start + size].view(numpy_dtype(name)).reshape(shape)
            for start, size, shape, name in zip(starts, sizes, shapes, self.dtypes, strict=False)
        ]

    def place_of(self, tensor: object) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Shape, strides and offset, in elements, of an array or CPU tensor that lies in this segment.

        Raises ValueError when it does not.
        """
        array = as_array(tensor)
        itemsize = array.itemsize
        start = array.ctypes.data - self._address
        reach = sum((size - 1) * step for size, step in zip(array.shape, array.strides, strict=True))
        if start % itemsize or any(step < 0 or step % itemsize for step in array.strides):
            raise ValueError("the tensor is not made of whole elements of the segment in rising order")
        if array.size and not 0 <= start <= self.nbytes - reach - itemsize:
            raise ValueError(f"the tensor does not lie in the shared segment {self.name}")
        return array.shape, tuple(step // itemsize for step in array.strides), start // itemsize

    def close(self) -> None:
        """Remove the segment's name and let go of `layers`. May be called twice."""
        self.layers = []
        try:
            os.unlink(SHM_DIRECTORY + self.name)
        except FileNotFoundError:
            pass
        try:
            self._mapping.close()
        except BufferError:
            pass  # arrays of the caller still use it; it goes with the last of them

    def __enter__(self) -> "SharedKV":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class PoolView:
    """The server's pool, mapped: slots of it as arrays. Slots are used between a prepare and its commit only."""

    def __init__(self, name: str) -> None:
        """Raises OSError when the segment cannot be opened, on another host for instance."""
        if not name or "/" in name:
            raise FileNotFoundError(f"no segment can be called {name!r}")
        descriptor = os.open(f"{SHM_DIRECTORY}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._mapping = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def slot(self, offset: int, length: int) -> memoryview:
        """The bytes of a slot. Raises ValueError for a place outside the pool."""
        if not 0 <= offset <= len(self._mapping) - length or length < 0:
            raise ValueError(f"slot of {length} bytes at {offset}: the pool has {len(self._mapping)} bytes")
        return memoryview(self._mapping)[offset : offset + length]

    def close(self) -> None:
        self._mapping.close()


class BlockArrays:
    """Layers of paged KV that the client gathers and scatters itself, all of one shape and dtype.

    Shapes as in engine/device/geometry.py; `kv_layout` NHD or HND. A chunk has the shape (planes, layers, tokens,
    hidden), without the first axis where K and V are one plane.
    """

    def __init__(self, tensors: Sequence[object], kv_layout: str, dtype: str | None) -> None:
        """`dtype`: torch's name, where numpy's is another (bfloat16 as uint16). Raises ValueError."""
        arrays = [as_array(tensor) for tensor in tensors]
        if not arrays or len({(array.shape, array.dtype) for array in arrays}) != 1:
            raise ValueError("layers of one shape and dtype are wanted, at least one")
        self.dtype = dtype or arrays[0].dtype.name
        if DTYPE_BYTES.get(self.dtype) != arrays[0].itemsize:
            raise ValueError(f"dtype {self.dtype} does not fit elements of {arrays[0].itemsize} bytes")
        self.shapes, self.kv_layout = [array.shape for array in arrays], kv_layout
        self._layers = [_planes_blocks_tokens(array, kv_layout) for array in arrays]
        self.planes, self.num_blocks, self.block_size = self._layers[0].shape[:3]
        self.num_layers = len(arrays)
        self.hidden = prod(self._layers[0].shape[3:])

    def nbytes(self, blocks: int) -> int:
        """Bytes of a chunk of so many blocks."""
        return self.num_layers * blocks * self._layers[0][:, :1].nbytes

    def gather(self, block_ids: Sequence[int], into: memoryview) -> None:
        """Fill a chunk with these blocks."""
        slot = self._as_blocks(into, len(block_ids))
        for number, layer in enumerate(self._layers):
            slot[:, number] = layer[:, block_ids]

    def scatter(self, block_ids: Sequence[int], chunk: memoryview, skip_blocks: int) -> None:
        """Write a chunk into these blocks, but for the first `skip_blocks`."""
        slot = self._as_blocks(chunk, len(block_ids))
        for number, layer in enumerate(self._layers):
            layer[:, block_ids[skip_blocks:]] = slot[:, number, skip_blocks:]

    def _as_blocks(self, chunk: memoryview, blocks: int) -> Array:
        shape = (self.planes, self.num_layers, blocks, *self._layers[0].shape[2:])
        return np.frombuffer(chunk, dtype=self._layers[0].dtype).reshape(shape)


def as_array(tensor: object) -> Array:
    """A numpy view of an array or of another library's CPU tensor; nothing is copied. Raises ValueError."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if hasattr(tensor, "__dlpack__"):
        try:
            return np.from_dlpack(tensor)
        except (BufferError, RuntimeError, TypeError) as error:
            raise ValueError(
                "the tensor's dtype or memory is not numpy's: pass an integer view, and name the dtype"
            ) from error
    if hasattr(tensor, "__array_interface__"):
        return np.asarray(tensor)
    raise ValueError(f"{type(tensor).__name__} is neither an array nor a tensor")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name, or the unsigned integer of its size where numpy has none."""
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(f"u{DTYPE_BYTES[name]}")


def _planes_blocks_tokens(array: Array, kv_layout: str) -> Array:
    """A view with the axes (plane, block, token, rest...)."""
    tokens = {"NHD": 2, "HND": 3}[kv_layout]
    if array.ndim == 5 and array.shape[0] == 2:
        return np.moveaxis(array, tokens, 2)
    if array.ndim == 5 and array.shape[1] == 2:
        return np.moveaxis(np.moveaxis(array, 1, 0), tokens, 2)
    if array.ndim == 4:
        return np.moveaxis(array[None], tokens, 2)
    if array.ndim == 3:
        return array[None]
    raise ValueError(f"KV tensors of shape {array.shape} are not supported")


def _create_segment() -> tuple[str, int]:
    for number in itertools.islice(_numbers, _MAX_NAME_TRIES):
        name = f"/lmcache_kv_{os.getpid()}_{number}"
        try:
            return name, os.open(SHM_DIRECTORY + name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue  # left by a process that had this pid before
    raise FileExistsError(f"{_MAX_NAME_TRIES} names like /lmcache_kv_{os.getpid()}_0 are taken")
