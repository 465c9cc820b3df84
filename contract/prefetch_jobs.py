"""Prefetch jobs: the record that the web tier makes, the engine keeps up to date, and a poll consumes once.

state      set by                meaning
---------  --------------------  -------------------------------------------------------------------
submitted  web tier; engine      waits for the engine; also what a stopped engine leaves to the next one
running    engine                loads; `boot_id` says which engine's
completed  engine                over; what could not be loaded is counted
failed     engine                over before its end; `error` says why
cancelled  engine                over because somebody asked for it

    submitted ─start→ running ─→ completed, failed, cancelled ─poll→ the same, with `consumed_at`
        ↑──────adopt─────┘ of a dead boot

A record is a hash of texts that HGETALL shows as it is. Times are epoch seconds with three decimals by Redis's clock,
empty for what has not happened. The token ids lie beside the record until the job is over. All of it is gone 24 h
after the submission and 1 h after the end. Every change is one Lua call that looks at the state first.
"""

import dataclasses
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import redis

from contract.keys import PREFETCH_ENDED_TTL_S, PREFETCH_MAX_JOBS, PREFETCH_TTL_S, Keys
from contract.redis_client import redis_time_s

SUBMITTED, RUNNING, COMPLETED, FAILED, CANCELLED = "submitted", "running", "completed", "failed", "cancelled"
STATES = (SUBMITTED, RUNNING, COMPLETED, FAILED, CANCELLED)
ENDED = (COMPLETED, FAILED, CANCELLED)

#: Records that are read in one round trip, at least.
_PAGE = 100
_REQUEST_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Rule(Enum):
    """Which state a record must be in for a write to happen."""

    START = "start"  # submitted
    OWN = "own"  # submitted, running in the writer's boot, or lost with Redis's data: then it is written anew
    ADOPT = "adopt"  # submitted, or running in another boot


@dataclass(frozen=True, slots=True)
class PrefetchJob:
    """One record. Counts are keys: chunks times world size. Times are epoch seconds."""

    request_id: str
    model_name: str
    world_size: int
    cache_salt: str
    chunks: int = 0
    total_keys: int = 0
    found_keys: int = 0
    resident_keys: int = 0
    missing_keys: int = 0
    failed_keys: int = 0
    over_quota_keys: int = 0
    status: str = SUBMITTED
    error: str = ""
    submitted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    consumed_at: float | None = None
    boot_id: str = ""

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    def as_fields(self) -> dict[str, str]:
        """The record as Redis holds it."""
        return {name: _text(getattr(self, name)) for name in _NAMES}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "PrefetchJob | None":
        """The record in a hash, or None when there is none that can be read."""
        try:
            job = cls(**{name: _READERS[name](fields[name]) for name in _NAMES})
        except (KeyError, ValueError):
            return None
        return job if job.status in STATES else None


_NAMES = tuple(field.name for field in dataclasses.fields(PrefetchJob))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _time(text: str) -> float | None:
    return float(text) if text else None


_READERS: dict[str, Any] = {
    field.name: {int: int, str: str}.get(cast(Any, field.type), _time) for field in dataclasses.fields(PrefetchJob)
}


def new_request_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


def is_request_id(text: str) -> bool:
    """Whether a text has the form of our ids; no other names a record."""
    return _REQUEST_ID.fullmatch(text) is not None


# Of a full list the oldest job that is over goes; 0 when none of the oldest is.
# KEYS: record, input, list. ARGV: id, token ids, ttl in s, most jobs, the records' prefix, then field, value, ...
_CREATE = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 2 * ARGV[3])
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[4]) then
  local has_room = false
  for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, 255)) do
    local status = redis.call('HGET', ARGV[5] .. id, 'status')
    if status ~= 'submitted' and status ~= 'running' then
      redis.call('DEL', ARGV[5] .. id, ARGV[5] .. id .. ':input')
      redis.call('ZREM', KEYS[3], id)
      has_room = true
      break
    end
  end
  if not has_room then return 0 end
end
local stamp = string.format('%.3f', now)
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('HSET', KEYS[1], 'submitted_at', stamp)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[3], string.format('%.6f', now), ARGV[1])
redis.call('EXPIRE', KEYS[3], 2 * ARGV[3])
return 1
"""

# KEYS: record, input, list. ARGV: id.
_WITHDRAW = """
if redis.call('HGET', KEYS[1], 'status') ~= 'submitted' then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
"""

# Writes the whole record if its state allows it, and answers Redis's time, which is also put into the field to stamp.
# KEYS: record, input, list. ARGV: rule, boot id, id, field to stamp or '', seconds since then, ttl in s,
# 'ended' or '', ttl of an ended record in s, then field, value, ...
_WRITE = """
local status, boot = unpack(redis.call('HMGET', KEYS[1], 'status', 'boot_id'))
local is_ours = boot == ARGV[2]
local may = status == 'submitted'
if ARGV[1] == 'own' then may = may or not status or (status == 'running' and is_ours) end
if ARGV[1] == 'adopt' then may = may or (status == 'running' and not is_ours) end
if not may then return false end
local now = redis.call('TIME')
local stamp = string.format('%.3f', now[1] + now[2] / 1000000 - ARGV[5])
redis.call('HSET', KEYS[1], unpack(ARGV, 9))
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], ARGV[4], stamp) end
if not status then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('ZADD', KEYS[3], redis.call('HGET', KEYS[1], 'submitted_at'), ARGV[3])
  redis.call('EXPIRE', KEYS[3], 2 * ARGV[6])
