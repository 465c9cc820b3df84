"""What each operation does: parameters in, engine verb, answer out, and the safe answer when it fails.

operation                              parameters                           answer                 when it fails
-------------------------------------  -----------------------------------  ---------------------  ---------------
register_kv_cache                      instance, tensors, model, world,     void                   refusal
                                       engine, hints, groups
register_kv_cache_engine_driven_...    registration                         {shm_name, pool_size}  refusal
unregister_...                         instance                             void                   void
store, retrieve                        key, instance, blocks, event[, skip] [handle, ok]           [b"", false]
prepare_store                          key, instance                        {context}              nothing wanted
commit_store                           key, instance, data                  bool                   false
prepare_retrieve                       key, instance                        {success, data, ...}   success false
commit_retrieve                        key, instance                        bool                   false
lookup, free_lookup_locks              key, tp_size                         void                   void
query_prefetch_status, wait_...        request id[, seconds]                chunks, void = wait    0
end_session, clear, report_block_...   ...                                  void                   void
get_chunk_size, get_experimental,      -                                    value                  value
noop, ping
subscribe_kv_events                    anything                             void = end of stream   void

A refusal answers with the operation "error", which the client reports at once. Every other operation is refused.
The event handle of a store or retrieve is always empty: the copies are done when the answer leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from engine.dataplane import wire
from engine.dataplane.token_reader import TokenReader, array_length
from engine.dataplane.wire import Frame, encode
from engine.device.tensors import open_kv_tensors
from engine.errors import BadRequest

if TYPE_CHECKING:
    from engine.engine import Engine

#: With more tokens than this, a key is decoded and hashed off the I/O thread; so is every key frame this long.
LARGE_KEY_TOKENS = 16 * 1024
LARGE_KEY_BYTES = 48 * 1024
#: A session of more chunks than this is ended off the I/O thread: all its objects are made recent, of every rank.
LONG_SESSION_CHUNKS = 64
#: All frames of a request together, KV bytes left out: what can be decoded without holding anybody up, and room for
#: the tokens and block ids of the longest request.
MAX_REQUEST_BYTES = 1 << 20
MAX_KEY_REQUEST_BYTES = 16 << 20
_EMPTY_DATA_BYTES = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer that makes the client report a failure at once."""

    text: str


@dataclass(frozen=True, slots=True)
class Parked:
    """No answer yet: the lookup of `request_id` still runs, and the client waits up to `wait_s` for it."""

    request_id: str
    wait_s: float


Frames = tuple[bytes, ...]
Answer = Frames | Refusal | Parked
Failure = Frames | Refusal
Parameters = Sequence[Frame]

VOID: Frames = ()
_FALSE: Frames = (encode(False),)
_ZERO: Frames = (encode(0),)
_NOT_COPIED: Frames = (encode((b"", False)),)
_COPIED: Frames = (encode((b"", True)),)
_NOTHING_WANTED: Frames = (encode({"context": {"slots": [], "chunk_indices": []}}),)
_NOTHING_FOUND: Frames = (encode({"success": False, "data": b"", "context": {}}),)


