"""Where the routes get their answers: commands to the engine, and what the engine publishes.

The routes know only `Backend`. `QueueBackend` is the web tier's: it asks over Redis. Its connections are opened by the
first request that needs them, so after the fork. A Redis that does not answer costs each thread half a second once;
then all calls fail at once for a moment, and one caller at a time finds out whether it is back.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

import redis
from flask import current_app

from app.fuse import Fuse
from app.shared_read import LastChange, SharedRead
from contract import snapshots
from contract.command_queue import WAIT_SLICE_S, CommandSubmitter
from contract.commands import MAX_INTEGER, Command
from contract.engine_record import EngineRecord, read_record
from contract.errors import EngineAway, QueueFull, RedisAway
from contract.held_connections import HeldConnections, Words
from contract.keys import AUDIT_MAX_ENTRIES, Keys, field_to_salt, salt_to_field
from contract.log_levels import read_levels, write_level
from contract.prefetch_jobs import PrefetchStore
from contract.redis_client import describe, open_blocking_redis, open_redis

EXTENSION = "larder_backend"
CALL_TIMEOUT_S = 0.5
# How long a heartbeat that was read may serve further requests of this process; its age is judged each time.
RECORD_REUSE_S = 0.2
# How long a request may wait for one of the places of those that wait for the engine. Quick commands give theirs up
# sooner; slow ones must not take the threads of probes.
PLACE_WAIT_S = 0.03


@dataclass(frozen=True, slots=True)
class QuotaState:
    """A tenant's limit in bytes (None: not registered) and what it holds in L1 and in L2."""

    limit_bytes: int | None
    l1_bytes: int
    l2_bytes: int


class Backend(Protocol):
    """What routes may ask. Every method raises RedisAway; those that need the engine raise EngineAway."""

    def call(self, command: Command, *, issuer: str = "") -> dict[str, Any]:
        """The engine's reply to a command. Raises any ContractError."""

    def require_engine(self) -> EngineRecord:
        """The record of a ready engine. Raises EngineAway when there is none."""

    def engine_record(self, *, reuse: bool = True) -> EngineRecord | None:
        """The fresher of the heartbeats in Redis and in the file, dead or alive. RedisAway: there is no file either."""

    def read_text(self, name: str) -> str:
        """The JSON text of a snapshot of the engine that is ready now. Raises EngineAway."""

    def last_text(self, name: str) -> str | None:
        """The JSON text of the last snapshot of this name, whoever published it; None if there never was one."""

    def last_snapshot(self, name: str) -> snapshots.Snapshot | None:
        """The last snapshot of this name with its age, parsed; None if there never was one."""

    def quota(self, cache_salt: str) -> QuotaState:
        """One tenant's limit and usage."""

    def quotas(self) -> dict[str, QuotaState]:
        """The registered tenants by salt."""

    def prefetch_jobs(self) -> AbstractContextManager[PrefetchStore]:
        """The records of prefetch jobs. Redis's failures inside become RedisAway."""

    def log_levels(self) -> dict[str, str]:
        """The levels that were set at runtime, by logger."""

    def set_log_level(self, name: str, level: str) -> bool:
        """Sets one for all processes; False when too many have one."""

    def queue_length(self) -> int:
        """Commands that wait or run."""

    def metrics_baselines(self) -> dict[str, str]:
        """What a reset of the metrics subtracts, by process group; see baseline.py."""

    def write_metrics_baselines(self, fields: dict[str, str]) -> None:
        """Replaces the baselines of these groups, all at once."""

    def waiting_place(self) -> AbstractContextManager[None]:
        """To be held by a request that waits. Raises QueueFull: as many wait as may."""

    def poll_place(self) -> AbstractContextManager[bool]:
        """To be held by a request that waits for the end of a job; False: as many wait as may. Never waits."""

    def write_audit(self, entries: list[dict[str, str]]) -> None:
        """Appends to the audit stream."""

    def close(self) -> None:
        """Ends what the backend opened."""


def current_backend() -> Backend:
    return cast(Backend, current_app.extensions[EXTENSION])


