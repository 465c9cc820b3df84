"""How much memory does the index take for each object, whatever the object's size?"""

import gc
import hashlib
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.report import Row
from engine.config import EVICTION_POLICIES
from engine.l1.cache import L1Cache
from engine.l1.eviction import make_policy
from engine.l1.pool import SlotPool
from engine.object_key import ObjectKey, pack_kv_rank

OBJECTS = 100_000
OBJECT_BYTES = 4096
LIMIT_BYTES = 1024
CHUNKS_PER_STORE = 8


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, shared pages included."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def fill(policy: str) -> L1Cache:
    """An index of OBJECTS readable objects, stored CHUNKS_PER_STORE at a time as a client stores them."""
    capacity = OBJECTS * OBJECT_BYTES
    cache = L1Cache(
        SlotPool(capacity), make_policy(policy, lambda _salt: capacity, capacity), write_ttl_s=600, read_ttl_s=300
    )
    rank = pack_kv_rank(1, 0)
    for start in range(0, OBJECTS, CHUNKS_PER_STORE):
        digests = [hashlib.sha256(str(start + n).encode()).digest() for n in range(CHUNKS_PER_STORE)]
        keys = [ObjectKey(digest, "bench/model", rank, 0, "") for digest in digests]
        reservation = cache.reserve(keys, OBJECT_BYTES, b"f" * 16, 1)
        assert cache.commit(reservation)
    return cache


def bytes_per_object(policy: str) -> float:
    before = resident_bytes()
    cache = fill(policy)
    each = (resident_bytes() - before) / OBJECTS
    assert cache.report()["total_object_count"] == OBJECTS
    return each


def measure() -> list[Row]:
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh_processes:
        sizes = dict(zip(EVICTION_POLICIES, fresh_processes.map(bytes_per_object, EVICTION_POLICIES), strict=True))
    return [
        Row(f"index of {OBJECTS} objects, {policy}", each, LIMIT_BYTES, "B", "1 KiB an object", 1.0)
        for policy, each in sizes.items()
    ]
