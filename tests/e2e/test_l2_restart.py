"""A conversation is stored, everything is killed and starts again: what was written back is there, unchanged."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import Larder
from tests.waiting import wait_for

PROMPTS = 50
CHUNK_TOKENS, BLOCK_TOKENS = 256, 16
LONGEST_CHUNKS = 3
LAYERS = 2
GIB = 1024**3


def tokens_of(prompt: int) -> list[int]:
    """Prompts of one to three chunks, no two with the same beginning."""
    return [prompt + 1, *range(1, (prompt % LONGEST_CHUNKS + 1) * CHUNK_TOKENS)]


def fill(kv: SharedKV, prompt: int) -> None:
    random = np.random.default_rng(prompt)
    for layer in kv.layers:
        layer.view(np.uint16)[:] = random.integers(0, 1 << 16, layer.shape, dtype=np.uint16)


def bytes_of(kv: SharedKV, chunks: int) -> list[bytes]:
    blocks = chunks * CHUNK_TOKENS // BLOCK_TOKENS
    return [layer[:, :blocks].tobytes() for layer in kv.layers]


@contextmanager
def client_of(larder: Larder) -> Iterator[tuple[LarderClient, SharedKV]]:
    blocks = LONGEST_CHUNKS * CHUNK_TOKENS // BLOCK_TOKENS
    with (
        SharedKV([(2, blocks, BLOCK_TOKENS, 2, 16)] * LAYERS, "float16") as kv,
        LarderClient(f"tcp://127.0.0.1:{larder.port}", "chat") as client,
    ):
        client.register_shared(kv)
        yield client, kv


def block_ids(chunks: int) -> list[int]:
    return list(range(chunks * CHUNK_TOKENS // BLOCK_TOKENS))


def clean(larder: Larder) -> bool:
    """Whether everything is written back."""
    report = larder.http("GET", "/status").json()["storage_manager"]
    (queue,) = report["store_controller"]["queues"].values()
    total = report["l1_manager"]["total_object_count"]
    return queue["dirty_bytes"] == 0 and report["l2_adapters"][0]["stored_object_count"] == total


def bytes_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def kill_everything(larder: Larder) -> None:
    """kill -9 to the launcher and all it started."""
    family = [psutil.Process(larder.pid), *psutil.Process(larder.pid).children(recursive=True)]
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    larder.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_fifty_prompts_survive_a_kill_of_everything(tmp_path: Path) -> None:
    disk = tmp_path / "kv"
    adapter = json.dumps({"type": "fs", "base_path": str(disk), "eviction": {"eviction_policy": "IsolatedLRU"}})
    larder = Larder(tmp_path / "larder", l2_adapter=adapter, log_level="WARNING")
    with larder:
        assert larder.http("PUT", "/quota/_default", {"limit_gb": 1}).status == 200
        with client_of(larder) as (client, kv):
            for prompt in range(PROMPTS):
                tokens = tokens_of(prompt)
                fill(kv, prompt)
                client.store(tokens, block_ids(len(tokens) // CHUNK_TOKENS), f"store-{prompt}")
        wait_for(lambda: clean(larder), 30, "everything is written back")
        kill_everything(larder)

        larder.start()

        with client_of(larder) as (client, kv):
            for prompt in range(PROMPTS):
                tokens, chunks = tokens_of(prompt), prompt % LONGEST_CHUNKS + 1
                fill(kv, prompt)
                wanted = bytes_of(kv, chunks)
                for layer in kv.layers:
                    layer.fill(0)
                assert client.lookup(tokens, f"load-{prompt}") == len(tokens)
                client.retrieve(tokens, block_ids(chunks), f"load-{prompt}")
                assert bytes_of(kv, chunks) == wanted, f"prompt {prompt} came back changed"
        usage = larder.http("GET", "/quota/_default").json()
        assert usage["l2_usage_gb"] * GIB == bytes_on_disk(disk)
        assert larder.http("GET", "/status").json()["is_healthy"]