class Copies(Enum):
    """When an operation moves KV bytes, and so belongs on a transfer thread."""

    NEVER = 0
    ALWAYS = 1
    WITH_DATA = 2
    IN_MESSAGES = 3


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table above. `ordered`: keeps its place behind earlier copies of the same client."""

    run: Callable[[Parameters], Answer]
    parameters: range
    failure: Frames | None
    ordered: bool = True
    copies: Copies = Copies.NEVER
    has_key: bool = False
    is_long: Callable[[Parameters], bool] | None = None

    def kv_bytes(self, parameters: Parameters) -> int:
        """Length of the frame with KV bytes, 0 when there is none."""
        return len(parameters[2]) if self.copies is Copies.WITH_DATA else 0

    @property
    def max_request_bytes(self) -> int:
        """Bound of the frames without KV bytes."""
        return MAX_KEY_REQUEST_BYTES if self.has_key else MAX_REQUEST_BYTES

    def failed(self, text: str) -> Failure:
        """The safe answer; `text` is for refusals."""
        return Refusal(text) if self.failure is None else self.failure


class Operations:
    """The operations on one engine. Any thread may run them."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._tokens = TokenReader()
        self._table: Mapping[str, Operation] = _control(self) | _lookups(self) | _transfers(self)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._table)

    def get(self, name: str) -> Operation | None:
        """The operation of that name; None when there is none here."""
        return self._table.get(name)

    def needs_thread(self, operation: Operation, parameters: Parameters) -> bool:
        """Whether it copies KV bytes or has so many tokens that the I/O thread must not do it."""
        if operation.has_key and _has_many_tokens(parameters[0]):
            return True
        if operation.is_long is not None and operation.is_long(parameters):
            return True
        if operation.copies is Copies.NEVER:
            return False
        if operation.copies is Copies.WITH_DATA:
            return operation.kv_bytes(parameters) > _EMPTY_DATA_BYTES
        return operation.copies is Copies.ALWAYS or self._travels_in_messages(parameters[1])

    def message_bytes(self, operation: Operation, parameters: Parameters) -> int:
        """KV bytes that the operation's answer would carry at most. Raises BadRequest."""
        if operation.copies is not Copies.IN_MESSAGES or not self._travels_in_messages(parameters[1]):
            return 0
        return self._engine.message_bytes(*self._key_and_instance(parameters))

    def _travels_in_messages(self, instance_frame: Frame) -> bool:
        try:
            return self._engine.answers_in_messages(wire.decode_int64(instance_frame))
        except BadRequest:
            return False

    # ---- control

    def get_chunk_size(self, parameters: Parameters) -> Answer:
        return (encode(self._engine.chunk_size),)

    def get_experimental(self, parameters: Parameters) -> Answer:
        return (encode([]),)

    def noop(self, parameters: Parameters) -> Answer:
        return (encode("OK"),)

    def ping(self, parameters: Parameters) -> Answer:
        """Fails once for an instance of an earlier boot: only then does its client register again."""
        instance_id: int | None = wire.decode_optional_int64(parameters[0])
        if self._engine.ping(instance_id):
            return (encode(True),)
        return Refusal(f"instance_id {instance_id} not registered")

    def clear(self, parameters: Parameters) -> Answer:
        """Old clients send no parameter and mean what is not in use."""
        self._engine.clear(force=wire.decode_bool(parameters[0]) if parameters else False)
        return VOID

    def report_block_allocation(self, parameters: Parameters) -> Answer:
        wire.decode_int64(parameters[0])
        records, blocks = wire.decode_allocations(parameters[2])
        self._engine.report_block_allocation(wire.decode_name(parameters[1]), records, blocks)
        return VOID

    def subscribe_kv_events(self, parameters: Parameters) -> Answer:
        """There is no event stream: it ends where it begins."""
        return VOID

    def register_engine_driven(self, parameters: Parameters) -> Answer:
        pool = self._engine.register_engine_driven(wire.decode_registration(parameters[0]))
        return (encode({"shm_name": pool.shm_name, "pool_size": pool.pool_size}),)

    def unregister_engine_driven(self, parameters: Parameters) -> Answer:
        self._engine.unregister_engine_driven(wire.decode_int64(parameters[0]))
        return VOID

    def register_kv_cache(self, parameters: Parameters) -> Answer:
        instance_id, model_name = wire.decode_int64(parameters[0]), wire.decode_name(parameters[2])
        world_size = wire.decode_count(parameters[3])
        wire.decode_name(parameters[4])
        tensors = open_kv_tensors(
            wire.decode_descriptors(parameters[1]),
            wire.decode_groups(parameters[6]),
            wire.decode_layout_hints(parameters[5]),
            self._engine.chunk_size,
        )
        self._engine.register_kv_cache(instance_id, tensors, model_name, world_size)
        return VOID

    def unregister_kv_cache(self, parameters: Parameters) -> Answer:
        self._engine.unregister_kv_cache(wire.decode_int64(parameters[0]))
        return VOID

    # ---- lookup and session

    def lookup(self, parameters: Parameters) -> Answer:
        self._engine.lookup(self._key_with_readers(parameters))
        return VOID

    def free_lookup_locks(self, parameters: Parameters) -> Answer:
        self._engine.free_lookup_locks(self._key_with_readers(parameters))
        return VOID

    def lookup_answer(self, request_id: str) -> Frames | None:
        """Chunks found, which is told once; None while the lookup runs."""
        chunks = self._engine.take_lookup_result(request_id)
        return None if chunks is None else (encode(chunks),)

    def query_prefetch_status(self, parameters: Parameters) -> Answer:
        return self.lookup_answer(wire.decode_name(parameters[0])) or VOID

    def wait_prefetch_status(self, parameters: Parameters) -> Answer:
        request_id: str = wire.decode_name(parameters[0])
        wait_s: float = wire.decode_seconds(parameters[1])
        return self.lookup_answer(request_id) or Parked(request_id, wait_s)

    def end_session(self, parameters: Parameters) -> Answer:
        self._engine.end_session(wire.decode_name(parameters[0]))
        return VOID

    def session_is_long(self, parameters: Parameters) -> bool:
        try:
            tokens = self._engine.session_tokens(wire.decode_name(parameters[0]))
        except BadRequest:
            return False
        return tokens > LONG_SESSION_CHUNKS * self._engine.chunk_size

    # ---- transfers

    def prepare_store(self, parameters: Parameters) -> Answer:
        prepared = self._engine.prepare_store(*self._key_and_instance(parameters))
        if not prepared.shared_memory:
            return (encode({"context": {}}),)
        return (encode({"context": {"slots": prepared.slots, "chunk_indices": prepared.chunk_indices}}),)

    def commit_store(self, parameters: Parameters) -> Answer:
        request, instance_id = self._key_and_instance(parameters)
        return (encode(self._engine.commit_store(request, instance_id, wire.decode_bytes(parameters[2]))),)

    def prepare_retrieve(self, parameters: Parameters) -> Answer:
        prepared = self._engine.prepare_retrieve(*self._key_and_instance(parameters))
        if not prepared.success:
            return _NOTHING_FOUND
        context = {"slots": prepared.slots} if prepared.slots else {}
        return (encode({"success": True, "data": prepared.data, "context": context}),)

    def commit_retrieve(self, parameters: Parameters) -> Answer:
        return (encode(self._engine.commit_retrieve(*self._key_and_instance(parameters))),)

    def store(self, parameters: Parameters) -> Answer:
        request, instance_id = self._key_and_instance(parameters)
        wire.decode_event_handle(parameters[3])
        stored = self._engine.store(request, instance_id, wire.decode_block_ids(parameters[2]))
        return _COPIED if stored else _NOT_COPIED

    def retrieve(self, parameters: Parameters) -> Answer:
        request, instance_id = self._key_and_instance(parameters)
        wire.decode_event_handle(parameters[3])
        block_ids, skip = wire.decode_block_ids(parameters[2]), wire.decode_count(parameters[4])
        return _COPIED if self._engine.retrieve(request, instance_id, block_ids, skip) else _NOT_COPIED

    def _key_and_instance(self, parameters: Parameters) -> tuple[Any, int]:
        return wire.decode_request(parameters[0], self._tokens), wire.decode_int64(parameters[1])

    def _key_with_readers(self, parameters: Parameters) -> Any:
        return wire.decode_request(parameters[0], self._tokens, tp_size=wire.decode_count(parameters[1]))


