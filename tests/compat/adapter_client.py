"""An inference engine without a model, on the unmodified adapter classes of lmcache 0.5.6.

Runs in the environment that make_env.sh makes, never under our own interpreter. One scheduler adapter and one worker
adapter per rank store random KV, look it up, and retrieve it into erased blocks; the bytes are compared here. Options
come as one JSON argument (url, mode, mla, rounds). Each line on standard output is one JSON event; after a round that
is not the last the program waits for a line on standard input. A broken promise ends it with exit status 1.
"""

import json
import sys
import threading
import time

import torch
import zmq
from lmcache.integration.vllm.vllm_multi_process_adapter import (
    LMCacheMPSchedulerAdapter,
    LMCacheMPWorkerAdapter,
    LoadStoreOp,
    ParallelStrategy,
)
from lmcache.v1.multiprocess.custom_types import BlockAllocationRecord
from lmcache.v1.multiprocess.group_view import EngineGroupInfo

RANKS = 2
LAYERS = 3
BLOCK_TOKENS = 16
BLOCKS = 256
ERASED = -7.0
TIMEOUT_S = 60.0
PAUSE = threading.Event()


def until(poll, what):
    """The first value of `poll` that is not None."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        value = poll()
        if value is not None:
            return value
        PAUSE.wait(0.005)
    raise AssertionError(f"{what}: not within {TIMEOUT_S:g} s")


def tell(event, **facts):
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


class Rank:
    """One worker with its KV tensors."""

    def __init__(self, number, options, context):
        self.number = number
        self.mla = options["mla"]
        self.adapter = LMCacheMPWorkerAdapter(
            options["url"],
            context,
            "compat/model",
            BLOCK_TOKENS,
            strategy(number, mla=self.mla),
            mq_timeout=20.0,
            heartbeat_interval=0.5,
        )
        shape = (BLOCKS, BLOCK_TOKENS, 32) if self.mla else (2, BLOCKS, BLOCK_TOKENS, 2, 16)
        self.caches = {f"layer.{layer}": torch.zeros(shape, dtype=torch.float32) for layer in range(LAYERS)}
        groups = (
            [EngineGroupInfo(0, list(range(LAYERS)), BLOCK_TOKENS, -1)] if options["mode"] == "lmcache_driven" else []
        )
        self.adapter.register_kv_caches(self.caches, groups, {"kv_layout": "NHD"})

    def blocks(self, ids):
        """A copy of the given blocks of every layer."""
        axis = 0 if self.mla else 1
        return [cache.index_select(axis, torch.tensor(ids)).clone() for cache in self.caches.values()]

    def fill(self, seed):
        """Random content; the same for all ranks of an MLA model, which share their KV."""
        generator = torch.Generator().manual_seed(seed * 100 + (0 if self.mla else self.number))
        for cache in self.caches.values():
            cache.copy_(torch.rand(cache.shape, generator=generator))

    def erase(self):
        for cache in self.caches.values():
            cache.fill_(ERASED)


def strategy(rank, *, mla):
    return ParallelStrategy(
        mla_only=mla, vllm_world_size=RANKS, vllm_worker_id=rank, tp_size=RANKS, pp_size=1, n_servers=1
    )


class Client:
    """The scheduler and all ranks."""

    def __init__(self, options):
        self.context = zmq.Context()
        self.scheduler = LMCacheMPSchedulerAdapter(
            [options["url"]],
            self.context,
            "compat/model",
            BLOCK_TOKENS,
            strategy(0, mla=options["mla"]),
            mq_timeout=20.0,
            heartbeat_interval=0.5,
        )
        self.chunk = self.scheduler.lmcache_tokens_per_chunk
        self.ranks = [Rank(number, options, self.context) for number in range(RANKS)]
        self.requests = 0

    def request_id(self):
        self.requests += 1
        return f"request-{self.requests}"

    def lookup(self, request_id, tokens, salt=""):
        """Tokens found."""
        self.scheduler.maybe_submit_lookup_request(request_id, tokens, cache_salt=salt)
        return until(lambda: self.scheduler.check_lookup_result(request_id), "a lookup is answered")

    def finish(self, request_id):
        self.scheduler.end_session(request_id)
        self.scheduler.cleanup_lookup_result(request_id)

    def store(self, request_id, tokens, ids, salt=""):
        """Stores all whole chunks of `tokens`, whose blocks are `ids`, from every rank."""
        end = len(tokens) // self.chunk * self.chunk
        for rank in self.ranks:
            operation = LoadStoreOp(tokens, [ids[: end // BLOCK_TOKENS]], 0, end)
            event = rank.adapter.create_recorded_event()
            rank.adapter.submit_store_request(request_id, operation, event, cache_salt=salt)
        for rank in self.ranks:
            until(
                lambda rank=rank: request_id in (rank.adapter.get_finished({request_id})[0] or ()) or None,
                "a store is finished",
            )

    def retrieve(self, request_id, tokens, ids, start, end, skip, salt=""):
        """Into the blocks `ids` of [start, end); returns whether every rank got all of it."""
        for rank in self.ranks:
            operation = LoadStoreOp(tokens, [ids], start, end, skip)
            event = rank.adapter.create_recorded_event()
            rank.adapter.submit_retrieve_request(request_id, operation, event, cache_salt=salt)
        fine = True
        for rank in self.ranks:
            until(
                lambda rank=rank: request_id in (rank.adapter.get_finished(set())[1] or ()) or None,
                "a retrieve is finished",
            )
            fine = not rank.adapter.get_block_ids_with_load_errors() and fine
        return fine

    def shutdown(self):
        for rank in self.ranks:
            rank.adapter.shutdown()
        self.scheduler.shutdown()


def same(found, wanted):
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def tokens_of(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 150_000, (count,), generator=generator).tolist()


def round_trip(client, seed, salt=""):
    """Store, look up, give back what is not wanted, retrieve into erased blocks elsewhere, compare."""
    chunk, per_chunk = client.chunk, client.chunk // BLOCK_TOKENS
    tokens = tokens_of(seed, 4 * chunk + 100)
    source = (
        torch.randperm(BLOCKS - 1, generator=torch.Generator().manual_seed(seed)).add(1).tolist()[: 4 * per_chunk + 7]
    )
    target = [1 + (block * 7 + 11) % (BLOCKS - 1) for block in source]
    for rank in client.ranks:
        rank.fill(seed)
    wanted = [rank.blocks(source) for rank in client.ranks]

    cold = client.request_id()
    check(client.lookup(cold, tokens, salt) == 0, "nothing is found before it is stored")
    client.scheduler.report_block_allocations([BlockAllocationRecord(cold, source, tokens)])
    client.store(cold, tokens, source, salt)
    client.finish(cold)

    warm = client.request_id()
    found = client.lookup(warm, tokens, salt)
    if found != 4 * chunk:
        client.finish(warm)
        return False
    own = chunk + chunk // 2
    client.scheduler.free_lookup_locks(tokens, 0, own, warm, cache_salt=salt)
    for rank in client.ranks:
        rank.erase()
    skip = own - chunk
    ids = target[per_chunk : 4 * per_chunk]
    check(client.retrieve(warm, tokens, ids, chunk, 4 * chunk, skip, salt), "the retrieve succeeds")
    client.finish(warm)
    first = skip // BLOCK_TOKENS
    for rank, original in zip(client.ranks, wanted, strict=True):
        axis = 0 if rank.mla else 1
        expected = [layer.narrow(axis, per_chunk + first, 3 * per_chunk - first) for layer in original]
        check(same(rank.blocks(ids[first:]), expected), f"rank {rank.number} got the bytes that were stored")
        untouched = [block for block in range(BLOCKS) if block not in ids[first:]]
        check(
            all((layer == ERASED).all() for layer in rank.blocks(untouched)),
            f"rank {rank.number}: blocks not asked for are untouched",
        )
    return True


def promises(client):
    """Everything that is checked once."""
    chunk = client.chunk
    check(round_trip(client, 1), "the first store is found")
    check(round_trip(client, 2, "tenant"), "a salted store is found")
    tokens = tokens_of(1, 4 * chunk + 100)
    for salt, tokens_asked, hit in (
        ("", tokens, 4 * chunk),
        ("tenant", tokens, 0),
        ("", tokens[: 2 * chunk] + tokens_of(3, 300), 2 * chunk),
        ("", tokens[:100], 0),
    ):
        request_id = client.request_id()
        check(client.lookup(request_id, tokens_asked, salt) == hit, f"{hit} tokens are found")
        client.scheduler.free_lookup_locks(tokens_asked, 0, len(tokens_asked), request_id, cache_salt=salt)
        client.finish(request_id)
    missing = client.request_id()
    ids = list(range(1, 1 + chunk // BLOCK_TOKENS))
    check(
        not client.retrieve(missing, tokens_of(4, chunk), ids, 0, chunk, 0),
        "a retrieve of what is not there is reported",
    )
    check(client.scheduler.reset_cache(), "the cache is cleared")
    gone = client.request_id()
    check(client.lookup(gone, tokens) == 0, "nothing is found after clearing")
    client.finish(gone)


def recovers(client, seed):
    """The adapters find out by themselves that the server is a new one, register again, and store again."""
    deadline = time.monotonic() + TIMEOUT_S
    attempt = seed * 1000
    while time.monotonic() < deadline:
        attempt += 1
        healthy = client.scheduler.is_healthy and all(rank.adapter.is_healthy for rank in client.ranks)
        if healthy and round_trip(client, attempt):
            return
        PAUSE.wait(0.1)
    raise AssertionError("the adapters did not recover")


def main():
    options = json.loads(sys.argv[1])
    client = Client(options)
    try:
        promises(client)
        for number in range(1, options["rounds"]):
            tell("ready", round=number)
            sys.stdin.readline()
            recovers(client, number)
    finally:
        client.shutdown()
    tell("done", instances=[rank.adapter.instance_id for rank in client.ranks])


if __name__ == "__main__":
    main()
