"""What a codec is, a chain of them, and how a stored record remembers what made it.

    payload -> encode -> record header over the encoded bytes -> adapter
    adapter -> header and encoded bytes verified -> decode -> payload

The record's fingerprint is `stored_fingerprint(layout, codec)`: bytes of other codecs or settings are a record for
another layout, a miss, and never decoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar

from engine.errors import EngineError
from engine.object_key import ObjectKey

FINGERPRINT_BYTES = 16
#: What any one codec may add to its input at most; bounds what is unpacked between two codecs.
MAX_GROWTH_BYTES = 1 << 16


class Undecodable(EngineError):
    """The bytes were not made by this codec for this key, or were changed since."""


class Codec(ABC):
    """Turns an object's bytes into others and back. Thread-safe, blocking, keeps no buffer."""

    #: The word in an adapter's `serde`.
    name: ClassVar[str]
    #: Whether decoding gives back exactly what was encoded.
    lossless: bool = True

    @abstractmethod
    def tag(self) -> bytes:
        """Name and settings that decide whether stored bytes can be decoded. No secrets."""

    @abstractmethod
    def encode(self, payload: memoryview, key: ObjectKey) -> bytes:
        """The bytes to be stored."""

    @abstractmethod
    def decode(self, data: memoryview, key: ObjectKey, max_bytes: int) -> bytes:
        """The payload, at most `max_bytes` long. Raises Undecodable."""


class Chain(Codec):
    """Several codecs, in the order of encoding."""

    name: ClassVar[str] = "chain"

    def __init__(self, codecs: Sequence[Codec]) -> None:
        self._codecs = tuple(codecs)
        self.lossless = all(codec.lossless for codec in codecs)

    def tag(self) -> bytes:
        return b"|".join(codec.tag() for codec in self._codecs)

    def encode(self, payload: memoryview, key: ObjectKey) -> bytes:
        data = bytes(payload) if not self._codecs else b""
        for codec in self._codecs:
            data = codec.encode(payload, key)
            payload = memoryview(data)
        return data

    def decode(self, data: memoryview, key: ObjectKey, max_bytes: int) -> bytes:
        for place in reversed(range(len(self._codecs))):
            limit = max_bytes + max_bytes // 64 + MAX_GROWTH_BYTES if place else max_bytes
            data = memoryview(self._codecs[place].decode(data, key, limit))
        return bytes(data)


def stored_fingerprint(layout: bytes, codec: Codec | None) -> bytes:
    """The fingerprint of records made with `codec` from objects of a layout (its own fingerprint without one)."""
    if codec is None:
        return layout
    return blake2b(codec.tag(), key=layout, digest_size=FINGERPRINT_BYTES, person=b"larder serde 1").digest()
