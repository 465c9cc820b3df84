"""The engine's heartbeat: who it is, its state, and when it last said so.

Written every second to Redis (where it expires) and to a file in the run directory, so that a Redis outage does not
make a serving engine look dead. Both carry the same fields.

state     meaning
--------  ------------------------------------------------------------
starting  not yet serving: Redis, the pool or the quotas are not there
ready     serves the data plane and takes commands
draining  stopping: takes no new commands
failed    cannot serve; `error` says why
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis

from contract.errors import RedisAway
from contract.keys import Keys
from contract.redis_client import describe

BEAT_INTERVAL_S = 1.0
ALIVE_BEATS = 3
ALIVE_S = ALIVE_BEATS * BEAT_INTERVAL_S
STATES = ("starting", "ready", "draining", "failed")
RECORD_FILE = "engine.json"

# Writes the beat unless another boot's is fresh (the key expires, so being there is being fresh).
# KEYS: engine. ARGV: boot id, boot id that may be replaced, ttl in ms, then field, value, ...
# Returns the boot id that holds the instance id, which is the caller's when the beat was written.
_BEAT = """
local holder = redis.call('HGET', KEYS[1], 'boot_id')
if holder and holder ~= ARGV[1] and holder ~= ARGV[2] then return holder end
redis.call('DEL', KEYS[1])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return ARGV[1]
"""

# Removes the beat if it is the caller's. KEYS: engine. ARGV: boot id.
_FORGET = "if redis.call('HGET', KEYS[1], 'boot_id') == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True)
class EngineRecord:
    """One beat. Times are epoch seconds; `data_plane_turn_age_s` is how long ago the I/O loop last turned."""

    boot_id: str
    pid: int
    host: str
    state: str
    error: str
    started_at: float
    beat_at: float
    data_plane_turn_age_s: float

    def is_alive(self, now: float) -> bool:
        """Whether the last beat is fresh. A record of the future (a clock stepped back) counts as old."""
        return abs(now - self.beat_at) < ALIVE_S


def write_beat(client: redis.Redis | None, keys: Keys, run_dir: Path, record: EngineRecord) -> None:
    """Writes the beat to the file and, where there is a client, to Redis. Raises OSError, redis.RedisError."""
    write_file_beat(run_dir, record)
    if client is not None:
        write_redis_beat(client, keys, record)


def write_file_beat(run_dir: Path, record: EngineRecord) -> None:
    """Replaces the file whole, so that no reader sees half of it. Raises OSError."""
    path = run_dir / RECORD_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({name: _text(value) for name, value in dataclasses.asdict(record).items()}))
    temporary.replace(path)


def write_redis_beat(client: redis.Redis, keys: Keys, record: EngineRecord, replaces: str = "") -> str:
    """Writes the beat and returns the boot id that holds the instance id: the record's own when it was written.

    The fresh beat of another boot is left alone, unless that boot is `replaces`. Raises redis.RedisError.
    """
    pairs = [item for field, value in dataclasses.asdict(record).items() for item in (field, _text(value))]
    return str(client.eval(_BEAT, 1, keys.engine, record.boot_id, replaces, str(int(ALIVE_S * 1000)), *pairs))


def forget_beat(client: redis.Redis | None, keys: Keys, run_dir: Path, boot_id: str) -> None:
    """Removes this boot's record at a clean stop, so that its successor need not wait. Raises redis.RedisError."""
    with contextlib.suppress(FileNotFoundError):
        (run_dir / RECORD_FILE).unlink()
    if client is not None:
        client.eval(_FORGET, 1, keys.engine, boot_id)


def read_record(client: redis.Redis | None, keys: Keys, run_dir: Path | None) -> EngineRecord | None:
    """The fresher of the file's and Redis's record, or None where neither has one.

    A fresh file answers without asking Redis. Redis being away is no error while a file is there; raises RedisAway
    when it is away and there is none.
    """
    in_file = None if run_dir is None else read_file_record(run_dir / RECORD_FILE)
    if client is None or (in_file is not None and in_file.is_alive(time.time())):
        return in_file
    try:
        in_redis = read_redis_record(client, keys)
    except redis.RedisError as error:
        if in_file is None:
            raise RedisAway(describe(error)) from error
        return in_file
    found = [record for record in (in_file, in_redis) if record is not None]
    return max(found, key=lambda record: record.beat_at, default=None)


def read_redis_record(client: redis.Redis, keys: Keys) -> EngineRecord | None:
    """Redis's record, its `beat_at` moved to the reader's clock. Raises redis.RedisError."""
    with client.pipeline(transaction=True) as pipeline:
        pipeline.hgetall(keys.engine)
        pipeline.pttl(keys.engine)
        fields, remaining_ms = cast(tuple[dict[str, str], int], tuple(pipeline.execute()))
    record = _from_fields(fields)
    if record is None or remaining_ms < 0:
        return None
    return dataclasses.replace(record, beat_at=time.time() - (ALIVE_S - remaining_ms / 1000))


def read_file_record(path: Path) -> EngineRecord | None:
    """The record in this file, or None when there is none that can be read."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return _from_fields(fields) if isinstance(fields, dict) else None


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _from_fields(fields: dict[str, Any]) -> EngineRecord | None:
    """The record in these texts, or None if one is missing or unreadable (somebody else wrote it)."""
    try:
        times = [float(fields[name]) for name in ("started_at", "beat_at", "data_plane_turn_age_s")]
        if not all(math.isfinite(value) for value in times):
            return None
        boot_id, host, state, error = (str(fields[name]) for name in ("boot_id", "host", "state", "error"))
        return EngineRecord(boot_id, int(fields["pid"]), host, state, error, *times)
    except (KeyError, ValueError, TypeError):
        return None
