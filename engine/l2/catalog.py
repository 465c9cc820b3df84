"""What one adapter holds, in memory: key -> size, form, bytes per salt, order of use.

The storage is the truth and the catalog its index: rebuilt at start by a scan, kept up with every write and delete of
ours. While the scan runs, a no is not final (`complete` is False) and the storage has to be asked; what was written or
deleted meanwhile is not undone by what the scan had seen before.
"""

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from engine.l2.base import Stored
from engine.object_key import ObjectKey

#: Rows worked through in one hold of the lock.
SLICE = 256


class Form(NamedTuple):
    """What an object is: the fingerprint of its layout (of what is stored: and of its codecs), and the KV groups that
    it lacks, a bit each."""

    fingerprint: bytes
    missing: int


#: A record that cannot be used at all.
FOREIGN = Form(b"", 0)


class Order(Protocol):
    """An eviction policy: an order over keys. See engine/l1/eviction.py."""

    def add(self, key: ObjectKey, nbytes: int) -> None: ...
    def used(self, key: ObjectKey) -> None: ...
    def remove(self, key: ObjectKey, nbytes: int, *, evicted: bool) -> None: ...
    def oldest(self) -> Iterator[ObjectKey]: ...
    def oldest_of(self, cache_salt: str) -> Iterator[ObjectKey]: ...
    def clear(self) -> None: ...


