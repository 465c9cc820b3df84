"""An engine for unit tests, and what an engine-driven client with shared memory does to it."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from engine.cache_request import CacheRequest, make_request
from engine.config import EngineConfig
from engine.engine import Engine
from engine.kv_layout import EngineDrivenRegistration

CHUNK = 16
SHAPE = (2, 2, CHUNK, 32)
OBJECT_BYTES = 2 * 2 * CHUNK * 32 * 4
CONFIG = EngineConfig(instance_id="unit", l1_size_bytes=64 * OBJECT_BYTES, chunk_size=CHUNK)
REGISTRATION = EngineDrivenRegistration(1, "model", 1, 16, 2, 32, "float32", False, None)


@contextmanager
def started(config: EngineConfig) -> Iterator[Engine]:
    engine = Engine(config)
    engine.start()
    try:
        yield engine
        engine.check()
    finally:
        engine.stop()


def request(chunks: int, request_id: str = "r", *, rank: int | None = 0, ws: int = 1, **fields: object) -> CacheRequest:
    tokens = array("I", range(1, chunks * CHUNK + 1))
    fields = {"start": 0, "end": len(tokens)} | fields
    return make_request("model", ws, rank, tokens, request_id=request_id, **fields)  # type: ignore[arg-type]


def fill(engine: Engine, wanted: CacheRequest, instance_id: int = 1, value: int = 7) -> bool:
    """Stores as a client with shared memory does; every byte is `value`."""
    prepared = engine.prepare_store(wanted, instance_id)
    for slot in prepared.slots:
        engine.segment.view(slot.offset, slot.length)[:] = bytes([value]) * slot.length
    return engine.commit_store(wanted, instance_id)


def hit(engine: Engine, wanted: CacheRequest) -> int | None:
    engine.lookup(replace(wanted, worker_id=None))
    return engine.take_lookup_result(wanted.request_id)


def held(engine: Engine) -> dict[str, int]:
    report = engine.l1.report()
    return {name: report[name] for name in ("leases", "pins", "reservations", "doomed_objects") if report[name]}
