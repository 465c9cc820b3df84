"""Tokens -> chained chunk hashes.

A chunk's hash covers its own tokens and, through the hash of the chunk before it, everything in front. A remainder
shorter than a chunk has no hash.

algorithm     H(previous, tokens)                                            start value
------------  -------------------------------------------------------------  --------------------------------------
blake3        blake3-256(previous || tokens as big-endian 32 bit)             blake3-256(8 zero bytes || be32(0))
sha256_cbor   sha256 over the canonical CBOR array [previous, tokens, null]   sha256 of the CBOR text "larder"
builtin       Python's hash((previous, tokens, None)), 8 bytes big-endian     hash of an empty tuple; other every start

`blake3` equals LMCache 0.5.6 bit for bit. `builtin` is not reproducible from one process to the next on Python 3.11, so
objects hashed with it must never outlive the process.
"""

import hashlib
import sys
from array import array
from collections.abc import Callable

from blake3 import blake3

ChunkHasher = Callable[[bytes, "array[int]"], bytes]


def _big_endian(tokens: "array[int]") -> bytes:
    if sys.byteorder == "little":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens.tobytes()


def _blake3_chunk(previous: bytes, tokens: "array[int]") -> bytes:
    return blake3(previous + _big_endian(tokens)).digest()


def _cbor_head(major: int, value: int) -> bytes:
    """Initial bytes of a CBOR data item in canonical (shortest) form, RFC 8949 section 4.2.1."""
    if value < 24:
        return bytes((major << 5 | value,))
    for code, width in ((24, 1), (25, 2), (26, 4)):
        if value < 1 << 8 * width:
            return bytes((major << 5 | code,)) + value.to_bytes(width, "big")
    return bytes((major << 5 | 27,)) + value.to_bytes(8, "big")


def _sha256_cbor_chunk(previous: bytes, tokens: "array[int]") -> bytes:
    parts = [b"\x83", _cbor_head(2, len(previous)), previous, _cbor_head(4, len(tokens))]
    parts += [_cbor_head(0, token) for token in tokens]
    parts.append(b"\xf6")
    return hashlib.sha256(b"".join(parts)).digest()


def _builtin_chunk(previous: bytes, tokens: "array[int]") -> bytes:
    return hash((previous, tuple(tokens), None)).to_bytes(8, "big", signed=True)


_ALGORITHMS: dict[str, tuple[ChunkHasher, bytes]] = {
    "blake3": (_blake3_chunk, blake3(bytes(12)).digest()),
    "sha256_cbor": (_sha256_cbor_chunk, hashlib.sha256(b"\x66larder").digest()),
    "builtin": (_builtin_chunk, hash(()).to_bytes(8, "big", signed=True)),
}


class TokenHasher:
    """Hashes whole chunks of `chunk_size` tokens with one algorithm. Stateless; any thread may call."""

    def __init__(self, algorithm: str, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._hash_chunk, self._start = _ALGORITHMS[algorithm]

    def extend(self, hashes: list[bytes], tokens: "array[int]", chunks: int) -> None:
        """Appends to `hashes` until it holds the hash of each of the first `chunks` chunks of `tokens`.

        The hashes already there must be those of the same tokens; that is the caller's business.
        """
        size, previous = self.chunk_size, hashes[-1] if hashes else self._start
        for index in range(len(hashes), min(chunks, len(tokens) // size)):
            previous = self._hash_chunk(previous, tokens[index * size : (index + 1) * size])
            hashes.append(previous)
