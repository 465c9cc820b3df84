"""Objects as files in a directory tree: local disks and mounted file systems.

    base_path/ab/model@rank@group@abcdef…[@salt]        ab: the first two hex digits of the chunk hash
    base_path/tmp/…                                     files being written; old ones are removed at start

A file is written beside and renamed, so a reader sees all of it or nothing; `fsync` decides whether the rename waits
for the disk. Files and directories belong to the user alone (0600, 0700). Buffers are read and written in place, with
one system call each way. The time of use is kept as the file's mtime, renewed at most every ten minutes.
"""

import contextlib
import errno
import itertools
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from engine.l2.base import Buffers, L2Adapter, StorageFull, Stored, total_bytes
from engine.l2.object_name import is_digest_name, key_of_name, name_of
from engine.l2.record import HEADER_BYTES, key_of
from engine.object_key import ObjectKey

TMP = "tmp"
#: How stale the recorded time of use may get.
USE_RESOLUTION_S = 600.0
#: No write takes so long.
LEFTOVER_AFTER_S = 600.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class FsConfig:
    """`base_path` is made if it is missing. `max_bytes` 0 = what the file system offers."""

    base_path: str
    fsync: bool = False
    max_bytes: int = 0


class FsAdapter(L2Adapter):
    """See the module's text. Stateless but for the path, and a number for the next temporary name."""

    type_name: ClassVar[str] = "fs"
    keeps_order_of_use: ClassVar[bool] = True
    config_class = FsConfig

    def __init__(self, config: FsConfig) -> None:
        """Raises OSError when the directory cannot be made or used."""
        self._config = config
        self._base = os.path.abspath(config.base_path)
        self._tmp = os.path.join(self._base, TMP)
        self._boot, self._numbers = secrets.token_hex(12), itertools.count()
        os.makedirs(self._tmp, mode=0o700, exist_ok=True)
        for prefix in range(256):
            os.makedirs(os.path.join(self._base, f"{prefix:02x}"), mode=0o700, exist_ok=True)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """What a killed writer left. Younger files may be those of another server that shares the directory."""
        before = time.time() - LEFTOVER_AFTER_S
        with os.scandir(self._tmp) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)

    def _path(self, key: ObjectKey) -> str:
        return f"{self._base}/{key.chunk_hash[:1].hex() or '00'}/{name_of(key)}"

    def exists(self, key: ObjectKey) -> bool:
        return os.path.isfile(self._path(key))

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # One byte more than is wanted shows in the same call whether the file is longer.
            wanted = total_bytes(into)
            if os.preadv(descriptor, [*into, bytearray(1)], 0) == wanted:
                return wanted
            size = os.fstat(descriptor).st_size
            return size if size != wanted else _read_in_pieces(descriptor, into)
        finally:
            os.close(descriptor)

    def write(self, key: ObjectKey, data: Buffers) -> None:
        path, beside = self._path(key), f"{self._tmp}/{self._boot}-{next(self._numbers)}"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, data)
                if self._config.fsync:
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(beside, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise StorageFull(error.errno, f"no room for {total_bytes(data)} bytes in {self._base}") from error
            raise

    def delete(self, key: ObjectKey) -> bool:
        try:
            os.unlink(self._path(key))
        except FileNotFoundError:
            return False
        return True

    def scan(self) -> Iterator[Stored]:
        for prefix in range(256):
            with os.scandir(os.path.join(self._base, f"{prefix:02x}")) as entries:
                for entry in entries:
                    key = self._key_of_file(entry)
                    if key is None:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        yield Stored(key, facts.st_size, facts.st_mtime)

    def _key_of_file(self, entry: "os.DirEntry[str]") -> ObjectKey | None:
        if not is_digest_name(entry.name):
            return key_of_name(entry.name)
        try:
            with open(entry.path, "rb") as file:
                header = file.read(HEADER_BYTES)
        except OSError:
            return None
        return key_of(memoryview(header)) if len(header) == HEADER_BYTES else None

    def used(self, key: ObjectKey) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(path).st_mtime > USE_RESOLUTION_S:
                os.utime(path)

    def capacity_bytes(self) -> int | None:
        if self._config.max_bytes:
            return self._config.max_bytes
        facts = os.statvfs(self._base)
        return facts.f_blocks * facts.f_frsize

    def describe(self) -> dict[str, object]:
        facts = os.statvfs(self._base)
        return {"base_path": self._base, "fsync": self._config.fsync, "free_bytes": facts.f_bavail * facts.f_frsize}


def _write_all(descriptor: int, data: Buffers) -> None:
    done = os.writev(descriptor, data)
    if done == total_bytes(data):
        return
    left = list(data)
    while True:
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if not left:
            return
        left[0] = left[0][done:]
        done = os.writev(descriptor, left)


def _read_in_pieces(descriptor: int, into: Buffers) -> int:
    """Reads from the start where one call did not bring all; returns how many bytes there were."""
    done = 0
    while True:
        left, skip = [], done
        for buffer in into:
            if skip < len(buffer):
                left.append(buffer[skip:])
            skip = max(0, skip - len(buffer))
        got = os.preadv(descriptor, left, done) if left else 0
        if not got:
            return done
        done += got
