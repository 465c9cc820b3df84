"""The leak fixtures see what they are there to see."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.leaks import RUN_MARK, SIDE_BY_SIDE, Census
from tests.waiting import wait_for


def test_a_thread_left_running_is_named() -> None:
    stop = threading.Event()
    before = Census.take()
    thread = threading.Thread(target=stop.wait, name="left-over")
    thread.start()

    left = Census.take().left_since(before)
    stop.set()
    thread.join()

    assert left == ["thread 'left-over'"]
    assert Census.take().left_since(before) == []


def test_a_descriptor_left_open_is_named(tmp_path: Path) -> None:
    before = Census.take()
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)

    left = Census.take().left_since(before)
    os.close(descriptor)

    assert left == [f"descriptor {descriptor} -> {tmp_path / 'file'}"]


def test_a_child_process_is_named_also_once_it_ended() -> None:
    before = Census.take()
    child = subprocess.Popen(["sleep", "60"])

    running = Census.take().left_since(before)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ended = Census.take().left_since(before)
    child.wait()

    assert running == [f"process {child.pid}: sleep 60"]
    assert ended == [f"process {child.pid}: (ended, never waited for)"]


def test_a_grandchild_that_lost_its_parent_is_found_by_its_mark() -> None:
    before = Census.take()
    script = "setsid sleep 60 >/dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", script], check=True, capture_output=True, env=dict(os.environ)).stdout)
    command_line = Path(f"/proc/{pid}/cmdline")
    wait_for(lambda: command_line.read_bytes().startswith(b"sleep"), 10, "the grandchild became what it was started as")

    left = Census.take().left_since(before)
    os.kill(pid, 9)

    assert RUN_MARK in os.environ
    assert left == [f"process {pid}: sleep 60"]


def test_a_shared_memory_entry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIDE_BY_SIDE, raising=False)
    name = f"leak-test-{os.getpid()}"
    before = Census.take()
    Path("/dev/shm", name).touch(mode=0o600)

    left = Census.take().left_since(before)
    Path("/dev/shm", name).unlink()

    assert f"shared memory /dev/shm/{name}" in left
