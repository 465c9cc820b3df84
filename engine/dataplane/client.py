"""A small client of the data plane, for scripts, tests and benchmarks.

    with SharedKV([(2, blocks, 16, 8, 128)] * layers) as kv, LarderClient("tcp://127.0.0.1:5555", "model") as client:
        client.register_shared(kv)
        hit_tokens = client.lookup(tokens, "request-1")
        client.retrieve(tokens, block_ids, "request-1", end=hit_tokens)
        ...
        client.store(tokens, block_ids, "request-1")
        client.end_session("request-1")

exception     meaning
------------  --------------------------------------------------------------------------
ServerAway    no answer in time; the connection was renewed, the next call starts afresh
Refused       the server answered and did not do it
Miss          retrieve: not everything asked for is stored; the blocks' content is undefined

A client that the server does not know any more (it was restarted) registers again by itself and repeats what failed.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import zmq

from engine.dataplane.client_memory import BlockArrays, SharedKV
from engine.dataplane.client_modes import ClientCopies, LayerFacts, ServerCopies, Transfer
from engine.kv_layout import KVGroup

__all__ = [
    "KVGroup",
    "LarderClient",
    "LarderClientError",
    "LayerFacts",
    "Miss",
    "Refused",
    "ServerAway",
    "SharedKV",
]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

#: The longest single wait inside the server for a lookup.
_LOOKUP_SLICE_S = 5.0

Tokens = Sequence[int]
BlockIds = Sequence[int] | Sequence[Sequence[int]]


class LarderClientError(Exception):
    """Base of what the client raises."""


class ServerAway(LarderClientError):
    """No answer in time."""

    def __init__(self, url: str, seconds: float, operation: str) -> None:
        super().__init__(f"{url} did not answer {operation} within {seconds:g} s")
        self.url, self.seconds, self.operation = url, seconds, operation


class Refused(LarderClientError):
    """The server answered, and did not do what was asked."""


class Miss(LarderClientError):
    """A chunk that was asked for is not stored."""


class LarderClient:
    """One worker (or scheduler) of one model. To be used by one thread; every call waits at most `timeout_s`.

    Block ids are in token order from the range's start: one list, or with several KV groups one list for each. Ranges
    are whole chunks: `end` None means the last whole chunk of `tokens`.
    """

    def __init__(
        self,
        url: str,
        model_name: str = "default",
        *,
        world_size: int = 1,
        worker_id: int = 0,
        instance_id: int | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Connects to a ZMQ address such as tcp://127.0.0.1:5555; `instance_id` None means a random one."""
        self.url, self.timeout_s = url, timeout_s
        self.model_name, self.world_size, self.worker_id = model_name, world_size, worker_id
        self.instance_id = secrets.randbits(62) if instance_id is None else instance_id
        self._context = zmq.Context()
        self._socket = self._connect()
        self._next_id = 0
        self._chunk_size: int | None = None
        self._memory: ServerCopies | ClientCopies | None = None
        self._is_registered = False
        #: Whether the last operation was answered in time; True before the first. Any thread may look.
        self.server_answers = True

    def __enter__(self) -> "LarderClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Unregister, if the server still answers within a second, and disconnect. May be called twice."""
        if self._context.closed:
            return
        try:
            if self._is_registered:
                self.timeout_s = min(self.timeout_s, 1.0)
                self.unregister()
        except LarderClientError:
            pass  # the server forgets silent workers by itself
        finally:
            self._drop_memory()
            self._socket.close()
            self._context.term()

    # ---- registration

    @property
    def chunk_size(self) -> int:
        """Tokens per chunk, asked once."""
        if self._chunk_size is None:
            self._chunk_size = int(self._value("get_chunk_size"))
        return self._chunk_size

    @property
    def known_chunk_size(self) -> int | None:
        """Tokens per chunk, None while nobody has asked for it. Any thread may look."""
        return self._chunk_size

    @property
    def kv_layers(self) -> list[LayerFacts]:
        """The tensors that are registered, in order. Any thread may look."""
        memory = self._memory
        return [] if memory is None else memory.layers

    def register_shared(
        self,
        kv: SharedKV,
        tensors: Sequence[object] | None = None,
        *,
        groups: Sequence[KVGroup] = (),
        hints: Mapping[str, object] | None = None,
    ) -> None:
        """Register tensors that the server copies from and to: `kv.layers`, or other views of its segment.

        No groups means one group of all layers; hints default to axes in the order NHD. Raises Refused.
        """
        views = kv.layers if tensors is None else tensors
        self._register_as(ServerCopies(self, kv, views, groups, {"kv_layout": "NHD"} if hints is None else hints))

    def register_arrays(self, tensors: Sequence[object], *, kv_layout: str = "NHD", dtype: str | None = None) -> None:
        """Register tensors in memory of this process, which this client copies from and to by itself.

        Bytes go through the server's shared pool, or inside messages where it cannot be mapped. `dtype` names the
        torch dtype of arrays that numpy sees as integers. Raises Refused, ValueError.
        """
        self._register_as(ClientCopies(self, BlockArrays(tensors, kv_layout, dtype)))

    def unregister(self) -> None:
        """Forget the tensors, here and at the server."""
        memory, self._memory = self._memory, None
        self._is_registered = False
        if memory is not None:
            try:
                self.call(memory.unregistration, self.instance_id)
            finally:
                memory.close()

    def _register_as(self, memory: ServerCopies | ClientCopies) -> None:
        self.unregister()
        memory.register()
        self._memory, self._is_registered = memory, True

    def _registered(self) -> ServerCopies | ClientCopies:
        """The registered memory; registers it again when the last attempt to do so failed."""
        if self._memory is None:
            raise Refused("no KV tensors are registered")
        if not self._is_registered:
            self._chunk_size = None
            self._memory.register()
            self._is_registered = True
        return self._memory

    def _was_forgotten(self) -> bool:
        """Whether the server had lost the registration; it has it again then."""
        return self._memory is not None and not self.ping()

    def _drop_memory(self) -> None:
        if self._memory is not None:
            self._memory.close()
        self._memory, self._is_registered = None, False

    # ---- operations

    def ping(self) -> bool:
        """Whether the server knew this client. If it did not, and tensors are registered, it knows them again now."""
        try:
            self.call("ping", self.instance_id)
            return True
        except Refused:
            self._is_registered = False
        if self._memory is not None:
            self._registered()
        return False

    def lookup(
        self, tokens: Tokens, request_id: str, *, end: int | None = None, cache_salt: str = "", num_kv_readers: int = 1
    ) -> int:
        """How many of the first tokens are stored; they stay until retrieved, freed, or the lease ends."""
        key = self._key(tokens, 0, len(tokens) if end is None else end, request_id, cache_salt, num_kv_readers, None)
        hit = self._lookup(key, request_id, num_kv_readers)
        if hit == 0 and self._was_forgotten():
            hit = self._lookup(key, request_id, num_kv_readers)
        return hit * self.chunk_size

    def _lookup(self, key: Mapping[str, object], request_id: str, readers: int) -> int:
        deadline = time.monotonic() + self.timeout_s
        self.call("lookup", key, readers)
        while time.monotonic() < deadline:
            wait_s = min(_LOOKUP_SLICE_S, self.timeout_s / 2)
            chunks = self.call("wait_prefetch_status", request_id, wait_s)
            if chunks is not None:
                return int(chunks)
        raise ServerAway(self.url, self.timeout_s, "wait_prefetch_status")

    def store(
        self,
        tokens: Tokens,
        block_ids: BlockIds,
        request_id: str,
        *,
        start: int = 0,
        end: int | None = None,
        cache_salt: str = "",
    ) -> None:
        """Store the chunks of tokens[start:end] that are not stored yet. Raises Refused.

        After ServerAway the server may still be reading the blocks.
        """
        request = self._transfer(tokens, block_ids, start, end, request_id, cache_salt)
        if request.chunks and not self._attempt(lambda memory: memory.store(request)):
            raise Refused(f"{request.chunks} chunks from token {start} of {request_id!r} were not stored")

    def retrieve(
        self,
        tokens: Tokens,
        block_ids: BlockIds,
        request_id: str,
        *,
        start: int = 0,
        end: int | None = None,
        skip_first_tokens: int = 0,
        cache_salt: str = "",
    ) -> None:
        """Fill the blocks of tokens[start:end], all or none. Raises Miss.

        The whole blocks within the first `skip_first_tokens` of the range are left as they are.
        """
        request = self._transfer(tokens, block_ids, start, end, request_id, cache_salt)
        if request.chunks and not self._attempt(lambda memory: memory.retrieve(request, skip_first_tokens)):
            raise Miss(f"not all of {request.chunks} chunks from token {start} of {request_id!r} are stored")

    def _attempt(self, transfer: Callable[[ServerCopies | ClientCopies], bool | None]) -> bool:
        """Run a transfer, and once more when it was not done because the server had lost the registration."""
        done = transfer(self._registered())
        if not done and self._was_forgotten():
            done = transfer(self._registered())
        return done is not False

    def free(
        self,
        tokens: Tokens,
        request_id: str,
        *,
        start: int = 0,
        end: int | None = None,
        cache_salt: str = "",
        num_kv_readers: int = 1,
    ) -> None:
        """Give back what `lookup` promised for tokens[start:end], and will not be retrieved."""
        stop = len(tokens) if end is None else end
        self.call(
            "free_lookup_locks",
            self._key(tokens, start, stop, request_id, cache_salt, num_kv_readers, None),
            num_kv_readers,
        )

    def end_session(self, request_id: str) -> None:
        """The request is over; workers may still retrieve what was looked up."""
        self.call("end_session", request_id)

    def clear(self, *, force: bool = False) -> None:
        """Drop all that is stored; without `force` what is in use stays."""
        self.call("clear", force)

    # ---- messages

    def call(self, operation: str, *parameters: object) -> Any:
        """The value of any operation's answer, None where it has none. Raises ServerAway, Refused."""
        named, values = self._request(operation, parameters)
        answer = _decode(values[0]) if values else None
        if named != operation:
            raise Refused(f"{self.url} refused {operation}: {answer}")
        return answer

    def _value(self, operation: str) -> Any:
        value = self.call(operation)
        if value is None:
            raise Refused(f"{self.url} answered {operation} without a value")
        return value

    def _request(self, operation: str, parameters: Sequence[object]) -> tuple[str, list[bytes]]:
        """The operation that the answer names, which is another one in a refusal, and the frames after it."""
        self._next_id += 1
        head = [_encode(self._next_id), _encode(operation)]
        deadline = time.monotonic() + self.timeout_s
        try:
            self._socket.send_multipart(head + [_encode(parameter) for parameter in parameters], zmq.NOBLOCK)
            while True:
                left_ms = int(1000 * (deadline - time.monotonic()))
                if left_ms <= 0 or not self._socket.poll(left_ms):
                    raise zmq.Again
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                if len(frames) >= 2 and frames[0] == head[0]:
                    self.server_answers = True
                    return _decode(frames[1]), frames[2:]
        except zmq.Again as error:
            self.server_answers = False
            self._reconnect()
            raise ServerAway(self.url, self.timeout_s, operation) from error

    def _connect(self) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self.url)
        return socket

    def _reconnect(self) -> None:
        """A new connection, so that what could not be delivered in time is not delivered later."""
        self._socket.close()
        self._socket = self._connect()

    def _key(
        self, tokens: Tokens, start: int, end: int, request_id: str, cache_salt: str, readers: int, worker: int | None
    ) -> dict[str, object]:
        return {
            "model_name": self.model_name, "world_size": self.world_size, "worker_id": worker,
            "token_ids": [int(token) for token in tokens], "start": start, "end": end, "request_id": request_id,
            "cache_salt": cache_salt, "request_configs": None, "num_kv_readers": readers,
        }  # fmt: skip

    def _transfer(
        self, tokens: Tokens, block_ids: BlockIds, start: int, end: int | None, request_id: str, cache_salt: str
    ) -> Transfer:
        stop = len(tokens) // self.chunk_size * self.chunk_size if end is None else end
        key = self._key(tokens, start, stop, request_id, cache_salt, 1, self.worker_id)
        return Transfer(key, _per_group(block_ids), max(0, stop - start) // self.chunk_size)


def _per_group(block_ids: BlockIds) -> list[list[int]]:
    flat: list[int] = []
    groups: list[list[int]] = []
    for item in block_ids:
        if isinstance(item, Sequence):
            groups.append([int(block_id) for block_id in item])
        else:
            flat.append(int(item))
    return groups or [flat]
