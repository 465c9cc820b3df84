"""A bit flips on disk: the scrub finds it before a client does, and the hit is shorter instead of wrong."""

import json
from pathlib import Path
from typing import Any

from engine.dataplane.client import LarderClient, SharedKV
from tests.stack import Larder
from tests.waiting import wait_for

CHUNK_TOKENS, BLOCK_TOKENS, CHUNKS = 256, 16, 4
TOKENS = list(range(CHUNKS * CHUNK_TOKENS))
BLOCKS = list(range(CHUNKS * CHUNK_TOKENS // BLOCK_TOKENS))


def adapter_of(larder: Larder) -> dict[str, Any]:
    (described,) = larder.http("GET", "/status").json()["storage_manager"]["l2_adapters"]
    return described


def has_all(adapter: dict[str, Any]) -> bool:
    return adapter["catalog"]["complete"] and adapter["stored_object_count"] == CHUNKS


def has_lost(adapter: dict[str, Any], count: int) -> bool:
    deleted = [entry["deleted"] for entry in adapter["quarantined"]]
    return deleted == [True] * count and adapter["stored_object_count"] == CHUNKS - count


def flip_a_bit_of_each_second(base: Path) -> None:
    paths = sorted(base.glob("??/*@*"))
    assert len(paths) == CHUNKS
    for path in paths[::2]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def test_a_scrub_finds_flipped_bits_of_a_running_server(tmp_path: Path) -> None:
    adapter = json.dumps({"type": "fs", "base_path": str(tmp_path / "kv")})
    with (
        Larder(tmp_path / "larder", l2_adapter=adapter, log_level="WARNING") as larder,
        SharedKV([(2, len(BLOCKS), BLOCK_TOKENS, 2, 16)] * 2, "float16") as kv,
        LarderClient(f"tcp://127.0.0.1:{larder.port}", "model") as client,
    ):
        client.register_shared(kv)
        for layer in kv.layers:
            layer.fill(1)
        client.store(TOKENS, BLOCKS, "store")
        wait_for(lambda: has_all(adapter_of(larder)), 20, "all is written back")
        client.clear(force=True)
        flip_a_bit_of_each_second(tmp_path / "kv")

        assert larder.http("POST", "/l2/scrub").status == 202
        state = wait_for(
            lambda: (told := larder.http("GET", "/l2/scrub").json())["finished_at"] and told, 20, "the scrub is over"
        )

        assert (state["state"], state["good_objects"], state["corrupt_objects"]) == ("completed", 2, 2)
        wait_for(lambda: has_lost(adapter_of(larder), 2), 20, "the status tells")
        assert len(list((tmp_path / "kv").glob("??/*@*"))) == 2
        assert client.lookup(TOKENS, "load") < len(TOKENS)
