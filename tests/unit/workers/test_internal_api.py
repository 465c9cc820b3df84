"""What the engine's own internal API server does with a command."""

import time

import pytest

from contract.commands import Command, PingEngine, SetSwitch, ShowLoggers
from contract.engine_record import EngineRecord
from contract.errors import CommandFailed
from contract.keys import Keys
from contract.prefetch_jobs import PrefetchStore
from contract.redis_client import open_redis
from engine.config import EngineConfig
from engine.engine import Engine
from workers.command_handlers import Worker
from workers.internal_api import LocalEngine
from workers.prefetch_jobs import PrefetchJobs
from workers.tenant_tables import TenantTables


def test_what_a_command_changes_is_published_before_it_is_answered() -> None:
    engine, keys = Engine(EngineConfig(l1_size_bytes=1 << 20)), Keys("local")
    nowhere = PrefetchStore(open_redis("redis://127.0.0.1:1/0"), keys)
    worker = Worker(engine, TenantTables(engine, keys), PrefetchJobs(engine, nowhere, engine.threads))
    now = time.time()
    published: list[object] = []
    local = LocalEngine(
        worker,
        lambda: EngineRecord("boot", 1, "host", "ready", "", now, now, 0.0),
        {},
        lambda: published.append(engine.status()["frozen"]),
    )

    def published_by(command: Command) -> list[object]:
        published.clear()
        local.run(command)
        return list(published)

    assert published_by(SetSwitch("freeze", "", True)) == [True]
    assert published_by(SetSwitch("freeze", "", False)) == [False]
    assert published_by(PingEngine()) == published_by(ShowLoggers()) == []
    with pytest.raises(CommandFailed):
        published_by(SetSwitch("bypass", "nothing", True))
    assert published == []
