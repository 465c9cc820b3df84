"""Every command has a handler, and handlers call the engine's verbs."""

import pytest

from contract.commands import COMMANDS, ChecksumBlocks, ClearCache, DeleteQuota, PingEngine, SetQuota
from contract.keys import Keys
from contract.prefetch_jobs import PrefetchStore
from contract.redis_client import open_redis
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import BadRequest
from workers.command_handlers import HANDLERS, Worker, run
from workers.prefetch_jobs import PrefetchJobs
from workers.tenant_tables import TenantTables


@pytest.fixture
def worker() -> Worker:
    engine = Engine(EngineConfig(l1_size_bytes=1 << 20))
    keys = Keys("handlers")
    nowhere = PrefetchStore(open_redis("redis://127.0.0.1:1/0"), keys)
    return Worker(engine, TenantTables(engine, keys), PrefetchJobs(engine, nowhere, engine.threads))


def test_every_command_has_a_handler() -> None:
    assert set(HANDLERS) == set(COMMANDS.values())


def test_a_quota_is_set_and_removed(worker: Worker) -> None:
    assert run(worker, SetQuota("a", 5)) == {"cache_salt": "a", "limit_bytes": 5}
    assert worker.engine.quotas() == {"a": 5}
    assert run(worker, DeleteQuota("a")) == {"removed": True}
    assert run(worker, DeleteQuota("a")) == {"removed": False}


def test_an_empty_cache_is_cleared(worker: Worker) -> None:
    assert run(worker, ClearCache(force=True)) == {"removed": 0, "kept": 0, "doomed": 0}


def test_a_ping_tells_the_boot(worker: Worker) -> None:
    assert run(worker, PingEngine()) == {"boot_id": worker.engine.boot_id}


def test_the_engines_refusal_comes_through(worker: Worker) -> None:
    with pytest.raises(BadRequest, match="instance_id 3 not registered"):
        run(worker, ChecksumBlocks(3, (1,), 1, False))
