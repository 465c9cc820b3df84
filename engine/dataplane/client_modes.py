"""The two ways in which our client moves KV: the server copies, or the client does.

Both answer a transfer with True (done), False (not done) or None (there was nothing to do, provided that the server
knows the client: a server that does not know it says the same).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from engine.dataplane.client_memory import BlockArrays, PoolView, SharedKV, as_array
from engine.dataplane.wire import DESCRIPTOR_EXT
from engine.device.tensor_codec import decode_tensors, encode_tensors
from engine.kv_layout import KVGroup

_encode = msgspec.msgpack.Encoder().encode

#: What a CPU client sends as its event handle; there is nothing to wait for.
_NO_EVENT = b"stub_ipc_handle"


class Caller(Protocol):
    """What the modes need of the client."""

    instance_id: int
    model_name: str
    world_size: int

    @property
    def chunk_size(self) -> int:
        """Tokens per chunk."""

    def call(self, operation: str, *parameters: object) -> Any:
        """The value of an operation's answer."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One store or retrieve: `block_ids` per KV group, `chunks` whole chunks."""

    key: Mapping[str, object]
    block_ids: list[list[int]]
    chunks: int


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a registered tensor looks like; `dtype` is torch's name, `kv_layout` NHD or HND."""

    shape: tuple[int, ...]
    dtype: str
    kv_layout: str

    @property
    def planes(self) -> int:
        """2 where keys and values are apart, 1 where they are one."""
        return 2 if len(self.shape) == 5 else 1

    @property
    def heads(self) -> tuple[int, int]:
        """Number of heads, and the size of one; of a latent cache 1 and all of it."""
        if len(self.shape) == 3:
            return 1, self.shape[2]
        return self.shape[-2 if self.kv_layout == "NHD" else -3], self.shape[-1]


class ServerCopies:
    """The tensors lie in a shared segment; the server reads and writes them there."""

    unregistration = "unregister_kv_cache"

    def __init__(
        self,
        caller: Caller,
        kv: SharedKV,
        tensors: Sequence[object],
        groups: Sequence[KVGroup],
        hints: Mapping[str, object],
    ) -> None:
        """Raises ValueError for a tensor outside the segment."""
        self._caller, self._groups, self._hints = caller, list(groups), dict(hints)
        self._descriptors = [_descriptor(kv, tensor, dtype) for tensor, dtype in zip(tensors, kv.dtypes, strict=True)]
        layout = str(hints.get("kv_layout", "NHD"))
        shapes = [kv.place_of(tensor)[0] for tensor in tensors]
        self.layers = [LayerFacts(shape, dtype, layout) for shape, dtype in zip(shapes, kv.dtypes, strict=True)]

    def register(self) -> None:
        caller = self._caller
        model = (caller.model_name, caller.world_size, "vllm")
        caller.call("register_kv_cache", caller.instance_id, self._descriptors, *model, self._hints, self._groups)

    def store(self, transfer: Transfer) -> bool | None:
        caller = self._caller
        _, stored = caller.call("store", transfer.key, caller.instance_id, transfer.block_ids, _NO_EVENT)
        return bool(stored)

    def retrieve(self, transfer: Transfer, skip_first_tokens: int) -> bool | None:
        caller, ids = self._caller, transfer.block_ids
        answer = caller.call("retrieve", transfer.key, caller.instance_id, ids, _NO_EVENT, skip_first_tokens)
        return bool(answer[1])

    def close(self) -> None:
        """The segment belongs to the caller."""


