"""How fast does the catalog answer, and how long is it until it knows the 100,000 objects of a directory?

Objects are tiny files: what a scan costs hangs on their number, not on their size.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

from bench.report import Row, interleave, seconds
from bench.storage import file_system_of, key
from engine.l1.eviction import LRU
from engine.l2.catalog import Catalog
from engine.l2.fs_adapter import FsAdapter, FsConfig
from engine.object_key import ObjectKey

OBJECTS = 100_000
QUESTIONS = 20_000
CONTAINS_LIMIT_US = 2.0
SCAN_LIMIT_S = 5.0
ROUNDS = 5


def fill(adapter: FsAdapter) -> None:
    """OBJECTS files of a few bytes."""
    data = [memoryview(b"tiny")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: adapter.write(key(number), data), range(OBJECTS), chunksize=1000))


def walk(base: str) -> int:
    """The yardstick of the scan: every file's name and facts, and nothing made of them."""
    files = 0
    for directory in os.scandir(base):
        with os.scandir(directory.path) as entries:
            files += sum(entry.stat(follow_symlinks=False).st_size > 0 for entry in entries)
    return files


def scanned(adapter: FsAdapter) -> Catalog:
    catalog = Catalog(LRU())
    catalog.take_scan(adapter.scan())
    assert len(catalog) == OBJECTS
    return catalog


def microseconds(catalog: Catalog, keys: list[ObjectKey], *, stored: bool) -> float:
    """Of one `contains`, keys made anew as those of a request are."""

    def ask() -> None:
        for one in keys:
            assert catalog.contains(one) is stored

    return seconds(ask) / len(keys) * 1e6


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as base:
        adapter = FsAdapter(FsConfig(base))
        fill(adapter)
        times = interleave(
            {"scan": lambda: seconds(lambda: scanned(adapter)), "walk": lambda: seconds(lambda: walk(base))}, ROUNDS
        )
        catalog, disk = scanned(adapter), file_system_of(base)
    answers = interleave(
        {
            "yes": lambda: microseconds(catalog, _anew(0), stored=True),
            "no": lambda: microseconds(catalog, _anew(OBJECTS), stored=False),
        },
        ROUNDS,
    )
    of_all = f"{OBJECTS} objects"
    return [
        *(
            Row(f"catalog contains: {word}, {of_all}", us, CONTAINS_LIMIT_US, "us", "allowed", 1.0)
            for word, us in answers.items()
        ),
        Row(f"catalog from fs ({disk}), {of_all}", times["scan"], SCAN_LIMIT_S, "s", "allowed", 1.0),
        Row(f"catalog from fs ({disk}), {of_all}", times["scan"], times["walk"], "s", "scandir and stat alone", None),
    ]


def _anew(first: int) -> list[ObjectKey]:
    return [key(first + number)._replace(cache_salt="") for number in range(QUESTIONS)]
