"""Files: the conformance suite, and what only files can do wrong."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.l2.fs_adapter import LEFTOVER_AFTER_S, FsAdapter, FsConfig
from engine.l2.record import HEADER_BYTES
from tests.conformance.l2_conformance import KEY, L2Conformance, Raw, load, payload, record, store


class RawFiles:
    def __init__(self, base: Path) -> None:
        self._base = base

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self._base)) for path in self._base.rglob("*") if path.is_file())

    def get(self, name: str) -> bytes:
        return (self._base / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        (self._base / name).write_bytes(data)


class TestFs(L2Conformance):
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> FsAdapter:
        return FsAdapter(FsConfig(str(tmp_path / "l2")))

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Raw:
        return RawFiles(tmp_path / "l2")


class TestFsWithFsync(TestFs):
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> FsAdapter:
        return FsAdapter(FsConfig(str(tmp_path / "l2"), fsync=True))


def test_files_belong_to_the_user_alone(tmp_path: Path) -> None:
    adapter = FsAdapter(FsConfig(str(tmp_path / "l2")))
    store(adapter, KEY, payload(1))

    paths = [tmp_path / "l2", *(tmp_path / "l2").rglob("*")]

    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths[1:])


def test_a_link_in_place_of_an_object_is_not_followed(tmp_path: Path) -> None:
    adapter = FsAdapter(FsConfig(str(tmp_path / "l2")))
    store(adapter, KEY, payload(1))
    (path,) = [path for path in (tmp_path / "l2").rglob("*@*") if path.is_file()]
    secret = tmp_path / "secret"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(secret)

    with pytest.raises(OSError, match="symbolic links"):
        adapter.read(KEY, [memoryview(bytearray(4096)), memoryview(bytearray(5000))])


def test_a_read_that_comes_in_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = FsAdapter(FsConfig(str(tmp_path / "l2")))
    store(adapter, KEY, payload(1))
    read_at_once = os.preadv

    def interrupted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return read_at_once(descriptor, [buffers[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", interrupted)

    assert load(adapter, KEY, 5000) == (HEADER_BYTES + 5000, bytes(record(KEY, payload(1))[0]), payload(1))


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = FsAdapter(FsConfig(str(tmp_path / "l2")))
    write_at_once = os.writev

    def interrupted(descriptor: int, buffers: list[memoryview]) -> int:
        return write_at_once(descriptor, [buffers[0][:1000]])

    with monkeypatch.context() as patched:
        patched.setattr(os, "writev", interrupted)
        store(adapter, KEY, payload(1))

    assert load(adapter, KEY, 5000) == (HEADER_BYTES + 5000, bytes(record(KEY, payload(1))[0]), payload(1))


def test_what_a_killed_writer_left_is_removed_at_start_but_not_what_another_server_writes(tmp_path: Path) -> None:
    FsAdapter(FsConfig(str(tmp_path / "l2")))
    left, running = (tmp_path / "l2" / "tmp" / name for name in ("left", "running"))
    for path in (left, running):
        path.write_bytes(b"half a record")
    os.utime(left, (1, time.time() - LEFTOVER_AFTER_S - 1))

    adapter = FsAdapter(FsConfig(str(tmp_path / "l2")))

    assert list((tmp_path / "l2" / "tmp").iterdir()) == [running]
    assert list(adapter.scan()) == []


def test_use_is_remembered_but_not_at_every_read(tmp_path: Path) -> None:
    adapter = FsAdapter(FsConfig(str(tmp_path / "l2")))
    store(adapter, KEY, payload(1))
    (path,) = [path for path in (tmp_path / "l2").rglob("*@*") if path.is_file()]
    recent, old = time.time() - 60, time.time() - 3600

    os.utime(path, (recent, recent))
    adapter.used(KEY)
    assert next(adapter.scan()).used_at == pytest.approx(recent, abs=1)

    os.utime(path, (old, old))
    adapter.used(KEY)
    assert next(adapter.scan()).used_at > time.time() - 60


FILL = """
import sys
from pathlib import Path
from engine.l2.base import StorageFull
from engine.l2.fs_adapter import FsAdapter, FsConfig
from tests.conformance.l2_conformance import KEY, load, payload, store

base = Path(sys.argv[1]) / "l2"
adapter = FsAdapter(FsConfig(str(base)))
store(adapter, KEY, payload(1, 100_000))
try:
    store(adapter, KEY._replace(cache_salt=""), payload(2, 4_000_000))
except StorageFull as error:
    print("full:", error.strerror)
assert load(adapter, KEY, 100_000)[2] == payload(1, 100_000)
assert [stored.key for stored in adapter.scan()] == [KEY]
assert not list((base / "tmp").iterdir()), "a failed write left something"
print("kept")
"""


def test_a_full_disk_is_a_fault_that_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    script = f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}/small" && exec "{sys.executable}" -c "$0" "{tmp_path}/small"'

    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script, FILL], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("full: no room for 4004096 bytes")
    assert done.stdout.splitlines()[1] == "kept"
