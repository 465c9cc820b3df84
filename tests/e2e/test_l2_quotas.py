"""Quotas and usage over both tiers in a real stack: right after a restart, and harmless when Redis has lost them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from contract import snapshots
from contract.keys import Keys
from engine.dataplane.client import LarderClient, SharedKV
from engine.l2.object_name import key_of_name
from tests.conftest import start_redis
from tests.stack import EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for

GIB = 2**30
KEYS = Keys("default")


class Stack:
    """Redis, an engine with an fs adapter under IsolatedLRU, and gunicorn; each may be replaced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / "objects"
        adapter = {"type": "fs", "base_path": str(self.files), "eviction": {"eviction_policy": "IsolatedLRU"}}
        self.settings = {"l2_adapter": json.dumps(adapter)}
        self.redis: RedisServer
        self.engine: EngineProcess
        self._parts = ExitStack()

    def start(self, redis_name: str) -> None:
        """Everything, beside a Redis whose data is called `redis_name`."""
        parts = self._parts
        self.redis = parts.enter_context(start_redis("redis", self.directory / redis_name))
        place = self.directory / "larder"
        self.engine = parts.enter_context(EngineProcess(place, self.redis.url, **self.settings))
        self.http = parts.enter_context(WebProcess(place, self.redis.url, **self.settings)).http

    def stop(self) -> None:
        self._parts.close()

    def fill(self, salt: str, chunks: int) -> None:
        """Stores that many objects for a tenant and waits until all are files."""
        before = len(self.stored(salt))
        tokens = list(range(256 * chunks))
        address = f"tcp://127.0.0.1:{self.engine.port}"
        with SharedKV([(2, 16 * chunks, 16, 1, 8)]) as memory, LarderClient(address, "quotas/model") as client:
            client.register_shared(memory)
            client.store(tokens, [list(range(16 * chunks))], f"request-{salt}", cache_salt=salt)
            client.end_session(f"request-{salt}")
        wait_for(lambda: len(self.stored(salt)) == before + chunks, 10, f"what {salt} stored is on disk")

    def stored(self, salt: str) -> dict[str, int]:
        """A tenant's files with their sizes."""
        sizes = {}
        for path in self.files.glob("??/*"):
            key = key_of_name(path.name)
            if key is not None and key.cache_salt == salt:
                sizes[path.name] = path.stat().st_size
        return sizes

    def usage(self, salt: str) -> dict[str, float]:
        """Bytes of a tenant as HTTP tells them."""
        answer = self.http("GET", f"/quota/{salt}").json()
        return {tier: answer[f"{tier}_usage_gb"] * GIB for tier in ("l1", "l2", "current")}

    def status(self) -> dict[str, Any]:
        return dict(self.http("GET", "/status").json())

    def wait_for_passes(self) -> None:
        """Until the catalog is complete and each tier was judged by quota after that."""
        (adapter,) = self.status()["storage_manager"]["l2_adapters"]
        wait_for(lambda: self.status()["storage_manager"]["l2_adapters"][0]["catalog"]["complete"], 10, "the scan")
        loops = ["l1-eviction", f"l2-eviction-{adapter['adapter_index']}-fs"]
        runs = {name: self.runs_of(name) for name in loops}
        for name in loops:
            wait_for(lambda name=name: self.runs_of(name) >= runs[name] + 2, 10, f"two passes of {name}")

    def write_by_hand(self, salt: str, limit_bytes: int) -> None:
        """As an operator with redis-cli does who has many quotas to restore."""
        client = self.redis.client()
        try:
            client.hset(KEYS.quota, salt, str(limit_bytes))
        finally:
            client.close()

    def runs_of(self, name: str) -> int:
        client = self.redis.client()
        try:
            snapshot = snapshots.read(client, KEYS, snapshots.PERIODIC_THREADS)
        finally:
            client.close()
        assert snapshot is not None
        return next(int(thread["total_runs"]) for thread in snapshot.body if thread["name"] == name)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def test_after_a_restart_usage_is_what_is_on_disk_and_quotas_act_on_it(stack: Stack) -> None:
    stack.start("redis")
    for salt, limit_gb in (("alice", 1), ("bob", 1)):
        assert stack.http("PUT", f"/quota/{salt}", {"limit_gb": limit_gb}).status == 200
    stack.fill("alice", 4)
    stack.fill("bob", 2)
    sizes = {salt: stack.stored(salt) for salt in ("alice", "bob")}
    on_disk = {salt: sum(sizes[salt].values()) for salt in sizes}
    wait_for(lambda: stack.usage("alice")["l2"] == on_disk["alice"], 10, "usage in L2 is shown")
    assert stack.usage("alice")["l1"] > 0

    stack.engine.kill()
    stack.engine.start()

    for salt, nbytes in on_disk.items():
        wait_for(lambda salt=salt, nbytes=nbytes: stack.usage(salt)["l2"] == nbytes, 10, f"usage of {salt}")
        assert stack.usage(salt) == {"l1": 0, "l2": nbytes, "current": nbytes}
    assert stack.status()["quotas"]["unregistered_suspended_because"] is None
    assert stack.status()["quotas"]["enforced_on"] == ["0-fs"]

    one = next(iter(sizes["alice"].values()))
    stack.http("PUT", "/quota/alice", {"limit_gb": 2.5 * one / GIB})
    wait_for(lambda: len(stack.stored("alice")) == 2, 10, "alice is brought within her quota")
    wait_for(lambda: stack.usage("alice")["l2"] == 2 * one, 10, "and her usage follows")
    stack.http("DELETE", "/quota/alice")
    wait_for(lambda: stack.stored("alice") == {}, 10, "a tenant without a quota keeps nothing")
    assert stack.stored("bob") == sizes["bob"]


