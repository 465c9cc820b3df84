"""A Backend without Redis or engine, to be put into any state; it keeps what it was asked."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.backend import QuotaState
from contract.commands import ChecksumBlocks, Command, DeleteQuota, SetQuota
from contract.engine_record import EngineRecord
from contract.errors import CommandFailed, EngineAway, QueueFull, RedisAway
from contract.snapshots import Snapshot
from tests.unit.app.memory_prefetch import MemoryPrefetch

BOOT = "boot-1"


def record(state: str = "ready", age_s: float = 0.0) -> EngineRecord:
    now = time.time()
    return EngineRecord(BOOT, 1, "host", state, "", now - 60, now - age_s, 0.0)


@dataclass
class MemoryBackend:
    """`fails` is raised by every call that would need Redis; `replies` maps an op to a reply or an exception."""

    engine: EngineRecord | None = field(default_factory=record)
    fails: Exception | None = None
    replies: dict[str, Any] = field(default_factory=dict)
    bodies: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    instances: set[int] = field(default_factory=lambda: {0, 7})
    #: Bytes in L1 and in L2.
    usages: dict[str, tuple[int, int]] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    audit: list[dict[str, str]] = field(default_factory=list)
    prefetch: MemoryPrefetch = field(default_factory=MemoryPrefetch)
    no_place: bool = False
    levels: dict[str, str] = field(default_factory=dict)
    most_levels: int = 200
    baselines: dict[str, str] = field(default_factory=dict)

    def call(self, command: Command, *, issuer: str = "") -> dict[str, Any]:
        self.require_engine()
        self._reach()
        self.commands.append(command)
        answer = self.replies.get(command.op, {})
        if isinstance(command, ChecksumBlocks) and command.instance_id not in self.instances:
            answer = CommandFailed("not_found", f"instance_id {command.instance_id} not registered")
        if isinstance(answer, Exception):
            raise answer
        if isinstance(command, SetQuota):
            self.limits[command.cache_salt] = command.limit_bytes
        if isinstance(command, DeleteQuota):
            return {"removed": self.limits.pop(command.cache_salt, None) is not None}
        return answer

    def require_engine(self) -> EngineRecord:
        if self.engine is None or not self.engine.is_alive(time.time()):
            raise EngineAway("missing")
        if self.engine.state != "ready":
            raise EngineAway(self.engine.state)
        return self.engine

    def engine_record(self, *, reuse: bool = True) -> EngineRecord | None:
        if self.engine is None and self.fails is not None:
            raise self.fails
        return self.engine

    def read_text(self, name: str) -> str:
        self.require_engine()
        self._reach()
        return json.dumps(self.bodies[name])

    def last_text(self, name: str) -> str | None:
        self._reach()
        return json.dumps(self.bodies[name]) if name in self.bodies else None

    def last_snapshot(self, name: str) -> Snapshot | None:
        self._reach()
        return Snapshot(name, self.bodies[name], 1, 0.0, BOOT, 0.25) if name in self.bodies else None

    def quota(self, cache_salt: str) -> QuotaState:
        self.require_engine()
        self._reach()
        return QuotaState(self.limits.get(cache_salt), *self.usages.get(cache_salt, (0, 0)))

    def quotas(self) -> dict[str, QuotaState]:
        self.require_engine()
        self._reach()
        return {salt: self.quota(salt) for salt in self.limits}

    @contextmanager
    def prefetch_jobs(self) -> Iterator[Any]:
        self._reach()
        yield self.prefetch

    def log_levels(self) -> dict[str, str]:
        self._reach()
        return dict(self.levels)

    def set_log_level(self, name: str, level: str) -> bool:
        self._reach()
        if name not in self.levels and len(self.levels) >= self.most_levels:
            return False
        self.levels[name] = level
        return True

    def queue_length(self) -> int:
        self._reach()
        return len(self.commands)

    def metrics_baselines(self) -> dict[str, str]:
        self._reach()
        return dict(self.baselines)

    def write_metrics_baselines(self, fields: dict[str, str]) -> None:
        self._reach()
        self.baselines.update(fields)

    @contextmanager
    def waiting_place(self) -> Iterator[None]:
        if self.no_place:
            raise QueueFull("12 requests wait", 1.0)
        yield

    @contextmanager
    def poll_place(self) -> Iterator[bool]:
        yield not self.no_place

    def write_audit(self, entries: list[dict[str, str]]) -> None:
        self._reach()
        self.audit.extend(entries)

    def close(self) -> None:
        self.fails = RedisAway("closed")

    def _reach(self) -> None:
        if self.fails is not None:
            raise self.fails
