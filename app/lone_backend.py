"""The backend of an internal API server in a process that has no engine: an inference process with a cache client.

It needs no Redis. Log levels are the process's, whichever of its servers set them, and metric baselines this server's;
the audit goes to the process's log; what only an engine can answer is refused as if it were away.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from app.backend import QuotaState
from contract.commands import Command
from contract.engine_record import EngineRecord
from contract.errors import EngineAway, QueueFull, RedisAway
from contract.log_levels import APPLIED
from contract.prefetch_jobs import PrefetchStore
from contract.snapshots import Snapshot

logger = logging.getLogger(__name__)

MAX_WAITING = 3
PLACE_WAIT_S = 0.03


class ProcessSide(Protocol):
    """The process, as the one who put the server there hands it in."""

    def record(self) -> EngineRecord:
        """How the engine is, as far as this process knows."""

    def run(self, command: Command) -> dict[str, Any]:
        """The reply to a command. Raises CommandFailed, QueueFull."""

    def snapshot(self, name: str) -> Any:
        """What it has to say under this name."""


class LoneBackend:
    """Safe from any thread."""

    def __init__(self, side: ProcessSide) -> None:
        self._side = side
        self._baselines: dict[str, str] = {}
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_WAITING)

    def call(self, command: Command, *, issuer: str = "") -> dict[str, Any]:
        with self.waiting_place():
            return self._side.run(command)

    def require_engine(self) -> EngineRecord:
        record = self._side.record()
        if record.state != "ready":
            raise EngineAway(record.state, record.error)
        return record

    def engine_record(self, *, reuse: bool = True) -> EngineRecord | None:
        return self._side.record()

    def read_text(self, name: str) -> str:
        return json.dumps(self._side.snapshot(name), separators=(",", ":"))

    def last_text(self, name: str) -> str | None:
        return self.read_text(name)

    def last_snapshot(self, name: str) -> Snapshot | None:
        return Snapshot(name, self._side.snapshot(name), 0, time.time(), self._side.record().boot_id, 0.0)

    def quota(self, cache_salt: str) -> QuotaState:
        _refuse()

    def quotas(self) -> dict[str, QuotaState]:
        _refuse()

    @contextmanager
    def prefetch_jobs(self) -> Iterator[PrefetchStore]:
        yield _refuse()

    def log_levels(self) -> dict[str, str]:
        return APPLIED.levels()

    def set_log_level(self, name: str, level: str) -> bool:
        return APPLIED.apply(name, level)

    def queue_length(self) -> int:
        return 0

    def metrics_baselines(self) -> dict[str, str]:
        return dict(self._baselines)

    def write_metrics_baselines(self, fields: dict[str, str]) -> None:
        with self._lock:
            self._baselines.update(fields)

    @contextmanager
    def waiting_place(self) -> Iterator[None]:
        if not self._places.acquire(timeout=PLACE_WAIT_S):
            raise QueueFull(f"{MAX_WAITING} requests of this process already wait", 1.0)
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def poll_place(self) -> Iterator[bool]:
        yield False  # there are no jobs here

    def write_audit(self, entries: list[dict[str, str]]) -> None:
        for entry in entries:
            logger.info("audit: %s", json.dumps(entry))

    def close(self) -> None:
        """Nothing was opened."""


def _refuse() -> NoReturn:
    raise RedisAway("this process has no connection to it")
