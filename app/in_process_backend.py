"""The backend of an internal API server: asks the engine of its own process, without the command queue.

What people keep in Redis (prefetch records, the audit) is still there and needs it; the rest answers while Redis and
gunicorn are down. A log level, and what a reset of the metrics subtracts, then count in this process, and are handed to
Redis, and so to the others, once it answers again.
"""

import json
import threading
import time
from typing import Any, Protocol

from app.backend import QueueBackend, QuotaState
from app.baseline import counts_more
from app.lone_backend import ProcessSide
from contract.commands import Command, ShowLoggers, ShowThreads
from contract.engine_record import EngineRecord
from contract.errors import EngineAway, OthersAway, RedisAway
from contract.log_levels import APPLIED, hand_on_level
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
        self._untold_baselines: dict[str, str] = {}
        self._telling = threading.Lock()

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

    def set_log_level(self, name: str, level: str) -> bool:
        """Raises OthersAway when it is set in this process alone."""
        try:
            return APPLIED.write(name, level, super().set_log_level)
        except RedisAway as error:
            if not APPLIED.apply_alone(name, level):
                return False
            raise OthersAway(str(error)) from error

    def metrics_baselines(self) -> dict[str, str]:
        with self._telling:
            untold = dict(self._untold_baselines)
        try:
            return {**super().metrics_baselines(), **untold}
        except RedisAway:
            if not untold:
                raise
            return untold

    def write_metrics_baselines(self, fields: dict[str, str]) -> None:
        """Raises OthersAway when they are kept in this process alone."""
        with self._telling:
            try:
                super().write_metrics_baselines(fields)
            except RedisAway as error:
                self._untold_baselines.update(fields)
                raise OthersAway(str(error)) from error
            for group in fields:
                self._untold_baselines.pop(group, None)

    def tell_others(self) -> str | None:
        """Hands to Redis what was done without it, unless another process did the same later. To be called now and
        then; returns what is in the way."""
        try:
            APPLIED.tell(self._hand_on_level)
            with self._telling:
                if self._untold_baselines:
                    kept = super().metrics_baselines()
                    fields = self._untold_baselines.items()
                    ours = {group: text for group, text in fields if not counts_more(kept.get(group), text)}
                    if ours:
                        super().write_metrics_baselines(ours)
                    self._untold_baselines.clear()
        except RedisAway as error:
            return f"what was set here waits for Redis: {error}"
        return None

    def _hand_on_level(self, name: str, level: str, known: str | None) -> str:
        with self._redis() as client:
            return hand_on_level(client, self._keys, name, level, known)
