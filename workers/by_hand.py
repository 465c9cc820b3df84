"""Storing and looking up made-up tokens by hand: whether the way through the cache works, without an inference.

The tokens are the numbers from `start` to before `end`, those of rank 0 of the worker's model.

store     copies from the KV memory of the worker that registered first, blocks from 1 on, whatever is in them
retrieve  looks the tokens up, which loads from L2 what L1 has not got, and writes into nobody's memory: which blocks
          are free only the worker knows
"""

import secrets
import threading
import time
from array import array

from engine.cache_request import MAX_TOKENS, CacheRequest, make_request
from engine.engine import Engine
from engine.errors import BadRequest, NoKVMemory
from engine.registrations import Registration

MAX_TOKEN_ID = 2**32 - 1
#: How long a retrieve waits for L2; it has found nothing then.
WAIT_S = 20.0
ASK_AGAIN_S = 0.01


def store(engine: Engine, start: int, end: int) -> int:
    """Stores the whole chunks of the tokens; how many tokens there were. What is stored already is left as it is.

    Blocks for as long as it takes. Raises NoKVMemory without a worker, BadRequest for a range that is none or needs
    more blocks than the worker has.
    """
    worker, request = _request(engine, start, end)
    assert worker.tensors is not None
    chunks = len(request.chunk_range(engine.chunk_size))
    for blocks, there_are in zip(worker.tensors.blocks_per_chunk, worker.tensors.num_blocks, strict=True):
        if chunks * blocks >= there_are:
            raise BadRequest(f"{chunks} chunks are {chunks * blocks} blocks, the worker has {there_are - 1} to read")
    block_ids = [list(range(1, 1 + chunks * blocks)) for blocks in worker.tensors.blocks_per_chunk]
    try:
        engine.store(request, worker.instance_id, block_ids)
    finally:
        engine.end_session(request.request_id)
    return end - start


def retrieve(engine: Engine, start: int, end: int) -> int:
    """How many of the first tokens are stored, in L1 by now. Blocks and raises as `store` does."""
    _, request = _request(engine, start, end)
    found, deadline, pause = None, time.monotonic() + WAIT_S, threading.Event()
    engine.lookup(request)
    try:
        while (found := engine.take_lookup_result(request.request_id)) is None:
            if time.monotonic() > deadline:
                break
            pause.wait(ASK_AGAIN_S)
    finally:
        engine.free_lookup_locks(request)
        engine.end_session(request.request_id)
    return (found or 0) * engine.chunk_size


def _request(engine: Engine, start: int, end: int) -> tuple[Registration, CacheRequest]:
    if not 0 <= start < end <= MAX_TOKEN_ID + 1 or end - start > MAX_TOKENS:
        raise BadRequest(f"tokens {start},{end}: from 0 to {MAX_TOKEN_ID + 1}, start before end, {MAX_TOKENS} at most")
    workers = [one for one in engine.registrations.all() if one.tensors is not None]
    if not workers:
        raise NoKVMemory("no KV caches are registered")
    worker = min(workers, key=lambda one: one.number)
    model_name, world_size = worker.scope
    tokens = array("I", range(start, end))
    request_id = f"by-hand-{secrets.token_hex(8)}"
    return worker, make_request(model_name, world_size, 0, tokens, 0, len(tokens), request_id)