class ClientCopies:
    """The tensors lie anywhere; this process copies between them and the pool, or messages."""

    unregistration = "unregister_kv_cache_engine_driven_context"

    def __init__(self, caller: Caller, arrays: BlockArrays) -> None:
        self._caller, self._arrays = caller, arrays
        self.layers = [LayerFacts(shape, arrays.dtype, arrays.kv_layout) for shape in arrays.shapes]
        self._pool: PoolView | None = None

    def register(self) -> None:
        self.close()
        caller, arrays = self._caller, self._arrays
        answer = caller.call(
            "register_kv_cache_engine_driven_context",
            {
                "instance_id": caller.instance_id,
                "model_name": caller.model_name,
                "world_size": caller.world_size,
                "block_size": arrays.block_size,
                "num_layers": arrays.num_layers,
                "hidden_dim_size": arrays.hidden,
                "dtype_str": arrays.dtype,
                "use_mla": arrays.planes == 1,
                "num_physical_slots": caller.chunk_size,
            },
        )
        if answer["shm_name"] and answer["pool_size"] > 0:
            try:
                self._pool = PoolView(answer["shm_name"])
            except OSError:
                self._pool = None  # another host or user: data goes inside messages

    def store(self, transfer: Transfer) -> bool | None:
        caller = self._caller
        chunks = self._chunks(transfer)
        if self._pool is None:
            return bool(caller.call("commit_store", transfer.key, caller.instance_id, self._encoded(chunks)))
        context = caller.call("prepare_store", transfer.key, caller.instance_id)["context"]
        if not context.get("slots"):
            return None
        for slot, index in zip(context["slots"], context["chunk_indices"], strict=True):
            self._arrays.gather(chunks[index], self._pool.slot(slot["offset"], slot["length"]))
        return bool(caller.call("commit_store", transfer.key, caller.instance_id, b""))

    def retrieve(self, transfer: Transfer, skip_first_tokens: int) -> bool | None:
        caller = self._caller
        chunks = self._chunks(transfer)
        answer = caller.call("prepare_retrieve", transfer.key, caller.instance_id)
        if not answer["success"]:
            return False
        try:
            sources = self._sources(answer, len(chunks))
            for index, (ids, source) in enumerate(zip(chunks, sources, strict=True)):
                skip = max(0, skip_first_tokens - index * caller.chunk_size) // self._arrays.block_size
                self._arrays.scatter(ids, source, min(skip, len(ids)))
        finally:
            caller.call("commit_retrieve", transfer.key, caller.instance_id)
        return True

    def close(self) -> None:
        """Unmap the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _sources(self, answer: Mapping[str, Any], count: int) -> Sequence[memoryview]:
        if self._pool is None or answer["data"]:
            return decode_tensors(answer["data"], self._chunk_shape(), self._arrays.dtype, count)
        return [self._pool.slot(slot["offset"], slot["length"]) for slot in answer["context"]["slots"]]

    def _encoded(self, chunks: Sequence[Sequence[int]]) -> bytes:
        buffers = [memoryview(bytearray(self._arrays.nbytes(len(ids)))) for ids in chunks]
        for ids, buffer in zip(chunks, buffers, strict=True):
            self._arrays.gather(ids, buffer)
        return encode_tensors(buffers, self._chunk_shape(), self._arrays.dtype)

    def _chunk_shape(self) -> tuple[int, ...]:
        arrays = self._arrays
        shape = (arrays.num_layers, self._caller.chunk_size, arrays.hidden)
        return shape if arrays.planes == 1 else (2, *shape)

    def _chunks(self, transfer: Transfer) -> list[list[int]]:
        """Block ids per chunk. Raises ValueError for too few of them, several groups, ids that do not exist."""
        if len(transfer.block_ids) != 1:
            raise ValueError(f"{len(transfer.block_ids)} lists of block ids: a client that copies has one KV group")
        ids = transfer.block_ids[0]
        per_chunk, rest = divmod(self._caller.chunk_size, self._arrays.block_size)
        if rest or len(ids) < per_chunk * transfer.chunks:
            raise ValueError(f"{len(ids)} block ids for {transfer.chunks} chunks of {per_chunk} blocks")
        if ids and not 0 <= min(ids) <= max(ids) < self._arrays.num_blocks:
            raise ValueError(f"block ids {min(ids)}..{max(ids)}: there are {self._arrays.num_blocks} blocks")
        return [ids[index * per_chunk : (index + 1) * per_chunk] for index in range(transfer.chunks)]


def _descriptor(kv: SharedKV, tensor: object, dtype: str) -> msgspec.msgpack.Ext:
    shape, stride, offset = kv.place_of(tensor)
    metadata = {"dtype": dtype, "shape": shape, "stride": stride, "storage_offset": offset, "device_uuid": "cpu"}
    nbytes = kv.nbytes if as_array(tensor).size else 0
    fields = {"type": "cpu_shm", "version": 1, "metadata": metadata, "shm_name": kv.name, "nbytes": nbytes}
    return msgspec.msgpack.Ext(DESCRIPTOR_EXT, _encode(fields))
