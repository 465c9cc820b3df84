"""Bytes to a server as they are, and what comes back: for requests that no client library would send."""

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Answers:
    """All that came back until the server closed, or was silent for the time given."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of each answer, in their order; bodies of ours hold no such line."""
        lines = [line for line in self.raw.split(b"\r\n") if line.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))]
        return [int(line.split()[1]) for line in lines]


def exchange(port: int, *pieces: bytes, silence_s: float = 10.0) -> Answers:
    """Sends the pieces one after the other over one connection and reads to its end."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=silence_s) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was read
        while True:
            try:
                data = connection.recv(65536)
            except TimeoutError:
                return Answers(received, closed=False)
            except ConnectionResetError:
                return Answers(received, closed=True)
            if not data:
                return Answers(received, closed=True)
            received += data


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """A request with exactly these header lines and `Connection: close`, in latin-1."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "Connection: close", "", ""]).encode("latin-1") + body
