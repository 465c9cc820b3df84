"""The backend of an internal API server: asks the engine of its own process, without the command queue.

What people keep in Redis (prefetch records, log levels, the audit) is still there and needs it; the rest answers while
Redis and gunicorn are down.
"""

import json
import time
from typing import Any, Protocol

from app.backend import QueueBackend, QuotaState
from app.lone_backend import ProcessSide
from contract.commands import Command, ShowLoggers, ShowThreads
from contract.engine_record import EngineRecord
from contract.errors import EngineAway
from contract.snapshots import Snapshot


class EngineSide(ProcessSide, Protocol):
    """The engine of this process; its record is the heartbeat as of now, its snapshots what it would publish."""

    def limits(self) -> dict[str, int]:
        """The registered quotas in bytes, by salt."""

    def usage(self) -> dict[str, tuple[int, int]]:
        """Bytes in L1 and in L2 by salt."""


class InProcessBackend(QueueBackend):
    """Safe from any thread, as the engine is."""

    def __init__(self, side: EngineSide, **redis: Any) -> None:
        """`redis` are QueueBackend's own parameters."""
        super().__init__(**redis)
        self._side = side

    def call(self, command: Command, *, issuer: str = "") -> dict[str, Any]:
        if not isinstance(command, ShowThreads | ShowLoggers):
            self.require_engine()
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
        self.require_engine()
        return json.dumps(self._side.snapshot(name), separators=(",", ":"))

    def last_text(self, name: str) -> str | None:
        return json.dumps(self._side.snapshot(name), separators=(",", ":"))

    def last_snapshot(self, name: str) -> Snapshot | None:
        record = self._side.record()
        return Snapshot(name, self._side.snapshot(name), 0, time.time(), record.boot_id, 0.0)

    def quota(self, cache_salt: str) -> QuotaState:
        self.require_engine()
        usage = self._side.usage().get(cache_salt, (0, 0))
        return QuotaState(self._side.limits().get(cache_salt), *usage)

    def quotas(self) -> dict[str, QuotaState]:
        self.require_engine()
        usage = self._side.usage()
        return {salt: QuotaState(limit, *usage.get(salt, (0, 0))) for salt, limit in self._side.limits().items()}
