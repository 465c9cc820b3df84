"""A client that speaks frames, so that tests may say what no proper client would."""

from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


class RawClient:
    """One DEALER connection. Replies are matched by request id, as the wire protocol wants it."""

    def __init__(self, port: int, timeout_s: float = 20.0, *, unread_messages: int = 1000) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, unread_messages)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self._timeout_s = timeout_s
        self._next_id = 0
        self._replies: dict[bytes, list[bytes]] = {}

    def submit(self, operation: int | str, *parameters: Any) -> bytes:
        """Sends a request, each parameter encoded; returns its request id."""
        return self.submit_frames(encode(operation), *(encode(parameter) for parameter in parameters))

    def submit_frames(self, *frames: bytes) -> bytes:
        """Sends raw frames after a request id of ours."""
        request_id = encode(self._next_id)
        self._next_id += 1
        self.socket.send_multipart([request_id, *frames])
        return request_id

    def reply(self, request_id: bytes) -> list[bytes]:
        """The frames of the reply, without the request id. AssertionError when none comes."""
        while request_id not in self._replies:
            assert self.socket.poll(int(self._timeout_s * 1000)), f"no reply to {request_id!r}"
            frames = self.socket.recv_multipart()
            self._replies[frames[0]] = frames[1:]
        return self._replies.pop(request_id)

    def receive_next(self) -> list[bytes]:
        """The next reply of all, request id first."""
        assert self.socket.poll(int(self._timeout_s * 1000)), "no reply"
        return self.socket.recv_multipart()

    def has_reply(self) -> bool:
        return bool(self.socket.poll(0))

    def call(self, operation: int | str, *parameters: Any) -> Any:
        """The value answered; None for void. AssertionError when the reply names another operation."""
        name, *values = self.reply(self.submit(operation, *parameters))
        assert name == encode(operation), f"{operation} was answered by {decode(name)!r}: {values}"
        assert len(values) <= 1
        return decode(values[0]) if values else None

    def refusal(self, operation: int | str, *parameters: Any) -> str:
        """The text of a refusal. AssertionError when the operation was not refused."""
        name, text = self.reply(self.submit(operation, *parameters))
        assert decode(name) == "error"
        return str(decode(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
        self._context.term()


def key(**changes: Any) -> dict[str, Any]:
    """A cache key as 0.5.6 sends it: two chunks of 16 tokens, worker 0 of 1."""
    return {
        "model_name": "meta/llama",
        "world_size": 1,
        "worker_id": 0,
        "token_ids": list(range(40)),
        "start": 0,
        "end": 32,
        "request_id": "req-1",
        "cache_salt": "",
        "request_configs": None,
        "num_kv_readers": 1,
        **changes,
    }
