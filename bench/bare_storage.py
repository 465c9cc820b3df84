"""The yardsticks of the second tier: the same bytes in the same storage, without an adapter around it."""

import mmap
import os
from pathlib import Path
from typing import Any, Protocol

import obstore
import redis
import xxhash

from bench.storage import MIB, key
from engine.l2.base import L2Adapter
from engine.l2.catalog import Form
from engine.l2.record import HEADER_BYTES, Verdict, make_header, verify
from engine.l2.tier import Outcome, Tier

FINGERPRINT = b"layout of bench "


class Storage(Protocol):
    """Objects by number. Every verb may be called from several threads at once."""

    def store(self, number: int, payload: memoryview) -> None: ...
    def find(self, number: int) -> bool: ...
    def load(self, number: int, into: memoryview) -> None: ...
    def drop(self, number: int) -> None: ...


class Records:
    """An adapter as the engine uses it: header and payload written together, read together, and verified."""

    def __init__(self, adapter: L2Adapter) -> None:
        self._adapter = adapter

    def store(self, number: int, payload: memoryview) -> None:
        header = make_header(key(number), FINGERPRINT, payload)
        self._adapter.write(key(number), [memoryview(header), payload])

    def find(self, number: int) -> bool:
        return self._adapter.exists(key(number))

    def load(self, number: int, into: memoryview) -> None:
        header = memoryview(bytearray(HEADER_BYTES))
        stored = self._adapter.read(key(number), [header, into])
        assert stored, f"object {number} is gone"
        verdict = verify(header, into, stored, key(number), FINGERPRINT)
        assert verdict is Verdict.GOOD, f"object {number} is {verdict}"

    def drop(self, number: int) -> None:
        assert self._adapter.delete(key(number))


class ThroughTier:
    """An adapter with all that the engine keeps around it: catalog, breaker, order of operations, counters."""

    _FORM = Form(FINGERPRINT, 0)

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def store(self, number: int, payload: memoryview) -> None:
        self._tier.store(key(number), self._FORM, payload)

    def find(self, number: int) -> bool:
        return self._tier.may_have(key(number), (FINGERPRINT,))

    def load(self, number: int, into: memoryview) -> None:
        loaded = self._tier.load(key(number), FINGERPRINT, into)
        assert loaded.outcome is Outcome.LOADED, f"object {number} is {loaded}"

    def drop(self, number: int) -> None:
        assert self._tier.delete(key(number))


class PlainFiles:
    """One pwrite or pread of a file in a flat directory, and the digest."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = str(directory)

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number}"

    def store(self, number: int, payload: memoryview) -> None:
        xxhash.xxh3_128_digest(payload)
        descriptor = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        assert os.pwrite(descriptor, payload, 0) == len(payload)
        os.close(descriptor)

    def find(self, number: int) -> bool:
        return os.path.isfile(self._path(number))

    def load(self, number: int, into: memoryview) -> None:
        descriptor = os.open(self._path(number), os.O_RDONLY)
        assert os.preadv(descriptor, [into], 0) == len(into)
        os.close(descriptor)
        xxhash.xxh3_128_digest(into)

    def drop(self, number: int) -> None:
        os.unlink(self._path(number))


class PlainBytes:
    """A copy in a dictionary, and the digest."""

    def __init__(self) -> None:
        self._copies: dict[int, bytes] = {}

    def store(self, number: int, payload: memoryview) -> None:
        xxhash.xxh3_128_digest(payload)
        self._copies[number] = bytes(payload)

    def find(self, number: int) -> bool:
        return number in self._copies

    def load(self, number: int, into: memoryview) -> None:
        into[:] = self._copies[number]
        xxhash.xxh3_128_digest(into)

    def drop(self, number: int) -> None:
        del self._copies[number]


class PlainMapping:
    """A mapped file of `nbytes` with places for objects of one size, one copy each way, and the digest."""

    def __init__(self, path: Path, nbytes: int) -> None:
        with path.open("rb+") as file:
            self._mapping = mmap.mmap(file.fileno(), nbytes)
        self._free: list[int] = []
        self._next = 0
        self._places: dict[int, int] = {}

    def store(self, number: int, payload: memoryview) -> None:
        xxhash.xxh3_128_digest(payload)
        if self._free:
            at = self._free.pop()
        else:
            at, self._next = self._next, self._next + len(payload)
        memoryview(self._mapping)[at : at + len(payload)] = payload
        self._places[number] = at

    def find(self, number: int) -> bool:
        return number in self._places

    def load(self, number: int, into: memoryview) -> None:
        at = self._places[number]
        into[:] = memoryview(self._mapping)[at : at + len(into)]
        xxhash.xxh3_128_digest(into)

    def drop(self, number: int) -> None:
        self._free.append(self._places.pop(number))


class BareObstore:
    """obstore's put, head and get of the payload alone, unhashed."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def store(self, number: int, payload: memoryview) -> None:
        obstore.put(self._store, f"bare/{number}", payload, use_multipart=False)

    def find(self, number: int) -> bool:
        return bool(obstore.head(self._store, f"bare/{number}"))

    def load(self, number: int, into: memoryview) -> None:
        at = 0
        for piece in obstore.get(self._store, f"bare/{number}").stream(min_chunk_size=MIB):
            into[at : at + len(piece)] = memoryview(piece)
            at += len(piece)

    def drop(self, number: int) -> None:
        obstore.delete(self._store, f"bare/{number}")


class BareRedis:
    """redis-py's set, exists and get of the payload alone, unhashed."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    def store(self, number: int, payload: memoryview) -> None:
        self._client.set(f"bare:{number}", payload)

    def find(self, number: int) -> bool:
        return bool(self._client.exists(f"bare:{number}"))

    def load(self, number: int, into: memoryview) -> None:
        value: Any = self._client.get(f"bare:{number}")
        into[:] = value

    def drop(self, number: int) -> None:
        self._client.unlink(f"bare:{number}")