end
if ARGV[7] == 'ended' then
  redis.call('DEL', KEYS[2])
  redis.call('EXPIRE', KEYS[1], ARGV[8])
end
return stamp
"""

# The record, or nil for one that is not there or consumed already. An ended one is consumed by this very call.
# KEYS: record.
_CONSUME = """
local status, consumed = unpack(redis.call('HMGET', KEYS[1], 'status', 'consumed_at'))
if not status or (consumed and consumed ~= '') then return false end
if status ~= 'submitted' and status ~= 'running' then
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'consumed_at', string.format('%.3f', now[1] + now[2] / 1000000))
end
return redis.call('HGETALL', KEYS[1])
"""

# The ids of jobs that are not over, oldest first. Those of expired records leave the list.
# KEYS: list. ARGV: the records' prefix.
_UNFINISHED = """
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local status = redis.call('HGET', ARGV[1] .. id, 'status')
  if not status then redis.call('ZREM', KEYS[1], id) end
  if status == 'submitted' or status == 'running' then found[#found + 1] = id end
end
return found
"""


class PrefetchStore:
    """The records of one instance. Any thread may call; every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis, keys: Keys, max_jobs: int = PREFETCH_MAX_JOBS) -> None:
        self._client = client
        self._keys = keys
        self._max_jobs = max_jobs
        texts = (_CREATE, _WITHDRAW, _WRITE, _CONSUME, _UNFINISHED)
        self._create, self._withdraw, self._write, self._consume, self._unfinished = map(client.register_script, texts)

    def create(self, job: PrefetchJob, token_ids: str) -> bool:
        """Writes record and token ids (JSON text) at once. False: as many jobs as may be are not over."""
        head: list[str | int] = [job.request_id, token_ids, PREFETCH_TTL_S, self._max_jobs, self._keys.prefetch("")]
        return bool(self._create(self._keys_of(job.request_id), [*head, *_pairs(job)]))

    def withdraw(self, request_id: str) -> bool:
        """Removes a job that is still `submitted`; whether it did."""
        return bool(self._withdraw(self._keys_of(request_id), [request_id]))

    def write(
        self, job: PrefetchJob, rule: Rule, boot_id: str, *, stamp: str = "", seconds_ago: float = 0.0
    ) -> PrefetchJob | None:
        """Replaces the record if `rule` allows it for `boot_id`; the job as written, or None if it was not.

        The field `stamp` gets Redis's time, less `seconds_ago`. The token ids of a job that is over are removed.
        """
        ended = "ended" if job.has_ended else ""
        head = [rule.value, boot_id, job.request_id, stamp, f"{seconds_ago:.3f}"]
        head += [str(PREFETCH_TTL_S), ended, str(PREFETCH_ENDED_TTL_S)]
        written_at = self._write(self._keys_of(job.request_id), [*head, *_pairs(job)])
        if written_at is None:
            return None
        stamps: dict[str, Any] = {stamp: float(cast(str, written_at))} if stamp else {}
        return dataclasses.replace(job, **stamps)

    def load(self, request_id: str) -> PrefetchJob | None:
        """The record, consumed or not; None when there is none."""
        return PrefetchJob.from_fields(cast(dict[str, str], self._client.hgetall(self._keys.prefetch(request_id))))

    def load_input(self, request_id: str) -> str | None:
        """The token ids as JSON text; None when they are gone."""
        return cast(str | None, self._client.get(self._keys.prefetch_input(request_id)))

    def age_s(self, job: PrefetchJob) -> float:
        """Seconds since the job was submitted, by Redis's clock."""
        return redis_time_s(self._client) - (job.submitted_at or 0.0)

    def consume(self, request_id: str) -> PrefetchJob | None:
        """The job: while it is not over as often as it is asked for, then once, then None, as for an unknown id."""
        flat = cast(list[str] | None, self._consume([self._keys.prefetch(request_id)]))
        return None if flat is None else PrefetchJob.from_fields(dict(zip(flat[::2], flat[1::2], strict=True)))

    def unfinished(self) -> list[str]:
        """The ids of jobs that are not over, oldest first."""
        return cast(list[str], self._unfinished([self._keys.prefetch_jobs], [self._keys.prefetch("")]))

    def newest(self, limit: int) -> list[PrefetchJob]:
        """The records, newest first. Ids of expired ones leave the list on the way."""
        found: list[PrefetchJob] = []
        start = 0
        while len(found) < limit:
            last = start + max(limit, _PAGE) - 1
            ids = cast(list[str], self._client.zrevrange(self._keys.prefetch_jobs, start, last))
            if not ids:
                break
            with self._client.pipeline(transaction=False) as pipeline:
                for request_id in ids:
                    pipeline.hgetall(self._keys.prefetch(request_id))
                records = cast(list[dict[str, str]], pipeline.execute())
            expired = [request_id for request_id, fields in zip(ids, records, strict=True) if not fields]
            if expired:
                self._client.zrem(self._keys.prefetch_jobs, *expired)
            jobs = map(PrefetchJob.from_fields, records)
            found += [job for job in jobs if job is not None]
            start += len(ids) - len(expired)
        return found[:limit]

    def _keys_of(self, request_id: str) -> list[str]:
        return [self._keys.prefetch(request_id), self._keys.prefetch_input(request_id), self._keys.prefetch_jobs]


def _pairs(job: PrefetchJob) -> list[str]:
    return [word for pair in job.as_fields().items() for word in pair]
