"""The tenants' two hashes in Redis: their quotas, which are durable, and what they hold in L1 and L2.

The quota hash is the authority: it is read before the engine enforces anything. From then on the engine's table
changes first and the hash follows, before the change is answered. `quota:epoch` names the life of the hash and counts
its changes, each in the same transaction:

Redis has              then
---------------------  ---------------------------------------------------------------------------------------
no epoch               it lost its data: both hashes are written again from memory
a lower generation     it was restored from an older copy: likewise
the same, another run  it was started again and may have lost its last second: likewise
a higher generation    somebody put newer quotas in place: they are taken over
another epoch          somebody put another Redis in place: its quotas are taken over

The engine is told the epoch together with the quotas, and judges whether they can be trusted (engine/quota_epoch.py).
When a quota that was set has ended its doubt, all of them are written before it keeps the epoch. Every change is in
Redis before its generation is kept.
"""

import json
import logging
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import redis

from contract.keys import Keys, field_to_salt, salt_to_field
from engine.quota_epoch import Mark

logger = logging.getLogger(__name__)

#: Fields of one HSET; a long one would hold up everybody else in Redis.
BATCH = 1000


class Used(Protocol):
    """What one salt holds, in bytes."""

    @property
    def l1_bytes(self) -> int: ...
    @property
    def l2_bytes(self) -> int: ...


class Tenants(Protocol):
    """What these tables need of the engine."""

    def load_quotas(self, limits: Mapping[str, int], epoch: str) -> None: ...
    def quotas(self) -> dict[str, int]: ...
    def usage_by_salt(self) -> Mapping[str, Used]: ...
    def changed_usage(self) -> Mapping[str, Used]: ...
    def review_quota_epoch(self) -> bool: ...
    def advance_quota_epoch(self) -> str: ...
    def keep_quota_epoch(self) -> None: ...


