"""Stores KV through a running server's data plane, loads it again, compares every byte, and says how fast that was.

`python -m bench.quick ADDRESS MODEL MIB ROUNDS SALT TIMEOUT_S` prints one JSON object. Each round has tokens of its
own, so that nothing is found that was not just stored. Ends with 1 and a line on stderr when the server refused or
lost something, with 3 when it did not answer.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine.dataplane.client import LarderClient, LarderClientError, ServerAway, SharedKV

BLOCK_TOKENS = 16
LAYERS, HEADS, WIDTH = 8, 8, 128
#: fp16, keys and values, all layers.
BYTES_PER_TOKEN = 2 * 2 * LAYERS * HEADS * WIDTH
UNREACHABLE = 3


class Lost(Exception):
    """What was stored did not come back."""


@dataclass
class Rounds:
    """Seconds that each step of each round took."""

    ping: list[float] = field(default_factory=list)
    store: list[float] = field(default_factory=list)
    lookup: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)


def measure(client: LarderClient, mib: int, rounds: int, cache_salt: str) -> dict[str, object]:
    """Medians and ranges over the rounds. Raises LarderClientError, Lost, OSError."""
    chunk = client.chunk_size
    tokens = max(chunk, (mib << 20) // BYTES_PER_TOKEN // chunk * chunk)
    nbytes = tokens * BYTES_PER_TOKEN
    took = Rounds()
    with SharedKV([(2, tokens // BLOCK_TOKENS, BLOCK_TOKENS, HEADS, WIDTH)] * LAYERS) as kv:
        client.register_shared(kv)
        try:
            for number in range(rounds):
                _run_round(client, kv, number, tokens, cache_salt, took)
        finally:
            client.unregister()
    return {
        "address": client.url,
        "rounds": rounds,
        "mib": nbytes / (1 << 20),
        "ping_ms": _spread([1000 * value for value in took.ping]),
        "store_gb_per_s": _spread([nbytes / value / 1e9 for value in took.store]),
        "lookup_ms": _spread([1000 * value for value in took.lookup]),
        "load_gb_per_s": _spread([nbytes / value / 1e9 for value in took.load]),
    }


def _run_round(client: LarderClient, kv: SharedKV, number: int, tokens: int, cache_salt: str, took: Rounds) -> None:
    prompt = [number, *range(1, tokens)]
    blocks = list(range(tokens // BLOCK_TOKENS))
    request_id = f"{client.model_name}-{number}"
    for layer in kv.layers:
        layer[:] = number + 1
    with _timed(took.ping):
        client.ping()
    with _timed(took.store):
        client.store(prompt, blocks, request_id, cache_salt=cache_salt)
    for layer in kv.layers:
        layer[:] = 0
    with _timed(took.lookup):
        found = client.lookup(prompt, request_id, cache_salt=cache_salt)
    if found != tokens:
        raise Lost(f"round {number + 1}: of {tokens} tokens just stored {found} are found: no room in L1, or no quota")
    with _timed(took.load):
        client.retrieve(prompt, blocks, request_id, cache_salt=cache_salt)
    client.end_session(request_id)
    if not all((layer == number + 1).all() for layer in kv.layers):
        raise Lost(f"round {number + 1}: the bytes that came back are not those that were stored")


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into.append(time.perf_counter() - began)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main(arguments: Sequence[str]) -> int:
    address, model_name, mib, rounds, cache_salt, timeout_s = arguments
    try:
        with LarderClient(address, model_name, timeout_s=float(timeout_s)) as client:
            print(json.dumps(measure(client, int(mib), int(rounds), cache_salt)))
        return 0
    except ServerAway as error:
        print(error, file=sys.stderr)
        return UNREACHABLE
    except (LarderClientError, Lost, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
