"""Quotas are read before anything is enforced, written before they are answered, and survive a Redis that forgets."""

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
import redis

from contract.keys import Keys
from contract.redis_client import open_redis
from engine.quota_epoch import Mark
from engine.tenants import Usage
from tests.stack import RedisServer
from workers.tenant_tables import BATCH, TenantTables

KEYS = Keys("tenants")


class Tenants:
    """An engine's tables as plain dictionaries."""

    def __init__(self) -> None:
        self.limits: dict[str, int] | None = None
        self.usage: dict[str, Usage] = {}
        self.changed: dict[str, Usage] = {}
        self.epochs: list[str] = []
        self.doubt_ended = False
        self.on_keep: Callable[[], None] = lambda: None

    def load_quotas(self, limits: Mapping[str, int], epoch: str) -> None:
        self.limits = dict(limits)
        self.epochs.append(epoch)

    def quotas(self) -> dict[str, int]:
        return dict(self.limits or {})

    def usage_by_salt(self) -> dict[str, Usage]:
        return dict(self.usage)

    def changed_usage(self) -> dict[str, Usage]:
        changed, self.changed = self.changed, {}
        return changed

    def review_quota_epoch(self) -> bool:
        return self.doubt_ended

    def advance_quota_epoch(self) -> str:
        epoch, generation = Mark.parse(self.epochs[-1])
        self.epochs.append(str(Mark(epoch, generation + 1)))
        return self.epochs[-1]

    def keep_quota_epoch(self) -> None:
        self.doubt_ended = False
        self.on_keep()

    def use(self, salt: str, l1_bytes: int, l2_bytes: int = 0) -> None:
        self.usage[salt] = self.changed[salt] = Usage(l1_bytes, l2_bytes)


@pytest.fixture
def client(any_redis: RedisServer) -> Iterator[redis.Redis]:
    client = open_redis(any_redis.url)
    yield client
    client.close()


@pytest.fixture
def engine() -> Tenants:
    return Tenants()


@pytest.fixture
def tables(client: redis.Redis, engine: Tenants) -> TenantTables:
    tables = TenantTables(engine, KEYS)
    tables.load(client)
    return tables


def used(l1_bytes: int, l2_bytes: int = 0) -> str:
    return json.dumps({"l1_bytes": l1_bytes, "l2_bytes": l2_bytes})


def set_quota(engine: Tenants, tables: TenantTables, salt: str, limit: int) -> None:
    assert engine.limits is not None
    engine.limits[salt] = limit
    tables.note_change(salt)


def test_the_hash_is_handed_to_the_engine(client: redis.Redis, engine: Tenants) -> None:
    client.hset(KEYS.quota, mapping={"alice": "5", "_default": "0", "typo": "5 GB", "minus": "-1"})
    client.hset(KEYS.usage, "of another boot", "{}")

    assert TenantTables(engine, KEYS).load(client) == 2
    assert engine.limits == {"alice": 5, "": 0}
    assert client.exists(KEYS.usage) == 0


def test_the_epoch_is_made_once(client: redis.Redis, tables: TenantTables, engine: Tenants) -> None:
    epoch = client.get(KEYS.quota_epoch)

    TenantTables(engine, KEYS).load(client)

    assert epoch
    assert client.get(KEYS.quota_epoch) == epoch
    assert engine.epochs == [epoch, epoch]


def test_only_what_changed_is_written(client: redis.Redis, tables: TenantTables, engine: Tenants) -> None:
    set_quota(engine, tables, "", 3)
    set_quota(engine, tables, "alice", 5)
    engine.use("alice", 9)
    engine.use("carol", 0, 6)
    tables.write(client)
    client.hset(KEYS.quota, "by hand", "1")
    assert engine.limits is not None
    del engine.limits["alice"]
    tables.note_change("alice")
    engine.use("alice", 0)
    engine.use("bob", 4)

    tables.write(client)

    assert client.hgetall(KEYS.quota) == {"_default": "3", "by hand": "1"}
    assert client.hgetall(KEYS.usage) == {"bob": used(4), "carol": used(0, 6)}


def test_after_a_flush_both_hashes_are_written_from_memory(
    client: redis.Redis, tables: TenantTables, engine: Tenants
) -> None:
    set_quota(engine, tables, "alice", 5)
    engine.use("alice", 9)
    tables.write(client)
    epoch = client.get(KEYS.quota_epoch)

    client.flushall()
    tables.write(client)

    assert client.hgetall(KEYS.quota) == {"alice": "5"}
    assert client.hgetall(KEYS.usage) == {"alice": used(9)}
    assert client.get(KEYS.quota_epoch) == epoch


def test_another_epochs_quotas_are_taken_over(client: redis.Redis, tables: TenantTables, engine: Tenants) -> None:
    set_quota(engine, tables, "alice", 5)
    tables.write(client)
    client.set(KEYS.quota_epoch, "restored")
    client.delete(KEYS.quota)
    client.hset(KEYS.quota, "bob", "7")
    set_quota(engine, tables, "carol", 8)

    tables.write(client)

    assert engine.limits == {"bob": 7, "carol": 8}
    assert client.hgetall(KEYS.quota) == {"bob": "7", "carol": "8"}
    assert engine.epochs[2:] == ["restored", "restored:1"]
    assert client.get(KEYS.quota_epoch) == "restored:1"


