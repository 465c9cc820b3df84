"""A mapped device as fixed slots: one page of header, then the object's bytes.

offset  bytes  field
------  -----  ----------------------------------------------------------------
0       8      magic "LARDSLOT"
8       1      state: 1 = holds an object, anything else = free
9       1      version, 1
10      2      length of the key text
12      4      number of the slot on its device
16      8      bytes of a slot, header included
24      8      length of the object
32      8      sequence: of two slots with one key the higher is the newer
40      8      time of writing, epoch seconds (a double)
48      8      xxh3-64 of the object
56      8      xxh3-64 of bytes 0..55 and the key text
64      n      key text: the key's JSON form, compact, UTF-8

The state byte is set last and cleared first, each with a single store, so whoever dies at any moment leaves a slot
that is free or whole. A slot is believed only when every field of its header fits.
"""

import json
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from engine.errors import BadRequest
from engine.l2.base import Buffers
from engine.object_key import ObjectKey, key_from_json, key_to_json

PAGE = 4096
MAGIC = b"LARDSLOT"
VERSION = 1
_HOLDS = 1
_STATE_AT = 8
_FIELDS = struct.Struct("<8sBBHIQQQdQ")
_CHECK = struct.Struct("<Q")
_TEXT_AT = _FIELDS.size + _CHECK.size
MAX_TEXT_BYTES = PAGE - _TEXT_AT

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Header(NamedTuple):
    """What a slot's header says of the object in it."""

    key: ObjectKey
    length: int
    sequence: int
    written_at: float
    digest: int


class Mapping:
    """`size` bytes of an open file or device in memory, in slots of `slot_bytes`. No tables, no lock.

    The memory stays mapped for as long as somebody holds the mapping. Copies release the interpreter lock.
    """

    def __init__(self, descriptor: int, size: int, slot_bytes: int, *, sync: bool) -> None:
        """Raises OSError when that much cannot be mapped or something else lies there, ValueError for odd sizes."""
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode):
            if facts.st_size < size:
                raise OSError(f"{size} bytes wanted, the file has {facts.st_size}")
            os.posix_fallocate(descriptor, 0, size)
        self.size = size
        self.slots = size // slot_bytes
        self._slot_bytes = slot_bytes
        self._sync = sync
        self._memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._bytes: Bytes = np.frombuffer(self._memory, np.uint8)
        self._check_ours()

    def content(self, number: int, length: int) -> Bytes:
        """The first `length` bytes of the object in the slot: a view."""
        start = number * self._slot_bytes + PAGE
        return self._bytes[start : start + length]

    def fill(self, number: int, data: Buffers) -> int:
        """Copies `data` into a free slot; returns its xxh3-64."""
        at, digest = 0, xxhash.xxh3_64()
        content = self.content(number, self._slot_bytes - PAGE)
        for buffer in data:
            np.copyto(content[at : at + len(buffer)], np.frombuffer(buffer, np.uint8))
            digest.update(buffer)
            at += len(buffer)
        self._flush(number, PAGE + at)
        return digest.intdigest()

    def copy_out(self, number: int, length: int, into: Buffers) -> None:
        """Copies as much of the object into the buffers as both have."""
        at, content = 0, self.content(number, length)
        for buffer in into:
            part = content[at : at + len(buffer)]
            np.copyto(np.frombuffer(buffer, np.uint8)[: len(part)], part)
            at += len(buffer)

    def digest(self, number: int, length: int) -> int:
        """xxh3-64 of what lies in the slot."""
        return xxhash.xxh3_64_intdigest(self.content(number, length).data)

    def publish(self, number: int, header: Header) -> None:
        """Makes the slot hold the object that `fill` or a copy has put there."""
        text = key_text(header.key)
        fields = _FIELDS.pack(
            MAGIC,
            _HOLDS,
            VERSION,
            len(text),
            number,
            self._slot_bytes,
            header.length,
            header.sequence,
            header.written_at,
            header.digest,
        )
        page = bytearray(fields + _CHECK.pack(xxhash.xxh3_64_intdigest(fields + text)) + text)
        page[_STATE_AT] = 0
        start = number * self._slot_bytes
        self._memory[start : start + len(page)] = bytes(page)
        self._flush(number, PAGE)
        self._memory[start + _STATE_AT] = _HOLDS
        self._flush(number, PAGE)

    def clear(self, number: int) -> None:
        """The slot holds nothing from now on."""
        self._memory[number * self._slot_bytes + _STATE_AT] = 0
        self._flush(number, PAGE)

    def headers(self, first: int = 0) -> Iterator[tuple[int, Header]]:
        """Every slot from `first` on that holds an object, by its header."""
        states = self._bytes[_STATE_AT : self.slots * self._slot_bytes : self._slot_bytes]
        for number in (np.flatnonzero(states[first:] == _HOLDS) + first).tolist():
            header = self._header(number)
            if header is not None:
                yield number, header

    def _header(self, number: int) -> Header | None:
        start = number * self._slot_bytes
        page = self._memory[start : start + PAGE]
        magic, _, version, text_bytes, own, slot_bytes, length, sequence, written_at, digest = _FIELDS.unpack_from(page)
        if (magic, version, own, slot_bytes) != (MAGIC, VERSION, number, self._slot_bytes):
            return None
        if text_bytes > MAX_TEXT_BYTES or length > self._slot_bytes - PAGE:
            return None
        text = page[_TEXT_AT : _TEXT_AT + text_bytes]
        (check,) = _CHECK.unpack_from(page, _FIELDS.size)
        if check != xxhash.xxh3_64_intdigest(page[: _FIELDS.size] + text):
            return None
        try:
            key = key_from_json(json.loads(text))
        except (ValueError, BadRequest):
            return None
        return Header(key, length, sequence, written_at, digest)

    def _check_ours(self) -> None:
        magic, _, _, _, _, slot_bytes, *_ = _FIELDS.unpack_from(self._memory)
        if magic == MAGIC and slot_bytes != self._slot_bytes:
            raise OSError(
                f"it was written with slots of {slot_bytes} bytes, not {self._slot_bytes}; zero its first page"
            )
        if magic not in (MAGIC, bytes(len(MAGIC))):
            raise OSError("it holds something else, which would be overwritten; zero its first page to use it")

    def _flush(self, number: int, length: int) -> None:
        if self._sync:
            self._memory.flush(number * self._slot_bytes, length)


def key_text(key: ObjectKey) -> bytes:
    """The text by which a slot names its key. Raises BadRequest when it is too long for a header."""
    text = json.dumps(key_to_json(key), separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > MAX_TEXT_BYTES:
        raise BadRequest(f"the key takes {len(text)} bytes, at most {MAX_TEXT_BYTES} can be stored")
    return text
