"""Pages of an adapter's keys, in the order of their keys, for whoever walks a storage from outside.

A page is what follows the last key of the page before, which is all that a page token says. So a walk needs no state
here: it goes on after changes, after a restart, and in any thread, and meets each object that is there all the time
exactly once.

what the catalog knows           pages come from
-------------------------------  ----------------------------------------------------------------
all there is                     the catalog; what is gone by now is left out
not all: shared storage, or      the storage, read through once and kept for some seconds, so that a
its first scan still runs        walk of many pages does not read it through for each

Keys are put into heaps by the first bytes of their hash, and only the heaps that a page needs are sorted: no step
keeps other threads waiting, also with millions of keys.
"""

import base64
import binascii
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.errors import BadRequest, TooBusy, Unsupported
from engine.l2.base import Stored
from engine.l2.tier import Tier
from engine.object_key import ObjectKey, key_from_json

MAX_PAGE_SIZE = 5000
#: Most objects that are listed of a storage whose catalog does not tell.
MAX_SCANNED = 2_000_000
MAX_TOKEN_CHARACTERS = 8192
#: How long keys that were collected serve further pages of a walk.
KEEP_S = 5.0
#: Collecting may take this share of the time, however often somebody asks for first pages.
COLLECTING_SHARE = 0.05
#: How long a storage is read through before that is given up.
SCAN_TIMEOUT_S = 50.0
#: How long a caller waits for the reading of another, and keeps a thread; then he is asked to come again.
WAIT_S = 1.0
SCAN_SLICE = 256
_HEAPS = 4096


class Page(NamedTuple):
    """(key, stored bytes) in the order of the keys, and the token of the next page; None when nothing is left."""

    entries: list[tuple[ObjectKey, int]]
    next_token: str | None


class Heaps:
    """Keys by the first twelve bits of their hash, which is what they are ordered by first."""

    def __init__(self, keys: Iterable[ObjectKey]) -> None:
        self._heaps: list[list[ObjectKey]] = [[] for _ in range(_HEAPS)]
        for key in keys:
            self._heaps[_heap_of(key)].append(key)

    def after(self, last: ObjectKey | None, model_name: str | None) -> Iterator[ObjectKey]:
        """The keys after `last` in order, of one model or all."""
        first = 0 if last is None else _heap_of(last)
        for number in range(first, _HEAPS):
            heap = self._heaps[number]
            wanted = heap if model_name is None else [key for key in heap if key.model_name == model_name]
            for key in sorted(wanted):
                if last is None or key > last:
                    yield key


@dataclass
class _Collected:
    """`sizes` is None where the catalog knows them."""

    heaps: Heaps
    sizes: dict[ObjectKey, int] | None
    at: float
    took_s: float