class TenantTables:
    """Reads and writes the hashes. `note_change` may be called from any thread, the rest from one."""

    def __init__(self, engine: Tenants, keys: Keys) -> None:
        self._engine = engine
        self._keys = keys
        self._epoch = ""
        self._redis_run = ""
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._write_all = False

    def load(self, client: redis.Redis) -> int:
        """Hands the durable quotas to the engine and returns their number. Raises redis.RedisError."""
        client.set(self._keys.quota_epoch, secrets.token_hex(8), nx=True)
        self._epoch = str(client.get(self._keys.quota_epoch))
        self._redis_run = _run_of(client)
        limits = _limits(cast(dict[str, str], client.hgetall(self._keys.quota)))
        client.delete(self._keys.usage)
        self._engine.load_quotas(limits, self._epoch)
        if _forgets(client):
            logger.warning(
                "Redis keeps nothing on disk (neither appendonly nor save is set): its restart while no engine runs"
                " loses the quotas; set appendonly yes"
            )
        return len(limits)

    def note_change(self, cache_salt: str) -> None:
        """The engine's quota of this salt was set or removed; the next write() makes it durable."""
        with self._lock:
            self._changed.add(cache_salt)

    def write(self, client: redis.Redis) -> None:
        """Makes both hashes say what the engine says. Raises redis.RedisError; the next call then writes all."""
        with self._lock:
            changed, self._changed = self._changed, set()
        try:
            self._write(client, changed)
        except redis.RedisError:
            with self._lock:
                self._changed |= changed
            self._write_all = True
            raise
        self._write_all = False

    def _write(self, client: redis.Redis, changed: set[str]) -> None:
        epoch = cast(str | None, client.get(self._keys.quota_epoch))
        found, own = Mark.parse(epoch or ""), Mark.parse(self._epoch)
        if epoch is not None and (found.epoch != own.epoch or found.generation > own.generation):
            self._take_over(client, epoch, changed)
            return
        if epoch is not None and found.generation < own.generation and not self._write_all:
            logger.warning(
                "Redis was put back from generation %d of the quotas to %d, writing %d quotas again",
                own.generation, found.generation, len(self._engine.quotas()),
            )  # fmt: skip
            self._write_all = True
        if (run := _run_of(client)) != self._redis_run:
            self._redis_run, self._write_all = run, True
        if epoch is None:
            logger.warning("Redis lost its data, writing %d quotas again", len(self._engine.quotas()))
        ends_doubt = self._engine.review_quota_epoch()
        if changed or ends_doubt:
            self._epoch = self._engine.advance_quota_epoch()
        if epoch is None or self._write_all or ends_doubt:
            self._rewrite(client, self._keys.usage, _usage_fields(self._engine.usage_by_salt()))
            self._rewrite(client, self._keys.quota, _quota_fields(self._engine.quotas()), epoch=self._epoch)
            self._engine.keep_quota_epoch()
            return
        if changed:
            self._update(client, self._keys.quota, changed, _quota_fields(self._engine.quotas()), epoch=self._epoch)
            self._engine.keep_quota_epoch()
        # What is taken here and cannot be written is not lost: the next call writes all.
        usage = self._engine.changed_usage()
        self._update(client, self._keys.usage, usage, _usage_fields(usage))

    def _take_over(self, client: redis.Redis, epoch: str, changed: set[str]) -> None:
        """The quotas of another life count from now on, with what was changed and not written yet on top."""
        logger.warning("the quotas in Redis are of another life (%s, not %s), taking them over", epoch, self._epoch)
        limits = _limits(cast(dict[str, str], client.hgetall(self._keys.quota)))
        own = self._engine.quotas()
        kept = {salt: limit for salt, limit in limits.items() if salt not in changed}
        self._engine.load_quotas({**kept, **{salt: own[salt] for salt in changed if salt in own}}, epoch)
        self._epoch = self._engine.advance_quota_epoch() if changed else epoch
        self._update(client, self._keys.quota, changed, _quota_fields(own), epoch=self._epoch)
        self._rewrite(client, self._keys.usage, _usage_fields(self._engine.usage_by_salt()))
        self._engine.keep_quota_epoch()

    def _update(
        self, client: redis.Redis, key: str, salts: Iterable[str], fields: Mapping[str, str], epoch: str = ""
    ) -> None:
        """Sets those of the salts that have a field, removes the others; with `epoch`, in one step with that."""
        names = [salt_to_field(salt) for salt in salts]
        present = {name: fields[name] for name in names if name in fields}
        gone = [name for name in names if name not in fields]
        if not names:
            return
        with client.pipeline(transaction=True) as pipeline:
            for batch in _batches(list(present.items())):
                pipeline.hset(key, mapping=cast(Any, dict(batch)))
            for batch in _batches(gone):
                pipeline.hdel(key, *batch)
            if epoch:
                pipeline.set(self._keys.quota_epoch, epoch)
            pipeline.execute()

    def _rewrite(self, client: redis.Redis, key: str, fields: Mapping[str, str], epoch: str = "") -> None:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.delete(key)
            for batch in _batches(list(fields.items())):
                pipeline.hset(key, mapping=cast(Any, dict(batch)))
            if epoch:
                pipeline.set(self._keys.quota_epoch, epoch)
            pipeline.execute()


def _run_of(client: redis.Redis) -> str:
    """What a Redis server calls this run of its process."""
    return str(client.info("server")["run_id"])


def _forgets(client: redis.Redis) -> bool:
    """Whether Redis says that it keeps nothing on disk; one that does not tell may well."""
    try:
        if str(client.info("persistence").get("aof_enabled")) != "0":
            return False
        return cast(dict[str, str], client.config_get("save")).get("save") == ""
    except redis.ResponseError:
        return False


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _quota_fields(limits: Mapping[str, int]) -> dict[str, str]:
    return {salt_to_field(salt): str(limit) for salt, limit in limits.items()}


def _usage_fields(usage: Mapping[str, Used]) -> dict[str, str]:
    """Only salts that hold something."""
    return {
        salt_to_field(salt): json.dumps({"l1_bytes": used.l1_bytes, "l2_bytes": used.l2_bytes})
        for salt, used in usage.items()
        if used.l1_bytes or used.l2_bytes
    }


def _limits(fields: Mapping[str, str]) -> dict[str, int]:
    """The hash as salts and bytes. What people wrote by hand and nobody can read is left out, loudly."""
    limits = {}
    for field, value in fields.items():
        if value.isascii() and value.isdigit():
            limits[field_to_salt(field)] = int(value)
        else:
            logger.error("the quota of %s is %r, which is no number of bytes; it does not count", field, value)
    return limits
