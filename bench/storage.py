"""What the storage benchmarks share: keys, buffers, and threads that begin together."""

import functools
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256

import psutil

from engine.object_key import ObjectKey, pack_kv_rank

MIB = 1 << 20
#: As long as the engine worker lets a thread keep the interpreter.
SWITCH_INTERVAL_S = 0.0005


@functools.cache
def key(number: int) -> ObjectKey:
    """One of any number of keys of one model, remembered: making it is not what is measured."""
    return ObjectKey(sha256(str(number).encode()).digest(), "bench/model-7B", pack_kv_rank(1, 0))


def pages(nbytes: int) -> memoryview:
    """Page-aligned memory as a slot of the pool is, filled with random bytes."""
    view = memoryview(mmap.mmap(-1, nbytes))
    for at in range(0, nbytes, MIB):
        part = view[at : at + MIB]
        part[:] = os.urandom(len(part))
    return view


def file_system_of(path: str) -> str:
    """The type of the file system that `path` lies on, such as ext4."""
    mounts = [
        mount for mount in psutil.disk_partitions(all=True) if _is_below(os.path.realpath(path), mount.mountpoint)
    ]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype


def _is_below(path: str, mountpoint: str) -> bool:
    return os.path.commonpath([path, mountpoint]) == mountpoint


class Crew:
    """Threads that do the same at the same time. A context manager."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._barrier = threading.Barrier(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crew")

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def seconds(self, action: Callable[[int], object]) -> float:
        """From when the first begins `action(number of the thread)` until the last has ended it."""
        times = list(self._pool.map(lambda number: self._one(action, number), range(self.threads)))
        return max(end for _, end in times) - min(begin for begin, _ in times)

    def _one(self, action: Callable[[int], object], number: int) -> tuple[float, float]:
        self._barrier.wait()
        begin = time.perf_counter()
        action(number)
        return begin, time.perf_counter()


@contextmanager
def switching_as_in_the_engine() -> Iterator[None]:
    """Threads take turns as often as they do in the engine worker."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
