"""What is remembered of a request between its operations: token hashes and the result of its lookup.

Clients send all tokens of a request with every operation. A session keeps the chunk hashes of the tokens it has seen,
so that only new chunks are hashed. A request id is never trusted: unless the tokens begin with those of the session,
all chunks are hashed anew. Hashes depend on tokens alone, so one session may serve several models and salts.
"""

import threading
import time
from array import array
from collections import OrderedDict
from typing import Protocol

from engine.cache_request import CacheRequest
from engine.object_key import ObjectKey
from engine.token_hasher import TokenHasher

#: Bounds of the table; beyond them the sessions idle for longest are dropped.
MAX_SESSIONS = 65_536
MAX_REMEMBERED_TOKENS = 64 * 1024 * 1024
#: Most sessions dropped in one hold of the lock.
SLICE = 256


class PendingLookup(Protocol):
    """A lookup whose answer comes later: `chunks` is None until then."""

    chunks: int | None

    def cancel(self) -> None:
        """Nobody wants the answer any more."""


class Session:
    """Tokens and hashes are replaced, never changed in place, so that readers need no lock."""

    __slots__ = ("hashes", "last_request", "lookup_result", "tokens", "used_at")

    def __init__(self) -> None:
        self.tokens: array[int] = array("I")
        self.hashes: list[bytes] = []
        #: Chunks found by the last lookup, or the lookup under way; None when there was none or it was consumed.
        self.lookup_result: int | PendingLookup | None = None
        self.last_request: CacheRequest | None = None
        self.used_at = 0.0


class Sessions:
    """request id -> session. Thread-safe; hashing happens outside the lock."""

    def __init__(self, hasher: TokenHasher, ttl_s: float) -> None:
        self._hasher, self._ttl_s = hasher, ttl_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def hashes(self, request: CacheRequest, chunks: int) -> list[bytes]:
        """Hashes of the first `chunks` chunks (at most as many as are whole); not to be changed by the caller."""
        chunks = min(chunks, len(request.tokens) // self._hasher.chunk_size)
        with self._lock:
            session = self._touch(request.request_id)
            tokens, hashes = known = session.tokens, session.hashes
            session.last_request = request
        if not _continues(tokens, request.tokens):
            tokens, hashes = request.tokens, []
        elif len(request.tokens) > len(tokens):
            tokens = request.tokens
        if len(hashes) < chunks:
            hashes = hashes[:]
            self._hasher.extend(hashes, request.tokens, chunks)
        if known[0] is not tokens or known[1] is not hashes:
            self._remember(session, request.request_id, tokens, hashes)
        return hashes[:chunks]

    def object_keys(self, request: CacheRequest, chunks: range) -> list[ObjectKey]:
        """Keys of the objects of `chunks` for the request's own worker."""
        rank = request.kv_rank()
        digests = self.hashes(request, chunks.stop)[chunks.start : chunks.stop]
        return [ObjectKey(digest, request.model_name, rank, 0, request.cache_salt) for digest in digests]

    def set_lookup_result(self, request_id: str, result: int | PendingLookup) -> None:
        """Remembers how many chunks a lookup found, or that it is under way, in place of an earlier result."""
        with self._lock:
            self._touch(request_id).lookup_result = result

    def take_lookup_result(self, request_id: str) -> int | None:
        """The result, once; 0 when there is none; None while the lookup is under way."""
        with self._lock:
            session = self._sessions.get(request_id)
            if session is None or session.lookup_result is None:
                return 0
            result = session.lookup_result
            chunks = result if isinstance(result, int) else result.chunks
            if chunks is not None:
                session.lookup_result = None
            return chunks

    def drop_lookup(self, request_id: str) -> bool:
        """Forgets the result, and calls off the lookup if it is under way; whether there was one that took its time."""
        with self._lock:
            session = self._sessions.get(request_id)
            if session is None:
                return False
            result, session.lookup_result = session.lookup_result, None
        return _cancel(result)

    def end(self, request_id: str) -> Session | None:
        """Forgets a session and returns it, if there was one; a lookup of it that is under way is called off."""
        with self._lock:
            session = self._forget(request_id)
        if session is not None:
            _cancel(session.lookup_result)
        return session

    def tokens_of(self, request_id: str) -> int:
        """How many tokens are remembered of a request; 0 for an unknown one."""
        session = self._sessions.get(request_id)
        return len(session.tokens) if session is not None else 0

    def expire(self) -> int:
        """Drops sessions idle for longer than their time; returns how many."""
        before, dropped = time.monotonic() - self._ttl_s, 0
        while True:
            with self._lock:
                idle = 0
                while idle < SLICE and self._sessions:
                    request_id, session = next(iter(self._sessions.items()))
                    if session.used_at > before:
                        return dropped + idle
                    self._forget(request_id)
                    idle += 1
                if not self._sessions:
                    return dropped + idle
            dropped += idle

    def _touch(self, request_id: str) -> Session:
        session = self._sessions.get(request_id)
        if session is None:
            session = self._sessions[request_id] = Session()
            if len(self._sessions) > MAX_SESSIONS:
                self._forget(next(iter(self._sessions)))
        else:
            self._sessions.move_to_end(request_id)
        session.used_at = time.monotonic()
        return session

    def _remember(self, session: Session, request_id: str, tokens: "array[int]", hashes: list[bytes]) -> None:
        with self._lock:
            if self._sessions.get(request_id) is not session:
                return
            self._tokens += len(tokens) - len(session.tokens)
            session.tokens, session.hashes = tokens, hashes
            while self._tokens > MAX_REMEMBERED_TOKENS and len(self._sessions) > 1:
                self._forget(next(iter(self._sessions)))

    def _forget(self, request_id: str) -> Session | None:
        session = self._sessions.pop(request_id, None)
        if session is not None:
            self._tokens -= len(session.tokens)
        return session


def _cancel(result: int | PendingLookup | None) -> bool:
    """Whether it was a lookup that took its time."""
    if result is None or isinstance(result, int):
        return False
    result.cancel()
    return True


def _continues(known: "array[int]", tokens: "array[int]") -> bool:
    """Whether `tokens` begin with `known`, or are the beginning of `known`."""
    if known is tokens:
        return True
    common = min(len(known), len(tokens))
    return (known if len(known) == common else known[:common]) == (tokens if len(tokens) == common else tokens[:common])
