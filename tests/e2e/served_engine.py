"""A real engine behind a real data-plane server, in this process, and client memory for it to copy from and to."""

import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from engine.config import EngineConfig
from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.server import DataPlaneServer
from engine.engine import Engine

CHUNK = 16
BLOCK = 4
LAYERS, HIDDEN = 2, 8


class ServedEngine:
    """Started when entered; when left, its invariants are checked and nobody may hold anything any more."""

    def __init__(self, *, port: int = 0, limits: DataPlaneLimits | None = None, **config: Any) -> None:
        defaults = {"instance_id": f"t-{secrets.token_hex(4)}", "l1_size_bytes": 4 << 20, "chunk_size": CHUNK}
        self.engine = Engine(EngineConfig(**{**defaults, **config}))
        self.server = DataPlaneServer(self.engine, "127.0.0.1", port, limits)

    @property
    def port(self) -> int:
        return self.server.port

    def held(self) -> dict[str, float]:
        """What clients still hold: leases, pins, reservations, doomed objects; empty when nothing."""
        report = self.engine.l1.report()
        names = ("leases", "pins", "reservations", "doomed_objects")
        return {name: report[name] for name in names if report[name]}

    def __enter__(self) -> Self:
        self.engine.start()
        try:
            self.server.start()
        except BaseException:
            self.engine.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()
        try:
            self.engine.check()
        finally:
            self.engine.stop()


class Pool:
    """The server's pool as an engine-driven client maps it."""

    def __init__(self, name: str) -> None:
        descriptor = os.open(Path("/dev/shm") / name, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    def write(self, slot: dict[str, Any], content: np.ndarray) -> None:
        assert tuple(slot["shape"]) == content.shape
        data = content.tobytes()
        assert len(data) == slot["length"]
        self._map[slot["offset"] : slot["offset"] + slot["length"]] = data

    def read(self, slot: dict[str, Any]) -> np.ndarray:
        data = self._map[slot["offset"] : slot["offset"] + slot["length"]]
        return np.frombuffer(data, dtype=slot["dtype"]).reshape(slot["shape"])

    def close(self) -> None:
        self._map.close()


class ClientTensors:
    """KV tensors of a server-driven client in one segment of its own, one numpy array per layer."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: str = "float32") -> None:
        self.name = f"lmcache_kv_{os.getpid()}_{secrets.token_hex(4)}"
        self.path = Path("/dev/shm") / self.name
        self.dtype = dtype
        sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape in shapes]
        self.nbytes = sum(sizes)
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.ftruncate(descriptor, self.nbytes)
            self._map = mmap.mmap(descriptor, self.nbytes)
        finally:
            os.close(descriptor)
        self.layers, self._offsets, start = [], [], 0
        for shape, size in zip(shapes, sizes, strict=True):
            flat = np.frombuffer(self._map, dtype=dtype, count=size // np.dtype(dtype).itemsize, offset=start)
            self.layers.append(flat.reshape(shape))
            self._offsets.append(start // np.dtype(dtype).itemsize)
            start += size

    def fill(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        for layer in self.layers:
            layer[...] = random.random(layer.shape, dtype=np.float32)

    def erase(self) -> None:
        for layer in self.layers:
            layer[...] = -1

    def descriptors(self, **changes: Any) -> list[msgspec.msgpack.Ext]:
        """As the client sends them."""
        return [
            msgspec.msgpack.Ext(
                1,
                msgspec.msgpack.encode(
                    {
                        "type": "cpu_shm",
                        "version": 1,
                        "metadata": {
                            "dtype": self.dtype,
                            "shape": list(layer.shape),
                            "stride": [step // layer.itemsize for step in layer.strides],
                            "storage_offset": offset,
                            "device_uuid": "cpu",
                        },
                        "shm_name": "/" + self.name,
                        "nbytes": self.nbytes,
                        **changes,
                    }
                ),
            )
            for layer, offset in zip(self.layers, self._offsets, strict=True)
        ]

    def close(self) -> None:
        """Removes the segment; the mapping goes with the last array that a test still has of it."""
        self.path.unlink(missing_ok=True)
        self.layers.clear()
        del self._map

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def registration(instance_id: int, **changes: Any) -> dict[str, Any]:
    """An engine-driven registration of float32, two planes, CHUNK slots."""
    return {
        "instance_id": instance_id,
        "model_name": "meta/llama",
        "world_size": 1,
        "block_size": BLOCK,
        "num_layers": LAYERS,
        "hidden_dim_size": HIDDEN,
        "dtype_str": "float32",
        "use_mla": False,
        "num_physical_slots": CHUNK,
        **changes,
    }


def contents(seed: int, chunks: int) -> list[np.ndarray]:
    """Random chunks of the form that `registration` announces."""
    random = np.random.default_rng(seed)
    return [random.random((2, LAYERS, CHUNK, HIDDEN), dtype=np.float32) for _ in range(chunks)]
