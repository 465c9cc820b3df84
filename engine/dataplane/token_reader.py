"""Token ids off the wire, decoded once.

A client sends all tokens of a request with every message about it: lookup, prepare, commit, free, and again for each
range as the request grows. The bytes last seen are kept beside the decoded tokens:

the array in a message                    costs, 2048 tokens
----------------------------------------  -------------------------------------------------
is byte for byte one of those kept        a comparison (0.3 us); it is not even scanned
begins with that of the same request      scanning (12 us), decoding the tail
is new                                    scanning (12 us), decoding (45 us)
"""

import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from engine.cache_request import MAX_TOKENS
from engine.errors import BadRequest

#: The map key in front of the array, as every msgpack encoder writes it.
_FIELD = msgspec.msgpack.encode("token_ids")
#: So many bytes of an array, its length among them, tell which one it may be.
_SIGNATURE_BYTES = 64

_decode_ints = msgspec.msgpack.Decoder(list[int]).decode


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """An array as it was sent, `body_start` being the length of its header, and its tokens."""

    raw: bytes
    body_start: int
    tokens: "array[int]"

    @property
    def cost_bytes(self) -> int:
        return len(self.raw) + 4 * len(self.tokens)


class TokenReader:
    """Decodes token arrays, remembering those of recent requests. Any thread may call.

    The arrays handed out are shared: nobody may change them. Whose request id it is does not matter, since bytes are
    compared before anything is reused.
    """

    def __init__(self, max_requests: int = 1024, max_bytes: int = 64 << 20) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._of_request: OrderedDict[str, KnownTokens] = OrderedDict()
        self._by_signature: dict[bytes, KnownTokens] = {}
        self._held_bytes = 0
        self._lock = threading.Lock()

    def find(self, message: bytes) -> tuple[int, KnownTokens] | None:
        """A known array that stands after a key `token_ids` in `message`, and where; None when none is found.

        Whether that place is where the message's own `token_ids` lie is for the caller to find out.
        """
        start = message.find(_FIELD) + len(_FIELD)
        known = self._by_signature.get(message[start : start + _SIGNATURE_BYTES])
        if known is None or not message.startswith(known.raw, start):
            return None
        return start, known

    def read(self, request_id: str, raw: bytes) -> "array[int]":
        """The tokens in `raw`, a msgpack array of integers in [0, 2**32). Raises BadRequest."""
        count, start = _array_header(raw)
        if count > MAX_TOKENS:
            raise BadRequest(f"{count} token ids, at most {MAX_TOKENS} are allowed")
        with self._lock:
            known = self._of_request.get(request_id)
        before = 0 if known is None else len(known.tokens)
        if known is not None and count >= before and raw.startswith(known.raw[known.body_start :], start):
            tokens = known.tokens[:]
            tokens.extend(_decode(count - before, raw[start + len(known.raw) - known.body_start :]))
        else:
            tokens = _decode(count, raw[start:])
        self.remember(request_id, KnownTokens(raw, start, tokens))
        return tokens

    def remember(self, request_id: str, known: KnownTokens) -> None:
        """These are the latest tokens of the request."""
        with self._lock:
            if self._of_request.get(request_id) is known:
                self._of_request.move_to_end(request_id)
                return
            self._drop(request_id)
            if known.cost_bytes > self._max_bytes:
                return
            self._of_request[request_id] = known
            self._by_signature[known.raw[:_SIGNATURE_BYTES]] = known
            self._held_bytes += known.cost_bytes
            while len(self._of_request) > self._max_requests or self._held_bytes > self._max_bytes:
                self._drop(next(iter(self._of_request)))

    def _drop(self, request_id: str) -> None:
        known = self._of_request.pop(request_id, None)
        if known is None:
            return
        self._held_bytes -= known.cost_bytes
        signature = known.raw[:_SIGNATURE_BYTES]
        if self._by_signature.get(signature) is known:
            del self._by_signature[signature]


def array_length(message: bytes) -> int | None:
    """How many token ids `message` names, by the header of their array; None when it cannot be told at a glance.

    Where the name of the field occurs once, that is where the field is, whatever else the message may say.
    """
    name = _FIELD[1:]
    start = message.find(name)
    if start < 0 or message.find(name, start + 1) >= 0:
        return None
    start += len(name)
    try:
        return _array_header(message[start : start + 5])[0]
    except BadRequest:
        return None


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