class Catalog:
    """Thread-safe; `contains` takes no lock."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._sizes: dict[ObjectKey, int] = {}
        #: What is known of objects written or read since the start.
        self._forms: dict[ObjectKey, Form] = {}
        self._bytes_by_salt: dict[str, int] = {}
        self._changed_salts: set[str] = set()
        self._deleted_during_scan: set[ObjectKey] | None = set()
        #: What was written and deleted while a later scan compares; None while none does.
        self._changed_during_rescan: set[ObjectKey] | None = None
        self._lock = threading.Lock()
        self.bytes_used = 0
        #: Objects the scan has found so far.
        self.scanned = 0

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def complete(self) -> bool:
        """Whether the scan is over, so that a no is a no."""
        return self._deleted_during_scan is None

    def contains(self, key: ObjectKey) -> bool:
        """Whether the storage holds `key`, as far as is known."""
        return key in self._sizes

    def form_of(self, key: ObjectKey) -> Form | None:
        """What the stored object is known to be; None for one that only the scan has seen."""
        return self._forms.get(key)

    def note_form(self, key: ObjectKey, form: Form) -> None:
        """A read has shown what the stored object is."""
        with self._lock:
            if key in self._sizes:
                self._forms[key] = form

    def size_of(self, key: ObjectKey) -> int | None:
        """Stored bytes of `key`; None when it is not known."""
        return self._sizes.get(key)

    def bytes_by_salt(self) -> dict[str, int]:
        """Stored bytes of each salt."""
        with self._lock:
            return dict(self._bytes_by_salt)

    def bytes_of(self, cache_salt: str) -> int:
        """Stored bytes of one salt."""
        return self._bytes_by_salt.get(cache_salt, 0)

    def take_changed_salts(self) -> set[str]:
        """Salts whose bytes changed since the last call."""
        with self._lock:
            changed, self._changed_salts = self._changed_salts, set()
            return changed

    def add(self, key: ObjectKey, size: int, form: Form | None = None) -> None:
        """`key` was stored with `size` bytes, as the most recent."""
        with self._lock:
            if self._deleted_during_scan is not None:
                self._deleted_during_scan.discard(key)
            if self._changed_during_rescan is not None:
                self._changed_during_rescan.add(key)
            self._remove(key, evicted=False)
            self._add(key, size)
            if form is not None:
                self._forms[key] = form

    def remove(self, key: ObjectKey, *, evicted: bool = False) -> bool:
        """`key` is gone; whether it was known."""
        with self._lock:
            if self._deleted_during_scan is not None:
                self._deleted_during_scan.add(key)
            if self._changed_during_rescan is not None:
                self._changed_during_rescan.add(key)
            return self._remove(key, evicted=evicted)

    def used(self, key: ObjectKey) -> None:
        """`key` was read."""
        with self._lock:
            if key in self._sizes:
                self._order.used(key)

    def oldest(self, start: int, count: int) -> list[tuple[ObjectKey, int]]:
        """`count` keys with their sizes in the order in which they should go, from place `start` on."""
        with self._lock:
            return [(key, self._sizes[key]) for key in islice(self._order.oldest(), start, start + count)]

    def oldest_of(self, cache_salt: str, start: int, count: int) -> list[tuple[ObjectKey, int]]:
        """The same among the keys of one salt."""
        with self._lock:
            keys = islice(self._order.oldest_of(cache_salt), start, start + count)
            return [(key, self._sizes[key]) for key in keys]

    def keys(self) -> list[ObjectKey]:
        """All keys, in no order, as of one moment: about 10 ms for a million."""
        with self._lock:
            return list(self._sizes)

    def keys_after(self, position: int, count: int) -> list[tuple[ObjectKey, int]]:
        """Up to `count` entries in the order of the table, from `position` on."""
        with self._lock:
            return list(islice(self._sizes.items(), position, position + count))

    def take_scan(self, found: Iterable[Stored]) -> None:
        """Takes in everything the storage holds, oldest first, and is complete afterwards.

        What is known already is newer than what a scan tells, and stays as it is. What the iterable raises ends the
        scan: what it had found counts, and the catalog stays incomplete.
        """
        stored: list[Stored] = []
        try:
            for item in found:
                stored.append(item)
                self.scanned = len(stored)
        except BaseException:
            self._merge(stored)
            raise
        self._merge(stored)
        with self._lock:
            self._deleted_during_scan = None

    def compare(self, found: Iterable[Stored]) -> tuple[int, int]:
        """Forgets what the storage has lost and takes in what others put there; (objects lost, objects new).

        For a complete catalog, one comparison at a time. What changes meanwhile is left to those who change it. What
        the iterable raises leaves everything as it is.
        """
        with self._lock:
            known = list(self._sizes)
            changed = self._changed_during_rescan = set()
        try:
            stored = {item.key: item for item in found}
            lost = [key for key in known if key not in stored]
            new = sorted(
                (item for item in stored.values() if item.key not in self._sizes), key=lambda item: item.used_at
            )
            number_lost = number_new = 0
            for start in range(0, len(lost), SLICE):
                with self._lock:
                    for key in lost[start : start + SLICE]:
                        number_lost += key not in changed and self._remove(key, evicted=False)
            for start in range(0, len(new), SLICE):
                with self._lock:
                    for item in new[start : start + SLICE]:
                        if item.key not in changed and item.key not in self._sizes:
                            self._add(item.key, item.size)
                            number_new += 1
            return number_lost, number_new
        finally:
            with self._lock:
                self._changed_during_rescan = None

    def _merge(self, stored: list[Stored]) -> None:
        stored.sort(key=lambda item: item.used_at)
        with self._lock:
            gone = self._deleted_during_scan if self._deleted_during_scan is not None else set()
            newer = dict(self._sizes)
            self._order.clear()
            self._changed_salts.update(self._bytes_by_salt)
            self._sizes, self._bytes_by_salt, self.bytes_used = {}, {}, 0
        for start in range(0, len(stored), SLICE):
            with self._lock:
                for item in stored[start : start + SLICE]:
                    if item.key not in newer and item.key not in gone and item.key not in self._sizes:
                        self._add(item.key, item.size)
        with self._lock:
            for key, size in newer.items():
                if key not in self._sizes and key not in gone:
                    self._add(key, size)
            self._forms = {key: form for key, form in self._forms.items() if key in self._sizes}

    def _add(self, key: ObjectKey, size: int) -> None:
        self._sizes[key] = size
        self._order.add(key, size)
        self.bytes_used += size
        self._bytes_by_salt[key.cache_salt] = self._bytes_by_salt.get(key.cache_salt, 0) + size
        self._changed_salts.add(key.cache_salt)

    def _remove(self, key: ObjectKey, *, evicted: bool) -> bool:
        size = self._sizes.pop(key, None)
        if size is None:
            return False
        self._forms.pop(key, None)
        self._changed_salts.add(key.cache_salt)
        self._order.remove(key, size, evicted=evicted)
        self.bytes_used -= size
        left = self._bytes_by_salt[key.cache_salt] - size
        if left:
            self._bytes_by_salt[key.cache_salt] = left
        else:
            del self._bytes_by_salt[key.cache_salt]
        return True