def _has_many_tokens(key: Frame) -> bool:
    if len(key) <= LARGE_KEY_TOKENS:
        return False
    if len(key) > LARGE_KEY_BYTES:
        return True
    count = array_length(bytes(key))
    return count is None or count > LARGE_KEY_TOKENS


def _control(do: Operations) -> dict[str, Operation]:
    nothing, one = range(1), range(1, 2)
    return {
        "get_chunk_size": Operation(do.get_chunk_size, nothing, None, ordered=False),
        "get_experimental": Operation(do.get_experimental, nothing, None, ordered=False),
        "noop": Operation(do.noop, nothing, None, ordered=False),
        "ping": Operation(do.ping, one, None, ordered=False),
        "clear": Operation(do.clear, range(2), VOID),
        "report_block_allocation": Operation(do.report_block_allocation, range(3, 4), VOID, ordered=False),
        "subscribe_kv_events": Operation(do.subscribe_kv_events, range(16), VOID, ordered=False),
        "register_kv_cache": Operation(do.register_kv_cache, range(7, 8), None),
        "unregister_kv_cache": Operation(do.unregister_kv_cache, one, VOID),
        "register_kv_cache_engine_driven_context": Operation(do.register_engine_driven, one, None),
        "unregister_kv_cache_engine_driven_context": Operation(do.unregister_engine_driven, one, VOID),
    }


def _lookups(do: Operations) -> dict[str, Operation]:
    return {
        "lookup": Operation(do.lookup, range(2, 3), VOID, has_key=True),
        "free_lookup_locks": Operation(do.free_lookup_locks, range(2, 3), VOID, has_key=True),
        "query_prefetch_status": Operation(do.query_prefetch_status, range(1, 2), _ZERO),
        "wait_prefetch_status": Operation(do.wait_prefetch_status, range(2, 3), _ZERO),
        "end_session": Operation(do.end_session, range(1, 2), VOID, is_long=do.session_is_long),
    }


def _transfers(do: Operations) -> dict[str, Operation]:
    def transfer(run: Callable[[Parameters], Answer], count: int, failure: Frames, copies: Copies) -> Operation:
        return Operation(run, range(count, count + 1), failure, copies=copies, has_key=True)

    return {
        "prepare_store": transfer(do.prepare_store, 2, _NOTHING_WANTED, Copies.NEVER),
        "commit_store": transfer(do.commit_store, 3, _FALSE, Copies.WITH_DATA),
        "prepare_retrieve": transfer(do.prepare_retrieve, 2, _NOTHING_FOUND, Copies.IN_MESSAGES),
        "commit_retrieve": transfer(do.commit_retrieve, 2, _FALSE, Copies.NEVER),
        "store": transfer(do.store, 4, _NOT_COPIED, Copies.ALWAYS),
        "retrieve": transfer(do.retrieve, 5, _NOT_COPIED, Copies.ALWAYS),
    }
