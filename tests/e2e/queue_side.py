"""The engine's side of the queue for tests: the real taker, loop, publisher and heartbeat around a tenant table.

Run as a program it is a process to be killed in mid-command: `python -m tests.e2e.queue_side URL DIRECTORY`. It
serves quota.set and quota.delete with handlers that write what they do to DIRECTORY/effects, one line `begin SALT` and
one `end SALT`. What a salt begins with decides what happens between the two:

salt       between begin and end
---------  -----------------------------------------------------------
hang...    waits for ever on the first delivery, goes on on the next
poison...  the process dies
other      nothing
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract import snapshots
from contract.command_queue import WAIT_SLICE_S, CommandSubmitter
from contract.command_taker import CommandTaker
from contract.commands import Command, DeleteQuota, SetQuota
from contract.keys import Keys
from contract.prefetch_jobs import PrefetchStore
from contract.redis_client import open_blocking_redis, open_redis
from engine.periodic import PeriodicThreads
from engine.tenants import Usage
from workers import command_handlers
from workers.command_handlers import Worker
from workers.command_loop import CommandLoop
from workers.heartbeat import Heartbeat
from workers.prefetch_jobs import PrefetchJobs
from workers.publisher import Publisher
from workers.tenant_tables import TenantTables

KEYS = Keys("queue")
#: Short, so that a test does not wait long for the loop to end.
BLOCK_S = 0.1


class TenantEngine:
    """Quotas and nothing else: as much of an engine as the queue's tests need."""

    def __init__(self) -> None:
        self.boot_id = os.urandom(4).hex()
        self.limits: dict[str, int] = {}
        self.effects: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def load_quotas(self, limits: Mapping[str, int], epoch: str) -> None:
        self.limits = dict(limits)

    def quotas(self) -> dict[str, int]:
        return dict(self.limits)

    def usage_by_salt(self) -> dict[str, Usage]:
        return dict.fromkeys(self.limits, Usage(7, 0))

    def changed_usage(self) -> dict[str, Usage]:
        return {}

    def review_quota_epoch(self) -> bool:
        return False

    def advance_quota_epoch(self) -> str:
        return "counted:1"

    def keep_quota_epoch(self) -> None:
        """There is no L2 to go with it."""

    def set_quota(self, cache_salt: str, limit_bytes: int) -> None:
        self._act(cache_salt)
        self.limits[cache_salt] = limit_bytes

    def delete_quota(self, cache_salt: str) -> bool:
        self._act(cache_salt)
        return self.limits.pop(cache_salt, None) is not None

    def checksum_blocks(self, instance_id: int, *_: object) -> dict[str, Any]:
        self._act(f"checksum {instance_id}")
        return {"num_chunks": instance_id}

    def _act(self, what: str) -> None:
        self.effects.append(what)
        assert self.gate.wait(60), "nobody opened the gate"


class QueueSide:
    """Both ends of one queue in this process: `submitter` to call, `engine` to look at what was done."""

    def __init__(self, url: str, directory: Path, *, max_length: int = 1000, max_bytes: int = 1 << 20) -> None:
        self.client = open_redis(url)
        self._blocking = open_blocking_redis(url, block_s=BLOCK_S)
        self._waiting = open_blocking_redis(url, block_s=WAIT_SLICE_S)
        self.engine = engine = TenantEngine()
        threads = PeriodicThreads()
        self.tenants = TenantTables(engine, KEYS)
        sources = {snapshots.STATUS: lambda: {"limits": engine.quotas(), "effects": list(engine.effects)}}
        self.publisher = Publisher(self.client, KEYS, engine.boot_id, sources, self.tenants, threads)
        self.taker = CommandTaker(self.client, self._blocking, KEYS, engine.boot_id)
        prefetch = PrefetchJobs(engine, PrefetchStore(self.client, KEYS), threads)  # type: ignore[arg-type]
        worker = Worker(engine, self.tenants, prefetch)  # type: ignore[arg-type]
        self.loop = CommandLoop(self.taker, worker, self.publisher, threads, BLOCK_S)
        self.heartbeat = Heartbeat(KEYS, directory, engine.boot_id, "nowhere", threads)
        self.submitter = CommandSubmitter(self.client, self._waiting, KEYS, max_length, max_bytes)

    def start(self) -> None:
        self.heartbeat.start()
        self.heartbeat.go_to_redis(self.client, lambda holder: None)
        self.tenants.load(self.client)
        self.publisher.start()
        self.heartbeat.set_state("ready")
        self.loop.start()

    def stop(self) -> None:
        self.engine.gate.set()
        self.loop.stop()
        self.publisher.stop()
        self.heartbeat.stop(forget=False)
        for client in (self.client, self._blocking, self._waiting):
            client.close()


@contextmanager
def queue_side(url: str, directory: Path, **limits: int) -> Iterator[QueueSide]:
    """A running queue."""
    side = QueueSide(url, directory, **limits)
    side.start()
    try:
        yield side
    finally:
        side.stop()


def _write(directory: Path, line: str) -> None:
    with (directory / "effects").open("a") as file:
        file.write(line + "\n")


def _handler(directory: Path) -> Any:
    def act(worker: Worker, command: SetQuota | DeleteQuota) -> dict[str, Any]:
        salt = command.cache_salt
        _write(directory, f"begin {salt}")
        if salt.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        if salt.startswith("hang") and (directory / "effects").read_text().count(f"begin {salt}\n") == 1:
            threading.Event().wait()
        _write(directory, f"end {salt}")
        return {"removed": True, "cache_salt": salt}

    return act


def main(url: str, directory: Path) -> None:
    act = _handler(directory)
    handlers: dict[type[Command], Any] = {SetQuota: act, DeleteQuota: act}
    command_handlers.HANDLERS.update(handlers)
    side = QueueSide(url, directory)
    side.start()
    (directory / f"ready.{os.getpid()}").touch()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
