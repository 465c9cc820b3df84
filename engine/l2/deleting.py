"""Deletes many objects in reasonable time: one after the other, and with some threads where that takes long.

Thousands of keys in a storage that takes ten milliseconds for each would keep a caller waiting for minutes.
"""

import threading
import time
from collections.abc import Callable, Iterable

from engine.errors import EngineError
from engine.object_key import ObjectKey

#: Beside the caller's.
THREADS = 7
#: What is not done by then is done by all of them together.
PATIENCE_S = 0.25


def delete_all(
    delete: Callable[[ObjectKey], bool], keys: Iterable[ObjectKey], *, patience_s: float = PATIENCE_S
) -> tuple[int, str]:
    """How many `delete` removed, and the first failure in words, after which nothing more is begun; "" for none.

    Returns when every call has ended.
    """
    work = _Work(delete, keys)
    work.run(time.monotonic() + patience_s)
    if not work.over:
        threads = [
            threading.Thread(target=work.run, name=f"larder-l2-delete-{number}", daemon=True)
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        work.run()
        for thread in threads:
            thread.join()
    return work.deleted, work.error


class _Work:
    """Keys to be taken by several threads."""

    def __init__(self, delete: Callable[[ObjectKey], bool], keys: Iterable[ObjectKey]) -> None:
        self._delete, self._left = delete, iter(keys)
        self._lock = threading.Lock()
        self.deleted, self.error, self.over = 0, "", False

    def run(self, until: float = float("inf")) -> None:
        """Deletes until nothing is left, or something failed, or the time is over."""
        while (key := self._next()) is not None:
            try:
                removed = self._delete(key)
            except (OSError, EngineError) as error:
                with self._lock:
                    self.error = self.error or str(error) or type(error).__name__
                    self.over = True
                return
            with self._lock:
                self.deleted += removed
            if time.monotonic() > until:
                return

    def _next(self) -> ObjectKey | None:
        with self._lock:
            key = None if self.over else next(self._left, None)
            self.over = self.over or key is None
            return key
