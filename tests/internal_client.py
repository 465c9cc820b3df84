"""Asks an internal API server on TCP or on a Unix socket, and servers for tests over a process without an engine."""

import http.client
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.internal_server import InternalAPIConfig, InternalAPIServer, LoneBackend
from contract.commands import Command, ShowLoggers, ShowThreads
from contract.engine_record import EngineRecord
from contract.errors import CommandFailed
from contract.process_facts import SETTINGS
from contract.thread_stacks import thread_blocks
from tests.stack import Answer


class _OverUnixSocket(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(
    where: str | int | Path,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> Answer:
    """One request to a port of this machine, or to a Unix socket's path."""
    if isinstance(where, int):
        connection = http.client.HTTPConnection("127.0.0.1", where, timeout=timeout_s)
    else:
        connection = _OverUnixSocket(str(where), timeout_s)
    try:
        connection.request(method, path, body, dict(headers or {}))
        reply = connection.getresponse()
        return Answer(reply.status, dict(reply.headers), reply.read())
    finally:
        connection.close()


class Side:
    """A process that can show its threads and a few settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def record(self) -> EngineRecord:
        now = time.time()
        return EngineRecord("boot", os.getpid(), "host", "ready", "", now, now, 0.0)

    def run(self, command: Command) -> dict[str, Any]:
        if isinstance(command, ShowThreads):
            blocks = thread_blocks(command.name, command.thread_id)
            return {"process": "test", "pid": os.getpid(), "blocks": blocks}
        if isinstance(command, ShowLoggers):
            return {"levels": {}}
        raise CommandFailed("unsupported", "a test does not do that")

    def snapshot(self, name: str) -> Any:
        known: dict[str, Any] = {SETTINGS: self.settings, "metrics": {"text": ""}, "periodic_threads": []}
        if name not in known:
            raise CommandFailed("unsupported", "a test does not have that")
        return known[name]


class Manager:
    """What a server of a test serves."""

    def __init__(self, config: InternalAPIConfig, index: int = 0, side: Side | None = None) -> None:
        self.internal_api, self.internal_api_index = config, index
        self.backend = LoneBackend(side or Side(name=f"server {index}"))


def server(index: int = 0, **config: Any) -> InternalAPIServer:
    """One that was not started yet."""
    return InternalAPIServer(Manager(InternalAPIConfig(**{"enabled": True, "host": "127.0.0.1", **config}), index))
