"""What the engine publishes for cheap reads: one hash per name, read with its age.

Ages are by Redis's clock on both sides, so the web tier may live on another host than the engine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import redis

from contract.errors import RedisAway
from contract.keys import Keys
from contract.redis_client import describe, redis_time_s

STATUS = "status"
CONF = "conf"
ADAPTERS = "adapters"
PERIODIC_THREADS = "periodic_threads"
METRICS = "metrics"
NAMES = (STATUS, CONF, ADAPTERS, PERIODIC_THREADS, METRICS)


@dataclass(frozen=True)
class Snapshot:
    """One published body. `taken_at` is Redis's clock when its making began; `number` grows with each one."""

    name: str
    body: Any
    number: int
    taken_at: float
    boot_id: str
    age_s: float


def publish(
    client: redis.Redis, keys: Keys, name: str, body: Any, boot_id: str, *, taken_at: float | None = None
) -> None:
    """Replaces the snapshot `name`. `taken_at` (Redis's clock) defaults to now. Raises redis.RedisError."""
    publish_all(client, keys, {name: body}, boot_id, taken_at=redis_time_s(client) if taken_at is None else taken_at)


def publish_all(client: redis.Redis, keys: Keys, bodies: Mapping[str, Any], boot_id: str, *, taken_at: float) -> None:
    """Replaces several snapshots at once: a reader sees all of them or none. Raises redis.RedisError."""
    SnapshotWriter(client, keys, boot_id).write(bodies, taken_at=taken_at)


class SnapshotWriter:
    """Writes the snapshots of one boot. A body that Redis has already is dated anew and not sent again. One thread."""

    def __init__(self, client: redis.Redis, keys: Keys, boot_id: str) -> None:
        self._client, self._keys, self._boot_id = client, keys, boot_id
        #: What Redis has for certain: name -> (body, number).
        self._written: dict[str, tuple[str, int]] = {}

    def held(self) -> set[str]:
        """Names that Redis has as they were last written here; a Redis that lost them, or went back, has not.

        Raises redis.RedisError.
        """
        names = list(self._written)
        with self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(self._keys.snapshot(name), ["boot_id", "number"])
            found = pipeline.execute()
        for name, (boot_id, number) in zip(names, found, strict=True):
            if (boot_id, number) != (self._boot_id, str(self._written[name][1])):
                del self._written[name]
        return set(self._written)

    def write(self, bodies: Mapping[str, Any], *, taken_at: float) -> None:
        """Replaces these snapshots at once: a reader sees all of them or none. Raises redis.RedisError."""
        before = {name: self._written.pop(name, ("", 0)) for name in bodies}  # until Redis has answered
        texts = {name: json.dumps(body, separators=(",", ":")) for name, body in bodies.items()}
        with self._client.pipeline(transaction=True) as pipeline:
            for name, text in texts.items():
                fields: dict[Any, Any] = {"taken_at": f"{taken_at:.6f}"}
                if text != before[name][0]:
                    fields |= {"body": text, "boot_id": self._boot_id}
                pipeline.hset(self._keys.snapshot(name), mapping=fields)
                pipeline.hincrby(self._keys.snapshot(name), "number", 1)
            numbers = pipeline.execute()[1::2]
        for (name, text), number in zip(texts.items(), numbers, strict=True):
            if text != before[name][0] or number == before[name][1] + 1:
                self._written[name] = (text, number)


def read(client: redis.Redis, keys: Keys, name: str) -> Snapshot | None:
    """The last published snapshot, or None when there never was one. Raises RedisAway."""
    try:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(keys.snapshot(name))
            pipeline.time()
            fields, (seconds, microseconds) = cast(tuple[dict[str, str], tuple[int, int]], tuple(pipeline.execute()))
    except redis.RedisError as error:
        raise RedisAway(describe(error)) from error
    if not {"body", "number", "taken_at", "boot_id"} <= fields.keys():
        return None
    taken_at = float(fields["taken_at"])
    return Snapshot(
        name=name,
        body=json.loads(fields["body"]),
        number=int(fields["number"]),
        taken_at=taken_at,
        boot_id=fields["boot_id"],
        age_s=max(0.0, seconds + microseconds / 1e6 - taken_at),
    )


def read_text(client: redis.Redis, keys: Keys, name: str) -> tuple[str, str] | None:
    """The last published body as JSON text and its boot id, without parsing; None when there never was one.

    Raises RedisAway.
    """
    try:
        body, boot_id = cast(list[str | None], client.hmget(keys.snapshot(name), ["body", "boot_id"]))
    except redis.RedisError as error:
        raise RedisAway(describe(error)) from error
    return None if body is None or boot_id is None else (body, boot_id)