def test_a_quota_that_ends_the_doubt_is_in_redis_with_all_others_before_the_epoch_is_kept(
    client: redis.Redis, tables: TenantTables, engine: Tenants
) -> None:
    kept: list[object] = []
    assert engine.limits is not None
    engine.limits["alice"] = 5  # set, and not noted yet: the command's thread is between the two
    engine.doubt_ended = True
    engine.on_keep = lambda: kept.append(client.hgetall(KEYS.quota))
    client.hset(KEYS.usage, "by hand", "not JSON")

    tables.write(client)
    tables.write(client)

    assert kept == [{"alice": "5"}]
    assert client.hgetall(KEYS.usage) == {}


def test_the_epoch_is_not_kept_while_redis_is_away(
    client: redis.Redis, tables: TenantTables, engine: Tenants, any_redis: RedisServer
) -> None:
    engine.doubt_ended = True
    any_redis.stop()

    with pytest.raises(redis.RedisError):
        tables.write(client)

    assert engine.doubt_ended


def test_what_could_not_be_written_is_written_next_time(
    client: redis.Redis, tables: TenantTables, engine: Tenants, any_redis: RedisServer
) -> None:
    set_quota(engine, tables, "alice", 5)
    engine.use("alice", 9)
    any_redis.stop()
    with pytest.raises(redis.RedisError):
        tables.write(client)
    any_redis.start()

    tables.write(client)

    assert client.hgetall(KEYS.quota) == {"alice": "5"}
    assert client.hgetall(KEYS.usage) == {"alice": used(9)}


def test_what_a_restarted_redis_forgot_is_written_again(
    client: redis.Redis, tables: TenantTables, engine: Tenants, any_redis: RedisServer
) -> None:
    set_quota(engine, tables, "alice", 5)
    tables.write(client)
    client.hdel(KEYS.quota, "alice")  # as if the last second of the append-only file were missing

    any_redis.restart()
    tables.write(client)

    assert client.hgetall(KEYS.quota) == {"alice": "5"}


def test_many_tenants_are_written_in_batches(client: redis.Redis, tables: TenantTables, engine: Tenants) -> None:
    for number in range(2 * BATCH + 1):
        set_quota(engine, tables, f"salt-{number}", number)

    tables.write(client)

    assert client.hlen(KEYS.quota) == 2 * BATCH + 1


def test_every_change_is_counted_in_the_same_step_and_kept_when_it_is_in_redis(
    client: redis.Redis, tables: TenantTables, engine: Tenants
) -> None:
    kept: list[object] = []
    engine.on_keep = lambda: kept.append((client.get(KEYS.quota_epoch), client.hgetall(KEYS.quota)))
    epoch = engine.epochs[0]
    tables.write(client)
    set_quota(engine, tables, "alice", 5)
    tables.write(client)
    tables.write(client)
    assert engine.limits is not None
    del engine.limits["alice"]
    tables.note_change("alice")
    tables.write(client)

    assert kept == [(f"{epoch}:1", {"alice": "5"}), (f"{epoch}:2", {})]


def test_a_redis_put_back_under_a_running_engine_is_written_again(
    client: redis.Redis, tables: TenantTables, engine: Tenants, caplog: pytest.LogCaptureFixture
) -> None:
    before = client.get(KEYS.quota_epoch)
    set_quota(engine, tables, "bob", 7)
    tables.write(client)
    after = client.get(KEYS.quota_epoch)
    client.delete(KEYS.quota)
    client.set(KEYS.quota_epoch, str(before))

    tables.write(client)

    assert client.hgetall(KEYS.quota) == {"bob": "7"}
    assert client.get(KEYS.quota_epoch) == after
    assert "from generation 1 of the quotas to 0" in caplog.text


def test_newer_quotas_of_the_same_life_are_taken_over(
    client: redis.Redis, tables: TenantTables, engine: Tenants
) -> None:
    newer = f"{engine.epochs[0]}:9"
    client.hset(KEYS.quota, "bob", "7")
    client.set(KEYS.quota_epoch, newer)

    tables.write(client)

    assert engine.limits == {"bob": 7}
    assert engine.epochs[-1] == newer


@pytest.mark.parametrize(
    ("aof", "save", "warned"), [("no", "", True), ("yes", "", False), ("no", "3600 1", False), ("no", None, False)]
)
def test_a_redis_that_keeps_nothing_on_disk_is_told(
    client: redis.Redis, engine: Tenants, caplog: pytest.LogCaptureFixture, aof: str, save: str | None, warned: bool
) -> None:
    client.config_set("appendonly", aof)
    if save is None:
        client.config_set("save", "")
        client.acl_setuser("default", categories=["+@all"], commands=["-config"])
    else:
        client.config_set("save", save)
    try:
        TenantTables(engine, KEYS).load(client)
    finally:
        client.acl_setuser("default", categories=["+@all"])

    assert ("keeps nothing on disk" in caplog.text) == warned
