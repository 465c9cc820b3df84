"""The shared-memory segment behind the L1 pool.

The segment is a POSIX shared-memory object of mode 0600, so clients of the same user can map it. Its whole size is
reserved at start, so that memory running out is a start error and never a SIGBUS later. Its owner holds a file lock
on it for as long as it lives: whoever gets that lock knows the owner is dead and may remove the segment. Python's
multiprocessing.shared_memory is not used: up to 3.12 its resource tracker removes segments that others still use.
"""

import _posixshmem
import ctypes
import fcntl
import logging
import mmap
import os
import threading
import time

from engine.errors import StartError

logger = logging.getLogger(__name__)

SHM_DIRECTORY = "/dev/shm"
#: Names of pools begin with this, so that leftovers can be found.
POOL_PREFIX = "larder_l1_pool_"
MAX_NAME_CHARACTERS = 200
#: Bytes faulted in by one call while pre-faulting.
PREFAULT_STEP = 8 * 1024 * 1024
#: A file of size 0 younger than this may belong to an owner that is about to lock it.
YOUNG_SECONDS = 60.0
#: From Linux's mman-common.h (5.14 on); Python 3.11's mmap module does not name it.
MADV_POPULATE_WRITE = 23


def default_pool_name(instance_id: str, boot_id: str) -> str:
    """A segment name (no leading slash) that tells the instance and the boot it belongs to."""
    readable = "".join(c if c.isalnum() or c in "-." else "-" for c in instance_id)[:64]
    return f"{POOL_PREFIX}{readable}_{boot_id}"


def remove_stale_pools(own_name: str = "") -> list[str]:
    """Removes pools of this user whose owner is dead, `own_name` among them; returns their names."""
    names = sorted(name for name in os.listdir(SHM_DIRECTORY) if name.startswith(POOL_PREFIX) or name == own_name)
    removed = [name for name in names if _remove_if_dead(name)]
    if removed:
        logger.warning("removed %d shared-memory pools left by dead owners: %s", len(removed), ", ".join(removed))
    return removed


def _remove_if_dead(name: str) -> bool:
    path = os.path.join(SHM_DIRECTORY, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid() or (facts.st_size == 0 and time.time() - facts.st_mtime < YOUNG_SECONDS):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


class SharedSegment:
    """A created, locked, fully reserved and mapped segment. The creator closes it, which also removes its name."""

    def __init__(self, name: str, size: int) -> None:
        """`name` without leading slash, `size` in bytes; nothing is created before `open`."""
        self.name, self.size = name, size
        self._stopping = threading.Event()
        self._prefault_thread: threading.Thread | None = None

    def open(self) -> None:
        """Creates and maps it. Raises StartError with the numbers when there is no room or the name is in use."""
        if not self.name or "/" in self.name or len(self.name) > MAX_NAME_CHARACTERS:
            raise StartError(f"shm_name {self.name!r} must be 1 to {MAX_NAME_CHARACTERS} characters without '/'")
        _check_room(self.size)
        self._descriptor = _create_locked(self.name)
        try:
            os.posix_fallocate(self._descriptor, 0, self.size)
            self._map = mmap.mmap(self._descriptor, self.size)
        except OSError as error:
            self._unlink()
            os.close(self._descriptor)
            raise StartError(f"cannot reserve {self.size} bytes of shared memory for l1_size_gb: {error}") from error
        self._view = memoryview(self._map)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Writable bytes `[offset, offset + nbytes)`; release it before `close`."""
        return self._view[offset : offset + nbytes]

    def prefault(self) -> None:
        """Starts to touch every page in the background, so that first stores do not pay for page faults."""
        self._prefault_thread = threading.Thread(target=self._populate, name="l1-prefault", daemon=True)
        self._prefault_thread.start()

    def close(self) -> None:
        """Removes the name, unmaps, unlocks. Slices handed out that are still alive keep the memory mapped."""
        self._stopping.set()
        if self._prefault_thread is not None:
            self._prefault_thread.join()
        self._unlink()
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            logger.warning("pool %s is still in use by a copy; its memory goes when the process ends", self.name)
        os.close(self._descriptor)

    def _unlink(self) -> None:
        try:
            _posixshmem.shm_unlink("/" + self.name)
        except FileNotFoundError:
            logger.warning("shared-memory pool %s had been removed by somebody else", self.name)

    def _populate(self) -> None:
        started = time.monotonic()
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for offset in range(0, self.size, PREFAULT_STEP):
            if self._stopping.is_set():
                return
            length = min(PREFAULT_STEP, self.size - offset)
            if libc.madvise(ctypes.c_void_p(address + offset), ctypes.c_size_t(length), MADV_POPULATE_WRITE):
                logger.info("pool is not pre-faulted: madvise says %s", os.strerror(ctypes.get_errno()))
                return
        logger.info("pool %s pre-faulted: %d bytes in %.1f s", self.name, self.size, time.monotonic() - started)


def _check_room(size: int) -> None:
    facts = os.statvfs(SHM_DIRECTORY)
    free = facts.f_bavail * facts.f_frsize
    if size > free:
        raise StartError(
            f"l1_size_gb asks for {size} bytes of shared memory, but {SHM_DIRECTORY} has {free} bytes free: "
            "lower --l1-size-gb or enlarge the mount (Docker: --shm-size, Kubernetes: an emptyDir of medium Memory)"
        )


def _create_locked(name: str) -> int:
    for _ in range(2):
        try:
            descriptor = _posixshmem.shm_open("/" + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
        except FileExistsError:
            if _remove_if_dead(name):
                logger.warning("removed shared-memory pool %s left by a dead owner", name)
                continue
            raise StartError(f"shared-memory pool {name} belongs to a running process (see --shm-name)") from None
        except OSError as error:
            raise StartError(f"cannot create shared-memory pool {name}: {error}") from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return int(descriptor)
    raise StartError(f"shared-memory pool {name} appears again as fast as it is removed")
