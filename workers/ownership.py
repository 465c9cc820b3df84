"""Who may be the engine: one process per run directory, one live boot per instance id in a Redis."""

import fcntl
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import TextIO

import redis

from contract.engine_record import ALIVE_S, BEAT_INTERVAL_S, EngineRecord, read_redis_record, write_redis_beat
from contract.keys import Keys
from workers.errors import CannotStart

logger = logging.getLogger(__name__)

POLL_S = 0.2


def lock_file(path: Path, what: str) -> TextIO:
    """Holds `path` for as long as the result is open. Raises CannotStart when it cannot, or another process does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise CannotStart(f"data_dir: {path.parent.parent} cannot be used: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise CannotStart(f"data_dir: {path.parent.parent} is in use by another {what} (process {holder})") from error
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def claim_instance(client: redis.Redis, keys: Keys, record: EngineRecord, stopping: threading.Event) -> bool:
    """Makes the instance id ours. False when `stopping` was set meanwhile.

    A fresh beat of another boot may be that of a process that died a second ago. A dead process of this host is
    replaced at once; another one is watched for as long as a beat lives: if it beats again, CannotStart. Raises
    redis.RedisError.
    """
    give_up_at = time.monotonic() + ALIVE_S + 2 * BEAT_INTERVAL_S
    first_seen: EngineRecord | None = None
    while not stopping.is_set():
        other = read_redis_record(client, keys)
        replaces = other.boot_id if other is not None and _is_dead_here(other) else ""
        holder = write_redis_beat(client, keys, record, replaces)
        if holder == record.boot_id:
            if other is not None and replaces:
                logger.warning("taking over from boot %s, whose process %d is dead", other.boot_id, other.pid)
            return True
        if other is not None and first_seen is None:
            first_seen = other
            logger.warning("boot %s on %s held instance %s a moment ago, watching it", other.boot_id, other.host,
                           keys.instance_id)  # fmt: skip
        if other is not None and (_beats_on(first_seen, other) or time.monotonic() > give_up_at):
            raise CannotStart(
                f"instance_id: {keys.instance_id!r} belongs to boot {other.boot_id}, process {other.pid} "
                f"on {other.host}, which is alive; give this engine another instance_id"
            )
        stopping.wait(POLL_S)
    return False


def _is_dead_here(record: EngineRecord) -> bool:
    """Whether the record's process was one of this host and is gone."""
    if record.host != socket.gethostname():
        return False
    if record.pid == os.getpid():  # a container that was started again
        return True
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _beats_on(before: EngineRecord | None, now: EngineRecord) -> bool:
    """Whether the same boot, or yet another one, has beaten since."""
    if before is None:
        return False
    return now.boot_id != before.boot_id or now.beat_at - before.beat_at > BEAT_INTERVAL_S / 2
