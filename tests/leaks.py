"""What a test may leave behind: nothing.

A `Census` counts what the process owns. Two of them, before and after a test, tell what it left:

kind             how it is seen
---------------  --------------------------------------------------------------------------
thread           threading.enumerate()
descriptor       /proc/self/fd, by number and target
process          children of this process, and any process that carries this run's mark in its
                 environment (a child's child that lost its parent)
shared memory    /dev/shm, unless a process of somebody else has the entry open
"""

import gc
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

RUN_MARK = "PYTEST_LARDER_RUN"
#: Set in the environment of tests that run side by side with those of other processes.
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER"
SHARED_MEMORY_DIR = Path("/dev/shm")
SETTLING_TIME_S = 5.0


@dataclass(frozen=True)
class Census:
    """What this process owned at one moment."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    processes: frozenset[int]
    shared_memory: frozenset[str]

    @classmethod
    def take(cls) -> "Census":
        return cls(
            threads=frozenset(t for t in threading.enumerate() if t.is_alive()),
            descriptors=frozenset(_descriptors()),
            processes=frozenset(_processes_of_this_run()),
            shared_memory=frozenset(entry.name for entry in SHARED_MEMORY_DIR.iterdir()),
        )

    def left_since(self, before: "Census") -> list[str]:
        """One line for each thing that is here now and was not in `before`."""
        lines = [f"thread {t.name!r}" for t in self.threads - before.threads]
        lines += [f"descriptor {number} -> {target}" for number, target in self.descriptors - before.descriptors]
        lines += [f"process {pid}: {_command_line(pid)}" for pid in self.processes - before.processes]
        new_segments = self.shared_memory - before.shared_memory
        lines += [f"shared memory /dev/shm/{name}" for name in new_segments if not _open_elsewhere(name)]
        return sorted(lines)


def leaks_since(before: Census) -> list[str]:
    """What is still left once things had time to settle; empty as soon as nothing is."""
    _stop_resource_tracker()
    deadline = time.monotonic() + SETTLING_TIME_S
    pause = threading.Event()
    while left := Census.take().left_since(before):
        if time.monotonic() > deadline:
            return left
        gc.collect()
        pause.wait(0.02)
    return []


def _stop_resource_tracker() -> None:
    """multiprocessing's helper process is ours only in name: it starts unasked and ends with the interpreter."""
    tracker = resource_tracker._resource_tracker  # type: ignore[attr-defined]
    if tracker._pid is not None:
        tracker._stop()


def _descriptors() -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if not target.startswith("/proc/"):
            found.append((int(name), target))
    return found


def _processes_of_this_run() -> list[int]:
    mark = f"{RUN_MARK}={os.environ.get(RUN_MARK, '')}".encode()
    return [pid for pid in _pids() if pid != os.getpid() and (_parent(pid) == os.getpid() or _is_marked(pid, mark))]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[1])


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "(gone)"
    return b" ".join(words).decode(errors="replace").strip() or "(ended, never waited for)"


def _open_elsewhere(name: str) -> bool:
    """Whether a process that is not of this run maps or holds /dev/shm/`name`, or the entry is gone by now."""
    path = SHARED_MEMORY_DIR / name
    if not path.exists():
        return True
    ours = {*_processes_of_this_run(), os.getpid()}
    holders = [pid for pid in _pids() if _has_open(pid, str(path))]
    # Side by side with others, what nobody holds may be what a process of theirs was killed with.
    return any(pid not in ours for pid in holders) or (not holders and SIDE_BY_SIDE in os.environ)


def _has_open(pid: int, path: str) -> bool:
    try:
        if path in Path(f"/proc/{pid}/maps").read_text():
            return True
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False
