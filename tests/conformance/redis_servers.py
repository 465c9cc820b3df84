"""Real Redis for L2 tests: a cluster of three on loopback, and the values as a client of another make sees them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from tests.stack import RedisServer, embedded_redis_binary, free_port, need
from tests.waiting import wait_for

SLOTS = 16384


def server_in(directory: Path, *options: str) -> RedisServer:
    """A server of the version that the installation brings, not started yet."""
    binary = embedded_redis_binary()
    need("redis", binary is not None, "its server binary is not installed")
    assert binary is not None
    return RedisServer(directory, binary, *options)


@contextmanager
def cluster_in(directory: Path, size: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster that answers for all slots, every node a primary."""
    with ExitStack() as stack:
        nodes = []
        for number in range(size):
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", str(free_port())]
            nodes.append(stack.enter_context(server_in(directory / f"node{number}", *options)))
        shares = [SLOTS * number // size for number in range(size + 1)]
        for number, node in enumerate(nodes):
            ask(node, "CLUSTER", "ADDSLOTSRANGE", shares[number], shares[number + 1] - 1)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            bus_port = nodes[0].options[-1]
            ask(node, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus_port)
        for node in nodes:
            wait_for(lambda node=node: is_whole(node, size), 30, "the cluster is one")
        yield nodes


def is_whole(node: RedisServer, size: int) -> bool:
    state = ask(node, "CLUSTER", "INFO")
    return state.get("cluster_state") == "ok" and state.get("cluster_known_nodes") == str(size)


def ask(node: RedisServer, *command: object) -> dict[str, str]:
    """The answer's lines of "name:value", on a connection of its own."""
    with redis.Redis(host="127.0.0.1", port=node.port, socket_timeout=5, decode_responses=True) as client:
        answer = client.execute_command(*command)
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    return dict(line.split(":", 1) for line in str(answer).splitlines() if ":" in line)


class RawValues:
    """Every string value on `nodes`, over one socket each and a parser of our own."""

    def __init__(self, nodes: list[RedisServer], prefix: str) -> None:
        self._ports = [node.port for node in nodes]
        self._prefix = prefix

    def names(self) -> list[str]:
        return sorted(name.decode() for port in self._ports for name in _command(port, b"KEYS", b"*"))

    def get(self, name: str) -> bytes:
        (value,) = [value for port in self._ports if (value := self._try(port, b"GET", name.encode())) is not None]
        return value

    def put(self, name: str, data: bytes) -> None:
        full = name if name.startswith(self._prefix) else self._prefix + name
        done = [self._try(port, b"SET", full.encode(), data) for port in self._ports]
        assert done.count(b"OK") == 1, f"{full}: {done}"

    def empty(self) -> None:
        for port in self._ports:
            assert _command(port, b"FLUSHALL") == b"OK"

    def _try(self, port: int, *words: bytes) -> bytes | None:
        """None also where another node answers for the key."""
        answer = _command(port, *words)
        return None if answer is None or answer.startswith(b"MOVED ") else answer


def _command(port: int, *words: bytes) -> object:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        return _answer(answers)


def _answer(lines) -> object:
    line = lines.readline()[:-2]
    kind, rest = line[:1], line[1:]
    if kind in (b"+", b"-"):
        return rest
    if kind == b"*":
        return [_answer(lines) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == b"-1" else lines.read(int(rest) + 2)[:-2]
    return int(rest)
