"""Many threads on one engine: every byte read is right, invariants hold in between, and nothing stays held."""

import random
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.cache_request import CacheRequest, make_request
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import UnknownInstance
from engine.kv_layout import EngineDrivenRegistration
from tests.waiting import wait_for

CHUNK, HIDDEN = 4, 1024
PROMPTS = [array("I", [prompt + 1] * CHUNK + list(range(11 * CHUNK))) for prompt in range(6)]


def request(rng: random.Random, request_id: str, rank: int, *, prompt: int, chunks: int) -> CacheRequest:
    tokens = PROMPTS[prompt]
    salt = rng.choice(("", "alice"))
    return make_request("model", 2, rank, tokens, 0, chunks * CHUNK, request_id, salt)


def fill_byte(wanted: CacheRequest, chunk: int) -> int:
    """What every byte of a chunk must be; another prompt, rank, salt or place has another value."""
    prompt = wanted.tokens[0] - 1
    return 1 + (((prompt * 12 + chunk) * 2 + (wanted.worker_id or 0)) * 2 + bool(wanted.cache_salt)) % 255


def one_client(engine: Engine, rank: int, instance_id: int, seed: int, steps: int) -> int:
    """Runs a client's random history; returns how many chunks it read back."""
    rng, read = random.Random(seed), 0
    layout = EngineDrivenRegistration(instance_id, "model", 2, CHUNK, 1, HIDDEN, "float32", False, None)
    engine.register_engine_driven(layout)
    for step in range(steps):
        wanted = request(rng, f"{seed}-{step % 7}", rank, prompt=rng.randrange(6), chunks=rng.randint(1, 12))
        what = rng.random()
        try:
            if what < 0.4:
                store(engine, wanted, instance_id, abandon=rng.random() < 0.1)
            elif what < 0.85:
                read += retrieve(engine, wanted, instance_id)
            elif what < 0.9:
                engine.end_session(wanted.request_id)
            elif what < 0.93:
                engine.clear(force=rng.random() < 0.5)
            elif what < 0.96:
                engine.unregister_engine_driven(instance_id)
                engine.register_engine_driven(layout)
            else:
                engine.status()
        except UnknownInstance:
            engine.register_engine_driven(layout)
    engine.unregister_engine_driven(instance_id)
    return read


def store(engine: Engine, wanted: CacheRequest, instance_id: int, *, abandon: bool) -> None:
    prepared = engine.prepare_store(wanted, instance_id)
    for slot, chunk in zip(prepared.slots, prepared.chunk_indices, strict=True):
        view = engine.segment.view(slot.offset, slot.length)
        view[:] = bytes([fill_byte(wanted, chunk)]) * slot.length
        view.release()
    if not abandon:
        engine.commit_store(wanted, instance_id)


def retrieve(engine: Engine, wanted: CacheRequest, instance_id: int) -> int:
    engine.lookup(wanted)
    hit = engine.take_lookup_result(wanted.request_id) or 0
    if not hit:
        return 0
    part = make_request(
        "model", 2, wanted.worker_id, wanted.tokens, 0, hit * CHUNK, wanted.request_id, wanted.cache_salt
    )
    found = engine.prepare_retrieve(part, instance_id)
    for chunk, slot in enumerate(found.slots):
        view = engine.segment.view(slot.offset, slot.length)
        assert bytes(view) == bytes([fill_byte(part, chunk)]) * slot.length, "wrong bytes were served"
        view.release()
    assert engine.commit_retrieve(part, instance_id)
    return len(found.slots)


def check_until(engine: Engine, over: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not over():
        engine.check()
        pause.wait(0.02)


@pytest.mark.parametrize("policy", ["LRU", "IsolatedLRU", "ARC"])
def test_threads_never_read_wrong_bytes_and_leave_nothing_held(policy: str) -> None:
    object_bytes = 2 * CHUNK * HIDDEN * 4
    config = EngineConfig("threads", l1_size_bytes=40 * object_bytes, chunk_size=CHUNK, eviction_policy=policy)
    engine = Engine(config)
    engine.start()
    try:
        engine.load_quotas({"": 12 * object_bytes, "alice": 12 * object_bytes})
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(one_client, engine, number % 2, 100 + number, number, 500) for number in range(4)]
            check_until(engine, lambda: all(client.done() for client in clients))
            assert sum(client.result() for client in clients) > 100

        engine.check()
        names = ("leases", "pins", "reservations", "doomed_objects")
        wait_for(lambda: not any(engine.l1.report()[name] for name in names), 5, "nothing is held")
        assert engine.status()["is_healthy"]
    finally:
        engine.stop()