def test_a_redis_that_lost_its_data_deletes_nothing_until_a_quota_is_set(stack: Stack) -> None:
    stack.start("redis")
    for salt in ("alice", "bob", "carol"):
        stack.http("PUT", f"/quota/{salt}", {"limit_gb": 1})
        stack.fill(salt, 2)
    sizes = {salt: stack.stored(salt) for salt in ("alice", "bob", "carol")}
    stack.stop()

    stack.start("another redis")
    stack.wait_for_passes()

    quotas = stack.status()["quotas"]
    assert "until the next PUT /quota" in quotas["unregistered_suspended_because"]
    assert (quotas["enforced"], quotas["registered"]) == (True, 0)
    assert "larder_quotas_suspended 1.0" in stack.http("GET", "/metrics").body.decode()
    assert "limit 0 for tenants without a quota is suspended" in stack.engine.log_tail()
    assert {salt: stack.stored(salt) for salt in sizes} == sizes

    stack.write_by_hand("carol", GIB)
    stack.engine.stop()
    stack.engine.start()
    stack.wait_for_passes()
    assert stack.status()["quotas"]["unregistered_suspended_because"] is not None
    assert {salt: stack.stored(salt) for salt in sizes} == sizes

    assert stack.http("PUT", "/quota/bob", {"limit_gb": 1}).status == 200
    assert stack.status()["quotas"]["unregistered_suspended_because"] is None
    assert "larder_quotas_suspended 0.0" in stack.http("GET", "/metrics").body.decode()
    wait_for(lambda: stack.stored("alice") == {}, 10, "limit 0 acts again")
    assert {salt: stack.stored(salt) for salt in ("bob", "carol")} == {salt: sizes[salt] for salt in ("bob", "carol")}

    stack.engine.kill()
    stack.engine.start()
    stack.wait_for_passes()
    assert stack.status()["quotas"]["unregistered_suspended_because"] is None
    assert stack.stored("bob") == sizes["bob"]


def test_a_flush_under_a_running_engine_suspends_and_deletes_nothing(stack: Stack) -> None:
    stack.start("redis")
    stack.http("PUT", "/quota/alice", {"limit_gb": 1})
    stack.fill("alice", 2)
    sizes = stack.stored("alice")
    client = stack.redis.client()
    try:
        epoch = client.get(KEYS.quota_epoch)
        client.flushall()
        wait_for(lambda: client.get(KEYS.quota_epoch) == epoch, 10, "the epoch is written again")
        wait_for(lambda: limit_of(client, "alice") == GIB, 10, "and the quotas")
    finally:
        client.close()

    wait_for(lambda: stack.http("GET", "/status").status == 200, 10, "status is there again")
    stack.wait_for_passes()
    assert stack.status()["quotas"]["unregistered_suspended_because"] is None
    assert stack.stored("alice") == sizes


def test_a_redis_restored_from_an_older_copy_deletes_nothing_until_a_quota_is_set(stack: Stack) -> None:
    stack.start("redis")
    stack.http("PUT", "/quota/alice", {"limit_gb": 1})
    client = stack.redis.client()
    try:
        client.save()
    finally:
        client.close()
    stack.http("PUT", "/quota/bob", {"limit_gb": 1})
    for salt in ("alice", "bob"):
        stack.fill(salt, 2)
    sizes = {salt: stack.stored(salt) for salt in ("alice", "bob")}

    stack.engine.kill()
    stack.engine.start()
    stack.wait_for_passes()
    assert stack.status()["quotas"]["unregistered_suspended_because"] is None

    stack.engine.kill()
    stack.redis.kill()
    stack.redis.options = ("--appendonly", "no")  # so that it reads the copy
    stack.redis.start()
    stack.engine.start()
    wait_for(lambda: stack.http("GET", "/status").status == 200, 10, "status is there again")
    stack.wait_for_passes()

    quotas = stack.status()["quotas"]
    assert "restored from an older copy" in quotas["unregistered_suspended_because"]
    assert quotas["registered"] == 1
    assert "restored from an older copy" in stack.engine.log_tail()
    assert "Redis keeps nothing on disk" in stack.engine.log_tail()
    assert {salt: stack.stored(salt) for salt in sizes} == sizes

    stack.http("PUT", "/quota/bob", {"limit_gb": 1})
    stack.engine.stop()
    stack.engine.start()
    stack.wait_for_passes()
    assert stack.status()["quotas"]["unregistered_suspended_because"] is None
    assert {salt: stack.stored(salt) for salt in sizes} == sizes


def limit_of(client: "redis.Redis", salt: str) -> int:
    return int(str(client.hget(KEYS.quota, salt) or 0))
