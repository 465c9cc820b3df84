"""How many file descriptors clients' segments take: too many, and the server could accept nobody any more."""

import resource
import threading

from engine.errors import BadRequest

#: Left for connections, the pool and logs.
RESERVED_DESCRIPTORS = 256


class DescriptorCount:
    """Open segments of this process. Any thread may call."""

    def __init__(self) -> None:
        self._held = 0
        self._raised = False
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        return self._held

    def take(self, name: str) -> None:
        """Before segment `name` is opened. Raises BadRequest near the process's limit; nothing is taken then."""
        with self._lock:
            if not self._raised:
                self._raised = True
                _raise_limit()
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if limit != resource.RLIM_INFINITY and self._held + RESERVED_DESCRIPTORS >= limit:
                raise BadRequest(
                    f"shared memory {name}: {self._held} segments are open already, and of the {limit} file "
                    f"descriptors this process may have, {RESERVED_DESCRIPTORS} are kept for other things"
                )
            self._held += 1

    def give_back(self) -> None:
        """After a segment was closed, or could not be opened."""
        with self._lock:
            self._held -= 1


def _raise_limit() -> None:
    """To what the system allows at most; as it is where that is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        return


SEGMENT_DESCRIPTORS = DescriptorCount()
