"""A client process that stores and retrieves random prefixes and checks every byte it gets back.

    python -m tests.campaign.prefix_client '{"port": ..., "seed": ..., "seconds": ..., "prompts": ...}'

It copies by itself, through the server's pool. Prompts share prefixes: a prompt is a path through a binary tree, one
chunk per level, so low chunks are shared by many. The content of a chunk follows from the tokens up to it, so every
client knows what any other must have stored. What it promises to find out is in `Tally`, printed as JSON at the end.
"""

import hashlib
import json
import mmap
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.dataplane.raw_client import RawClient

MODEL = "campaign/model"
CHUNK_TOKENS = 256
LEVELS = 8
LAYERS = 2
HIDDEN = 128
OBJECT_BYTES = 2 * LAYERS * CHUNK_TOKENS * HIDDEN * 2
#: A lease is a promise for the read TTL. Only a retrieve begun well inside it may be held against the server.
PROMISE_S = 2.0


@dataclass
class Tally:
    """What a client saw. The last two must stay 0."""

    requests: int = 0
    stored_chunks: int = 0
    retrieved_chunks: int = 0
    refused_stores: int = 0
    registrations: int = 0
    wrong_chunks: int = 0
    broken_promises: int = 0


def tokens_of(prompt: int) -> list[int]:
    """LEVELS chunks; the chunk of level n depends on the upper bits of `prompt` that a path has taken by then."""
    return [token for level in range(LEVELS) for token in _chunk_tokens(level, prompt >> (LEVELS - 1 - level))]


def _chunk_tokens(level: int, branch: int) -> list[int]:
    return [level, branch, *range(2, CHUNK_TOKENS)]


def content_of(prompt: int, level: int) -> np.ndarray:
    """The OBJECT_BYTES bytes of a chunk; no two places of it and no two chunks look alike."""
    branch = prompt >> (LEVELS - 1 - level)
    digest = hashlib.sha256(f"{level}:{branch}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big"))).integers(
        0, 256, OBJECT_BYTES, dtype=np.uint8
    )


class PrefixClient:
    """One registered client with the server's pool mapped."""

    def __init__(self, port: int, seed: int, prompts: int) -> None:
        self.random = random.Random(seed)
        self.instance_id = os.getpid()
        self.prompts = prompts
        self.tally = Tally()
        self.wire = RawClient(port)
        self.pool = self.register()

    def register(self) -> mmap.mmap:
        self.tally.registrations += 1
        answer = self.wire.call(
            "register_kv_cache_engine_driven_context",
            {
                "instance_id": self.instance_id,
                "model_name": MODEL,
                "world_size": 1,
                "block_size": 16,
                "num_layers": LAYERS,
                "hidden_dim_size": HIDDEN,
                "dtype_str": "float16",
                "use_mla": False,
                "num_physical_slots": CHUNK_TOKENS,
            },
        )
        with Path("/dev/shm", answer["shm_name"]).open("r+b") as segment:
            return mmap.mmap(segment.fileno(), 0)

    def key(self, prompt: int, request: str, start: int, end: int, *, scheduler: bool = False) -> dict[str, Any]:
        """The wire key of chunks [start, end) of a prompt."""
        return {
            "model_name": MODEL,
            "world_size": 1,
            "worker_id": None if scheduler else 0,
            "token_ids": tokens_of(prompt),
            "start": start * CHUNK_TOKENS,
            "end": end * CHUNK_TOKENS,
            "request_id": request,
            "cache_salt": "",
            "request_configs": None,
            "num_kv_readers": 1,
        }

    def one_request(self) -> None:
        """Looks a random prompt up, reads and checks what is there, stores the rest: as an inference engine does."""
        prompt = self.random.randrange(self.prompts)
        self.tally.requests += 1
        request = f"{self.instance_id}-{self.tally.requests}"
        looked_up_at = time.monotonic()
        self.wire.call("lookup", self.key(prompt, request, 0, LEVELS, scheduler=True), 1)
        hit = self.wire.call("query_prefetch_status", request)
        if self.random.random() < 0.9:  # else an aborted request, whose leases have to expire
            skipped = self.random.randint(0, hit)
            if skipped:
                self.wire.call("free_lookup_locks", self.key(prompt, request, 0, skipped, scheduler=True), 1)
            if hit > skipped:
                self.read(prompt, request, skipped, hit, looked_up_at)
            if hit < LEVELS:
                self.write(prompt, request, hit)
        self.wire.call("end_session", request)
        if self.random.random() < 0.05 and not self.is_known():
            self.pool.close()
            self.pool = self.register()

    def is_known(self) -> bool:
        """False when the server refuses the ping, which means: register again."""
        name, *_ = self.wire.reply(self.wire.submit("ping", self.instance_id))
        return name != b"\xa5error"

    def read(self, prompt: int, request: str, start: int, end: int, looked_up_at: float) -> None:
        key = self.key(prompt, request, start, end)
        answer = self.wire.call("prepare_retrieve", key, self.instance_id)
        if answer["success"]:
            for level, slot in enumerate(answer["context"]["slots"], start):
                self.tally.retrieved_chunks += 1
                self.tally.wrong_chunks += not np.array_equal(self.slot(slot), content_of(prompt, level))
        elif time.monotonic() - looked_up_at < PROMISE_S:
            self.tally.broken_promises += 1
        self.wire.call("commit_retrieve", key, self.instance_id)

    def write(self, prompt: int, request: str, start: int) -> None:
        key = self.key(prompt, request, start, LEVELS)
        context = self.wire.call("prepare_store", key, self.instance_id)["context"]
        if not context["slots"]:
            return
        for index, slot in zip(context["chunk_indices"], context["slots"], strict=True):
            self.slot(slot)[:] = content_of(prompt, start + index)
        if self.wire.call("commit_store", key, self.instance_id, b""):
            self.tally.stored_chunks += len(context["slots"])
        else:
            self.tally.refused_stores += 1

    def slot(self, slot: dict[str, Any]) -> np.ndarray:
        assert slot["length"] == OBJECT_BYTES, f"a slot of {slot['length']} bytes, {OBJECT_BYTES} wanted"
        return np.frombuffer(self.pool, dtype=np.uint8, count=OBJECT_BYTES, offset=slot["offset"])


def main(arguments: dict[str, Any]) -> None:
    client = PrefixClient(arguments["port"], arguments["seed"], arguments["prompts"])
    deadline = time.monotonic() + arguments["seconds"]
    with client.wire:
        while time.monotonic() < deadline:
            client.one_request()
        client.wire.call("unregister_kv_cache_engine_driven_context", client.instance_id)
    sys.stdout.write(json.dumps(asdict(client.tally)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
