"""How often chunks are looked up again: switched on for a while to judge how large a cache would be worth having.

Different chunks are counted by a bitmap of fixed size, so the memory is bounded: one bit per chunk, and an estimate of
those that fell on a bit already set. Up to ten million chunks the estimate is well within a percent.
"""

import math
import threading
import time
from collections.abc import Sequence

BITS = 1 << 25
#: Chunks of one lookup that are counted; the data plane waits meanwhile.
MAX_AT_ONCE = 4096


class ChunkStatistics:
    """Counts lookups while `enabled`. Thread-safe."""

    def __init__(self) -> None:
        self.enabled = False
        self._lock = threading.Lock()
        self._bits = bytearray()
        self._lookups = self._chunks = self._set_bits = 0
        self._since = 0.0

    def start(self) -> None:
        """Counts from now on, beside what was counted before."""
        with self._lock:
            if not self._bits:
                self._bits = bytearray(BITS // 8)
                self._since = time.time()
            self.enabled = True

    def stop(self) -> None:
        """Counts nothing more; what was counted can still be read."""
        self.enabled = False

    def reset(self) -> None:
        """Forgets what was counted. Goes on counting if it did."""
        with self._lock:
            self._bits = bytearray(BITS // 8) if self.enabled else bytearray()
            self._lookups = self._chunks = self._set_bits = 0
            self._since = time.time() if self.enabled else 0.0

    def note(self, digests: Sequence[bytes]) -> None:
        """A lookup asked for these chunks."""
        with self._lock:
            if not self._bits:
                return
            self._lookups += 1
            for digest in digests[:MAX_AT_ONCE]:
                place = int.from_bytes(digest[:8], "big") % BITS
                byte, mask = place >> 3, 1 << (place & 7)
                if not self._bits[byte] & mask:
                    self._bits[byte] |= mask
                    self._set_bits += 1
            self._chunks += min(len(digests), MAX_AT_ONCE)

    def describe(self) -> dict[str, object]:
        """The counts; `reuse_rate` is the share of chunks that had been asked for before."""
        with self._lock:
            lookups, chunks, bits, since = self._lookups, self._chunks, self._set_bits, self._since
        unique = min(chunks, round(-BITS * math.log1p(-min(bits, BITS - 1) / BITS)))
        return {
            "enabled": self.enabled,
            "total_requests": lookups,
            "total_chunks": chunks,
            "unique_chunks": unique,
            "duplicate_chunks": chunks - unique,
            "reuse_rate": (chunks - unique) / chunks if chunks else 0.0,
            "since": since,
        }
