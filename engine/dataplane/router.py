"""The ZMQ socket of the data plane: bounded in every direction, and never blocking."""

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import zmq
from zmq.utils.garbage import gc as zero_copy_thread

from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.wire import Frame
from engine.errors import StartError

logger = logging.getLogger(__name__)

#: identity, request id, operation, and the parameters of the longest operation, with some to spare.
MAX_FRAMES = 3 + 16
#: Larger frames are handed over without a copy, in both directions.
LARGE_FRAME_BYTES = 64 * 1024
#: How long closing waits for replies to leave.
LINGER_MS = 500
KEEPALIVE_IDLE_S = 60
#: The tracker of what was copied by the socket.
SENT = zmq.MessageTracker()


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived. `identity` names the connection, not the client: it changes on reconnect."""

    identity: bytes
    request_id: bytes
    operation: bytes
    parameters: Sequence[Frame]

    @property
    def nbytes(self) -> int:
        """Of all frames but the identity, which is ours."""
        return len(self.request_id) + len(self.operation) + sum(map(len, self.parameters))


class Router:
    """Owned by one thread at a time, after `open`."""

    def __init__(self, host: str, port: int, limits: DataPlaneLimits) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._used_zero_copy = False
        self.socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, limits.max_message_bytes),
            (zmq.SNDHWM, limits.high_water_mark),
            (zmq.RCVHWM, limits.high_water_mark),
            (zmq.LINGER, LINGER_MS),
            (zmq.HEARTBEAT_IVL, int(limits.heartbeat_interval_s * 1000)),
            (zmq.HEARTBEAT_TIMEOUT, int(limits.heartbeat_timeout_s * 1000)),
            (zmq.HEARTBEAT_TTL, int(limits.heartbeat_timeout_s * 1000)),
            (zmq.TCP_MAXRT, int(limits.heartbeat_timeout_s * 1000)),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S),
        ):
            self.socket.setsockopt(option, value)
        try:
            self.port = self._bind(host, port)
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise StartError(f"data plane: cannot listen on {host}:{port}: {error}") from None

    def _bind(self, host: str, port: int) -> int:
        """The port listened on; `port` 0 takes a free one."""
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        numeric = str(address[0])
        if family == socket.AF_INET6:
            self.socket.setsockopt(zmq.IPV6, 1)
            numeric = f"[{numeric}]"
        self.socket.bind(f"tcp://{numeric}:{port or '*'}")
        return int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def receive(self) -> Call | None:
        """The next request, None when there is none now. Frames beyond any operation's number are dropped."""
        frames: list[zmq.Frame] = []
        try:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        while True:
            if len(frames) < MAX_FRAMES:
                frames.append(frame)
            if not frame.more:
                break
            frame = self.socket.recv(copy=False)
        head = [part.bytes for part in frames[:3]]
        head += [b""] * (3 - len(head))
        return Call(head[0], head[1], head[2], [_content(part) for part in frames[3:]])

    def send(self, call: Call, operation: bytes, value: bytes | None = None) -> zmq.MessageTracker | None:
        """Answer `call`; None when the client is gone or does not read. The tracker tells when it is sent."""
        socket, more = self.socket, zmq.NOBLOCK | zmq.SNDMORE
        try:
            socket.send(call.identity, more)
            socket.send(call.request_id, more)
            socket.send(operation, zmq.NOBLOCK if value is None else more)
            if value is None:
                return SENT
            if len(value) < LARGE_FRAME_BYTES:
                socket.send(value, zmq.NOBLOCK)
                return SENT
            self._used_zero_copy = True
            return socket.send(value, zmq.NOBLOCK, copy=False, track=True)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                logger.warning("data plane: a reply could not be sent: %s", error)
            return None

    def close(self) -> None:
        """Gives unsent replies half a second, then everything back."""
        self.socket.close()
        self._context.term()
        if self._used_zero_copy:
            zero_copy_thread.stop()


def _content(frame: zmq.Frame) -> Frame:
    return frame.bytes if len(frame) < LARGE_FRAME_BYTES else frame.buffer