class Listings:
    """The pages of all tiers. Thread-safe; keeps the keys of each tier that was asked for lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._collecting: dict[int, threading.Lock] = {}
        self._collected: dict[int, _Collected] = {}

    def page(self, tier: Tier, *, model_name: str | None, page_size: int, token: str | None) -> Page:
        """The page behind `token` (None or empty: the first) with up to `page_size` keys.

        Raises BadRequest (page size, token), Unsupported (too many objects to list), TooBusy, and what the storage
        raises: OSError.
        """
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise BadRequest(f"page_size {page_size} is not in 1..{MAX_PAGE_SIZE}")
        last = key_of_token(token) if token else None
        collected = self._keys_of(tier, for_first_page=last is None)
        size_of = tier.catalog.size_of if collected.sizes is None else collected.sizes.get
        there = ((key, size) for key in collected.heaps.after(last, model_name) if (size := size_of(key)) is not None)
        found = list(itertools.islice(there, page_size + 1))
        entries = found[:page_size]
        return Page(entries, token_of(entries[-1][0]) if len(found) > page_size else None)

    def forget(self, tier: Tier) -> None:
        """What was collected of this tier is known to be out of date."""
        with self._lock:
            self._collected.pop(tier.index, None)

    def drop_old(self) -> None:
        """Lets go of keys that serve nobody any more. Call it now and then."""
        now = self._clock()
        with self._lock:
            self._collected = {index: kept for index, kept in self._collected.items() if now - kept.at < _keep_s(kept)}

    def kept(self) -> int:
        """Of how many tiers keys are kept."""
        return len(self._collected)

    def _keys_of(self, tier: Tier, *, for_first_page: bool) -> _Collected:
        with self._lock:
            turn = self._collecting.setdefault(tier.index, threading.Lock())
        if not turn.acquire(timeout=WAIT_S):
            raise TooBusy(f"L2 adapter {tier.label} is still being read through for another listing")
        try:
            self.drop_old()
            with self._lock:
                known = self._collected.get(tier.index)
            if known is not None and self._serves(known, tier, for_first_page=for_first_page):
                return known
            collected = self._collect(tier)
            with self._lock:
                self._collected[tier.index] = collected
            return collected
        finally:
            turn.release()

    def _serves(self, known: _Collected, tier: Tier, *, for_first_page: bool) -> bool:
        if (known.sizes is None) != _knows_all(tier):
            return False
        age_s = self._clock() - known.at
        if for_first_page:
            return age_s < min(KEEP_S, known.took_s / COLLECTING_SHARE)
        return age_s < _keep_s(known)

    def _collect(self, tier: Tier) -> _Collected:
        began = self._clock()
        if _knows_all(tier):
            heaps, sizes = Heaps(tier.catalog.keys()), None
        else:
            sizes = self._scan(tier)
            heaps = Heaps(sizes)
        now = self._clock()
        return _Collected(heaps, sizes, now, now - began)

    def _scan(self, tier: Tier) -> dict[ObjectKey, int]:
        """Reads the storage through, in pieces, so that a long listing is not taken for a call that hangs."""
        deadline = self._clock() + SCAN_TIMEOUT_S
        found: Iterator[Stored] | None = None
        sizes: dict[ObjectKey, int] = {}
        while True:
            with tier.calls.guarded():
                found = tier.adapter.scan() if found is None else found
                piece = list(itertools.islice(found, SCAN_SLICE))
            sizes.update((stored.key, stored.size) for stored in piece)
            if len(piece) < SCAN_SLICE:
                return sizes
            if len(sizes) > MAX_SCANNED:
                raise Unsupported(f"L2 adapter {tier.label} does not support listing more than {MAX_SCANNED} objects")
            if self._clock() > deadline:
                raise TooBusy(f"L2 adapter {tier.label} was not read through within {SCAN_TIMEOUT_S:.0f} s")


def token_of(key: ObjectKey) -> str:
    """The page token that means: after this key."""
    text = json.dumps([key.chunk_hash.hex(), *key[1:]], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def key_of_token(token: str) -> ObjectKey:
    """The key in a page token. Raises BadRequest for what `token_of` has not written."""
    try:
        if len(token) <= MAX_TOKEN_CHARACTERS:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            fields = json.loads(raw.decode("utf-8", "surrogatepass"))
            names = ("chunk_hash_hex", *ObjectKey._fields[1:])
            key = key_from_json(dict(zip(names, fields, strict=True)))
            if token_of(key) == token:
                return key
    except (binascii.Error, ValueError, TypeError, RecursionError, BadRequest):
        pass
    raise BadRequest("page_token is malformed: give the next_page_token of the page before, or none")


def _heap_of(key: ObjectKey) -> int:
    return int.from_bytes(key.chunk_hash[:2].ljust(2, b"\0")) >> 4


def _knows_all(tier: Tier) -> bool:
    return tier.catalog.complete and not tier.spec.shared


def _keep_s(collected: _Collected) -> float:
    """A storage that takes long to read through is read through more seldom."""
    return max(KEEP_S, 2 * collected.took_s)
