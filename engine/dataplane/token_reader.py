"""Token ids off the wire, decoded once.

A client sends all tokens of a request with every message about it: lookup, prepare, commit, free, and again for each
range as the request grows. The bytes last seen for a request are kept beside the decoded tokens: equal bytes need no
decoding, and bytes that only grew need it for the new tail. Comparing 2048 tokens takes 0.2 us, decoding them 45.
"""

import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from engine.cache_request import MAX_TOKENS
from engine.errors import BadRequest

_decode_ints = msgspec.msgpack.Decoder(list[int]).decode


@dataclass(frozen=True, slots=True)
class _Seen:
    count: int
    body: bytes
    tokens: "array[int]"

    @property
    def cost_bytes(self) -> int:
        return len(self.body) + 4 * self.count


class TokenReader:
    """Decodes token arrays, remembering those of recent requests. Any thread may call.

    The arrays handed out are shared: nobody may change them. Whose request id it is does not matter, since bytes are
    compared before anything is reused.
    """

    def __init__(self, max_requests: int = 1024, max_bytes: int = 64 << 20) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def read(self, request_id: str, raw: bytes) -> "array[int]":
        """The tokens in `raw`, a msgpack array of integers in [0, 2**32). Raises BadRequest."""
        count, start = _array_header(raw)
        if count > MAX_TOKENS:
            raise BadRequest(f"{count} token ids, at most {MAX_TOKENS} are allowed")
        with self._lock:
            seen = self._seen.get(request_id)
        if seen is not None and count >= seen.count and raw.startswith(seen.body, start):
            if count == seen.count:
                return seen.tokens
            tokens = seen.tokens[:]
            tokens.extend(_decode(count - seen.count, raw[start + len(seen.body) :]))
        else:
            tokens = _decode(count, raw[start:])
        self._remember(request_id, _Seen(count, raw[start:], tokens))
        return tokens

    def forget(self, request_id: str) -> None:
        """The request is over; its tokens need not be kept."""
        with self._lock:
            self._drop(request_id)

    def _remember(self, request_id: str, seen: _Seen) -> None:
        with self._lock:
            self._drop(request_id)
            if seen.cost_bytes > self._max_bytes:
                return
            self._seen[request_id] = seen
            self._held_bytes += seen.cost_bytes
            while len(self._seen) > self._max_requests or self._held_bytes > self._max_bytes:
                self._drop(next(iter(self._seen)))

    def _drop(self, request_id: str) -> None:
        seen = self._seen.pop(request_id, None)
        if seen is not None:
            self._held_bytes -= seen.cost_bytes


def _array_header(raw: bytes) -> tuple[int, int]:
    """Number of elements of a msgpack array, and where the first one begins."""
    kind = raw[0] if raw else 0
    if 0x90 <= kind <= 0x9F:
        return kind & 0x0F, 1
    if kind == 0xDC and len(raw) >= 3:
        return int.from_bytes(raw[1:3], "big"), 3
    if kind == 0xDD and len(raw) >= 5:
        return int.from_bytes(raw[1:5], "big"), 5
    raise BadRequest("token_ids must be an array of integers")


def _decode(count: int, body: bytes) -> "array[int]":
    try:
        return array("I", _decode_ints(b"\xdd" + count.to_bytes(4, "big") + body))
    except (msgspec.DecodeError, OverflowError, RecursionError) as error:
        raise BadRequest(f"token_ids must be integers in 0..{2**32 - 1}: {str(error)[:200]}") from None
