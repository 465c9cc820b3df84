"""The engine process's own internal API server: index 0, answering from this process's engine.

It is there before Redis is reached, so that curl tells what an engine that does not become ready is waiting for.
"""

from collections.abc import Callable, Mapping
from typing import Any

from app.internal_server import InProcessBackend, InternalAPIServer
from contract.command_queue import BUSY
from contract.commands import Command
from contract.engine_record import EngineRecord
from contract.errors import CommandFailed, QueueFull
from contract.keys import Keys
from contract.settings import Settings
from workers.command_handlers import Worker, failure_of, run
from workers.engine_facts import engine_facts
from workers.internal_settings import internal_api_config

#: Requests that may wait for the engine at a time: the other threads are left for those that read.
MAX_WAITING = 4
RETRY_AFTER_S = 1.0


class LocalEngine:
    """The engine of this process, as an in-process backend asks it."""

    def __init__(
        self,
        worker: Worker,
        record: Callable[[], EngineRecord],
        sources: Mapping[str, Callable[[], object]],
        publish_now: Callable[[], None],
    ) -> None:
        """`publish_now` has the web tier see what `sources` say now."""
        self._worker, self._record, self._publish_now = worker, record, publish_now
        self._sources = {**sources, **engine_facts(worker, self._is_ready)}

    def _is_ready(self) -> bool:
        return self._record().state == "ready"

    def record(self) -> EngineRecord:
        """The heartbeat as of now."""
        return self._record()

    def run(self, command: Command) -> dict[str, Any]:
        """The reply to a command, once what it changed is published. Raises CommandFailed, QueueFull."""
        try:
            reply = run(self._worker, command)
        except Exception as error:
            code, text = failure_of(command, error)
            if code == BUSY:
                raise QueueFull(text, RETRY_AFTER_S) from error
            raise CommandFailed(code, text) from error
        if command.changes_snapshots:
            self._publish_now()
        return reply

    def snapshot(self, name: str) -> Any:
        """What would be published under this name."""
        return self._sources[name]()

    def limits(self) -> dict[str, int]:
        """Registered quotas in bytes."""
        return self._worker.engine.quotas()

    def usage(self) -> dict[str, tuple[int, int]]:
        """Bytes in L1 and L2 by salt."""
        return {salt: (usage[0], usage[1]) for salt, usage in self._worker.engine.usage_by_salt().items()}


class EngineManager:
    """What the internal API server of the engine process serves."""

    internal_api_index = 0

    def __init__(self, settings: Settings, local: LocalEngine) -> None:
        self.internal_api = internal_api_config(settings)
        self.local = local
        self.backend = InProcessBackend(
            local,
            redis_url=settings.effective_redis_url,
            keys=Keys(settings.instance_id),
            run_dir=settings.run_dir,
            max_waiting=MAX_WAITING,
            queue_limits=(settings.command_queue_max, settings.command_queue_max_bytes),
        )


def open_internal_server(
    settings: Settings,
    worker: Worker,
    record: Callable[[], EngineRecord],
    sources: Mapping[str, Callable[[], object]],
    publish_now: Callable[[], None],
) -> tuple[InternalAPIServer, InProcessBackend]:
    """The server, not started yet; it does nothing where it is not enabled. And whom it asks."""
    manager = EngineManager(settings, LocalEngine(worker, record, sources, publish_now))
    return InternalAPIServer(manager), manager.backend
