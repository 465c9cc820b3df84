"""The data plane as seen from outside: where it is, and whether it answers.

It speaks ZMQ with msgpack frames (id, operation, parameters); `noop` asks for nothing, so any answer is a sign of life.
"""

import ipaddress
import time
from collections.abc import Mapping
from typing import Any

from cli.connection import Address
from cli.errors import Unreachable


class NotKnown(Exception):
    """There is no address to ask; the text says why."""


def address_in(conf: Mapping[str, Any], server: Address) -> str:
    """Where /conf says the data plane is, seen from here. Raises NotKnown."""
    settings = conf.get("mp", {})
    host, port = str(settings.get("host", "")), settings.get("port")
    if not host or not port:
        raise NotKnown("the server does not say where it listens")
    if host in ("0.0.0.0", "::", "*"):
        host = server.host
    elif _is_loopback(host) and not (_is_loopback(server.host) or server.socket_path):
        raise NotKnown(f"it listens on {host} of the server's own machine")
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def ping(address: str, timeout_s: float) -> float:
    """Milliseconds to an answer of any kind. Raises Unreachable."""
    import msgspec
    import zmq

    question = [msgspec.msgpack.encode(1), msgspec.msgpack.encode("noop")]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise Unreachable(f"{address}: {error.strerror or error}") from error
        began = time.perf_counter()
        socket.send_multipart(question)
        if not socket.poll(int(timeout_s * 1000)):
            raise Unreachable(f"{address}: the data plane did not answer within {timeout_s:g} s")
        frames = socket.recv_multipart()
        took_ms = (time.perf_counter() - began) * 1000
        if frames[:1] != question[:1]:
            raise Unreachable(f"{address}: the answer is not one of a data plane")
        return took_ms


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