class QueueBackend:
    """The backend of a gunicorn worker. Safe from any of its threads.

    At most `max_waiting` threads wait for the engine at a time; the next one gets QueueFull, so that probes and reads
    always find a thread.
    """

    def __init__(
        self, redis_url: str, keys: Keys, run_dir: Path, *, max_waiting: int, queue_limits: tuple[int, int]
    ) -> None:
        """`queue_limits`: how many commands may wait or run, and how many bytes they may have."""
        self._redis_url = redis_url
        self._keys = keys
        self._run_dir = run_dir
        self._queue_limits = queue_limits
        self._waiting = threading.BoundedSemaphore(max_waiting)
        self._max_waiting = max_waiting
        # Two thirds of the places: who waits for a job must not keep others from cancelling it.
        self._polling = threading.BoundedSemaphore(max_waiting * 2 // 3)
        self._opening = threading.Lock()
        self._client: redis.Redis | None = None
        self._waiting_client: redis.Redis | None = None
        self._submitter: CommandSubmitter | None = None
        self._audit_connections: HeldConnections | None = None  # used by the audit's thread alone
        self._fuse = Fuse(CALL_TIMEOUT_S)
        self._last_change = LastChange()
        self._bodies = {name: SharedRead(partial(self._read_body, name), self._last_change) for name in snapshots.NAMES}
        self._last_record: tuple[float, EngineRecord | None] = (0.0, None)

    def call(self, command: Command, *, issuer: str = "") -> dict[str, Any]:
        self.require_engine()
        with self.waiting_place(), self._redis():
            reply = self._open_submitter().call(command, issuer=issuer)
        if command.changes_snapshots:
            self._last_change.note()
        return reply

    def require_engine(self) -> EngineRecord:
        record = self.engine_record()
        if record is None or not record.is_alive(time.time()):
            # A dead file beside a silent Redis proves nothing about the engine: say what is really wrong.
            self._fuse.check()
            raise EngineAway("missing")
        if record.state != "ready":
            raise EngineAway(record.state, record.error)
        return record

    def engine_record(self, *, reuse: bool = True) -> EngineRecord | None:
        read_at, record = self._last_record
        # Only good news is reused: another worker may have told the caller already that the engine is ready.
        is_good = record is not None and record.state == "ready"
        if reuse and is_good and time.monotonic() - read_at < RECORD_REUSE_S:
            return record
        record = read_record(None, self._keys, self._run_dir)
        if record is None or not record.is_alive(time.time()):
            record = self._record_in_redis(record)
        self._last_record = (time.monotonic(), record)
        return record

    def _record_in_redis(self, in_file: EngineRecord | None) -> EngineRecord | None:
        try:
            with self._redis() as client:
                return read_record(client, self._keys, self._run_dir)
        except RedisAway:
            if in_file is None:
                raise
            return in_file

    def read_text(self, name: str) -> str:
        record = self.require_engine()
        published = self._bodies[name].get()
        if published is None:
            raise EngineAway("starting", f"nothing published as {name} yet")
        text, boot_id = published
        if boot_id != record.boot_id:
            self._last_record = (0.0, None)
            if boot_id != self.require_engine().boot_id:
                raise EngineAway("starting", f"{name} is not published by this boot yet")
        return text

    def last_text(self, name: str) -> str | None:
        published = self._bodies[name].get()
        return None if published is None else published[0]

    def last_snapshot(self, name: str) -> snapshots.Snapshot | None:
        with self._redis() as client:
            return snapshots.read(client, self._keys, name)

    def _read_body(self, name: str) -> tuple[str, str] | None:
        with self._redis() as client:
            return snapshots.read_text(client, self._keys, name)

    def quota(self, cache_salt: str) -> QuotaState:
        self.require_engine()
        field = salt_to_field(cache_salt)
        with self._redis() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.get(self._keys.quota_epoch)
            pipeline.hget(self._keys.quota, field)
            pipeline.hget(self._keys.usage, field)
            epoch, limit, usage = pipeline.execute()
        _require_quotas(epoch)
        return QuotaState(_bytes_in(limit), *_usage_in(usage))

    def quotas(self) -> dict[str, QuotaState]:
        self.require_engine()
        with self._redis() as client:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.get(self._keys.quota_epoch)
                pipeline.hgetall(self._keys.quota)
                epoch, fields = pipeline.execute()
            limits = {field: limit for field, text in fields.items() if (limit := _bytes_in(text)) is not None}
            usages = client.hmget(self._keys.usage, list(limits)) if limits else []
        _require_quotas(epoch)
        pairs = zip(limits.items(), cast(list[str | None], usages), strict=True)
        return {field_to_salt(field): QuotaState(limit, *_usage_in(usage)) for (field, limit), usage in pairs}

    @contextmanager
    def prefetch_jobs(self) -> Iterator[PrefetchStore]:
        with self._redis() as client:
            yield PrefetchStore(client, self._keys)

    def log_levels(self) -> dict[str, str]:
        with self._redis() as client:
            return read_levels(client, self._keys)

    def set_log_level(self, name: str, level: str) -> bool:
        with self._redis() as client:
            return write_level(client, self._keys, name, level)

    def queue_length(self) -> int:
        with self._redis() as client:
            return int(client.xlen(self._keys.commands))

    def metrics_baselines(self) -> dict[str, str]:
        with self._redis() as client:
            return cast(dict[str, str], client.hgetall(self._keys.metrics_baseline))

    def write_metrics_baselines(self, fields: dict[str, str]) -> None:
        with self._redis() as client:
            client.hset(self._keys.metrics_baseline, mapping=cast(Any, fields))

    @contextmanager
    def waiting_place(self) -> Iterator[None]:
        if not self._waiting.acquire(timeout=PLACE_WAIT_S):
            raise QueueFull(f"{self._max_waiting} requests of this web worker already wait for the engine", 1.0)
        try:
            yield
        finally:
            self._waiting.release()

    @contextmanager
    def poll_place(self) -> Iterator[bool]:
        if not self._polling.acquire(blocking=False):
            yield False
            return
        try:
            has_place = self._waiting.acquire(blocking=False)
            try:
                yield has_place
            finally:
                if has_place:
                    self._waiting.release()
        finally:
            self._polling.release()

    def write_audit(self, entries: list[dict[str, str]]) -> None:
        head = ("XADD", self._keys.audit, "MAXLEN", "~", AUDIT_MAX_ENTRIES, "*")
        commands: list[Words] = [(*head, *chain.from_iterable(entry.items())) for entry in entries]
        with self._redis() as client:
            if self._audit_connections is None:
                self._audit_connections = HeldConnections(client)
            self._audit_connections.exchange(commands, len(commands))

    def close(self) -> None:
        """Closes the connections; whoever still waits on one gets RedisAway."""
        for client in (self._client, self._waiting_client):
            if client is not None:
                client.close()

    @contextmanager
    def _redis(self) -> Iterator[redis.Redis]:
        """The client for short calls, with its failures turned into RedisAway and remembered."""
        self._fuse.check()
        try:
            yield self._open_client()
        except redis.RedisError as error:
            self._fuse.blow(describe(error))
            raise RedisAway(describe(error)) from error
        except RedisAway as error:
            # The plain reason: other callers get it too, and it must not speak of this one's command.
            self._fuse.blow(describe(cast(Exception, error.__cause__ or error)))
            raise
        self._fuse.mend()

    def _open_client(self) -> redis.Redis:
        if self._client is None:
            with self._opening:
                if self._client is None:
                    self._client = open_redis(self._redis_url, timeout_s=CALL_TIMEOUT_S)
        return self._client

    def _open_submitter(self) -> CommandSubmitter:
        client = self._open_client()
        if self._submitter is None:
            with self._opening:
                if self._submitter is None:
                    self._waiting_client = open_blocking_redis(self._redis_url, block_s=WAIT_SLICE_S)
                    self._submitter = CommandSubmitter(client, self._waiting_client, self._keys, *self._queue_limits)
        return self._submitter


def _require_quotas(epoch: str | None) -> None:
    """Without an epoch Redis has lost the quota hash, and the engine has not written it again yet."""
    if epoch is None:
        raise EngineAway("starting", "the quotas are not in Redis yet")


def _bytes_in(limit: str | None) -> int | None:
    """A field of the quota hash; what a person wrote that is no number does not count, as in the engine."""
    return int(limit) if limit is not None and limit.isascii() and limit.isdigit() else None


def _usage_in(usage: str | None) -> tuple[int, int]:
    """Bytes in L1 and in L2 by a field of the usage hash; what a person broke counts as nothing."""
    try:
        fields = json.loads(usage or "{}")
    except (ValueError, RecursionError):
        return 0, 0
    if not isinstance(fields, dict):
        return 0, 0
    counts = [fields.get(name) for name in ("l1_bytes", "l2_bytes")]
    l1_bytes, l2_bytes = (count if type(count) is int and 0 <= count <= MAX_INTEGER else 0 for count in counts)
    return l1_bytes, l2_bytes
