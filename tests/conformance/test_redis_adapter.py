"""Redis: the conformance suite against one server and a cluster of three, and what only Redis can do wrong."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engine.errors import StartError
from engine.l2.base import ConnectionFault, L2Adapter, StorageFull
from engine.l2.redis_adapter import RedisAdapter, RedisConfig
from engine.l2.registry import open_adapter
from tests.conformance.l2_conformance import KEY, L2Conformance, Raw, load, payload, store
from tests.conformance.redis_servers import RawValues, ask, cluster_in, is_whole, server_in
from tests.conformance.tls import make_certificate, tls_in_front_of
from tests.stack import RedisServer, free_port
from tests.waiting import wait_for

# A cluster of three and its restarts take too long for every run.
pytestmark = [pytest.mark.soak, pytest.mark.redis]

PREFIX = "kv[1]*:"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with server_in(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with cluster_in(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def raw_server(server: RedisServer) -> Iterator[RawValues]:
    raw = RawValues([server], PREFIX)
    yield raw
    raw.empty()


@pytest.fixture
def raw_cluster(nodes: list[RedisServer]) -> Iterator[RawValues]:
    raw = RawValues(nodes, PREFIX)
    yield raw
    raw.empty()


def adapter_for(server: RedisServer, **fields: object) -> RedisAdapter:
    given = {"host": "127.0.0.1", "port": server.port, "key_prefix": PREFIX, "request_timeout_s": 5.0}
    return RedisAdapter(RedisConfig(**{**given, **fields}))


class TestRedis(L2Conformance):
    @pytest.fixture
    def adapter(self, server: RedisServer) -> Iterator[RedisAdapter]:
        with closing(adapter_for(server)) as adapter:
            yield adapter

    @pytest.fixture(autouse=True)
    def raw(self, raw_server: RawValues) -> Raw:
        return raw_server


class TestRedisCluster(L2Conformance):
    @pytest.fixture
    def adapter(self, nodes: list[RedisServer]) -> Iterator[RedisAdapter]:
        with closing(adapter_for(nodes[0], cluster=True)) as adapter:
            yield adapter

    @pytest.fixture(autouse=True)
    def raw(self, raw_cluster: RawValues) -> Raw:
        return raw_cluster


def test_a_cluster_is_used_as_a_whole(nodes: list[RedisServer], raw_cluster: RawValues) -> None:
    keys = [KEY._replace(chunk_hash=bytes([number]) * 32) for number in range(30)]
    with closing(adapter_for(nodes[2], cluster=True)) as adapter:
        for key in keys:
            store(adapter, key, payload(1))

        assert {stored.key for stored in adapter.scan()} == set(keys)

    assert all(RawValues([node], PREFIX).names() for node in nodes)


def test_a_cluster_is_found_through_any_node(nodes: list[RedisServer], raw_cluster: RawValues) -> None:
    with closing(
        adapter_for(nodes[0], port=free_port(), cluster=True, more_nodes=[f"127.0.0.1:{nodes[1].port}"])
    ) as adapter:
        store(adapter, KEY, payload(1))

        assert adapter.exists(KEY)


def test_one_server_is_no_cluster(server: RedisServer) -> None:
    with pytest.raises(OSError, match=r"[Cc]luster") as raised:
        adapter_for(server, cluster=True)

    assert not isinstance(raised.value, ConnectionFault)


VERBS: dict[str, Callable[[L2Adapter], object]] = {
    "exists": lambda adapter: adapter.exists(KEY),
    "read": lambda adapter: load(adapter, KEY, 5000),
    "write": lambda adapter: store(adapter, KEY, payload(2)),
    "delete": lambda adapter: adapter.delete(KEY),
    "scan": lambda adapter: list(adapter.scan()),
}


def assert_away(adapter: L2Adapter, within_s: float) -> None:
    for name, verb in VERBS.items():
        started = time.monotonic()
        with pytest.raises(ConnectionFault):
            verb(adapter)
        assert time.monotonic() - started < within_s, name


def test_a_server_that_restarts_is_used_again(tmp_path: Path) -> None:
    server = server_in(tmp_path / "redis")
    with server:
        adapter = adapter_for(server)
        store(adapter, KEY, payload(1))

    assert_away(adapter, within_s=2)

    with server, closing(adapter):
        assert load(adapter, KEY, 5000)[2] == payload(1)
        server.restart()
        assert adapter.exists(KEY), "a connection closed meanwhile is replaced unseen"
        store(adapter, KEY, payload(2))
        assert [stored.key for stored in adapter.scan()] == [KEY]


def test_a_server_that_hangs_is_a_fault_within_the_timeout(tmp_path: Path) -> None:
    with server_in(tmp_path / "redis") as server, closing(adapter_for(server, request_timeout_s=0.3)) as adapter:
        store(adapter, KEY, payload(1))

        server.freeze()
        assert_away(adapter, within_s=3)
        server.thaw()

        wait_for(lambda: answers(adapter), 10, "the server is used again")
        assert load(adapter, KEY, 5000)[2] in (payload(1), payload(2)) or not adapter.exists(KEY)


def answers(adapter: L2Adapter) -> bool:
    try:
        adapter.exists(KEY)
    except ConnectionFault:
        return False
    return True


def test_a_cluster_that_restarts_is_used_again(tmp_path: Path) -> None:
    with cluster_in(tmp_path / "cluster") as nodes, closing(adapter_for(nodes[0], cluster=True)) as adapter:
        store(adapter, KEY, payload(1))
        for node in nodes:
            node.stop()

        assert_away(adapter, within_s=5)

        for node in nodes:
            node.start()
        for node in nodes:
            wait_for(lambda node=node: is_whole(node, 3), 30, "the cluster is one again")
        wait_for(lambda: answers(adapter), 10, "the cluster is used again")
        assert load(adapter, KEY, 5000)[2] == payload(1)


@pytest.mark.parametrize("cluster", [False, True])
def test_a_server_that_cannot_be_reached_does_not_stop_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cluster: bool
) -> None:
    port = free_port()

    adapter = RedisAdapter(RedisConfig(host="127.0.0.1", port=port, cluster=cluster, key_prefix=PREFIX))

    assert "going on without it" in caplog.text
    assert_away(adapter, within_s=3)
    if not cluster:
        server = server_in(tmp_path / "redis")
        server.port = port
        with server, closing(adapter):
            store(adapter, KEY, payload(1))
            assert adapter.exists(KEY)


@pytest.fixture(params=["server", "cluster"])
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, bool]]:
    """A server, or a cluster's node, that knows the user `larder` with the password `right/one%`; and which it is."""
    cluster = request.param == "cluster"
    parts = request.getfixturevalue("nodes") if cluster else [request.getfixturevalue("server")]
    for part in parts:
        ask(part, "ACL", "SETUSER", "larder", "on", ">right/one%", "~*", "+@all")
    yield parts[0], cluster
    for part in parts:
        ask(part, "ACL", "DELUSER", "larder")


def test_a_wrong_password_stops_the_start_and_is_not_shown(guarded: tuple[RedisServer, bool]) -> None:
    server, cluster = guarded
    url = f"redis://larder:{{}}@127.0.0.1:{server.port}"
    config = RedisConfig(url.format("right%2Fone%25"), cluster=cluster, key_prefix=PREFIX)
    with closing(RedisAdapter(config)) as adapter:
        store(adapter, KEY, payload(1))
        assert adapter.delete(KEY)
        assert "right" not in f"{adapter.describe()} {config!r}"

    with pytest.raises(
        StartError, match=r"l2_adapter 'redis' cannot be opened: 127.0.0.1:.*username-password"
    ) as raised:
        open_adapter("redis", {"url": url.format("wrong-one"), "cluster": cluster})
    assert "wrong-one" not in str(raised.value)

    fields = {"host": "127.0.0.1", "port": server.port, "username": "larder", "password": "right/one%"}
    open_adapter("redis", {**fields, "cluster": cluster}).close()


def test_a_user_without_the_right_is_told_so(server: RedisServer) -> None:
    ask(server, "ACL", "SETUSER", "writer", "on", ">secret", "~*", "+@all", "-get")
    try:
        with closing(adapter_for(server, username="writer", password="secret")) as adapter:
            with pytest.raises(OSError, match="permissions") as raised:
                load(adapter, KEY, 10)
            assert not isinstance(raised.value, ConnectionFault)
    finally:
        ask(server, "ACL", "DELUSER", "writer")


@pytest.mark.parametrize("by_url", [False, True])
def test_tls_with_an_authority_of_ones_own(tmp_path: Path, server: RedisServer, by_url: bool) -> None:
    tls = make_certificate(tmp_path / "tls")
    with tls_in_front_of(server.port, tls) as port:
        place = {"url": f"rediss://127.0.0.1:{port}"} if by_url else {"host": "127.0.0.1", "port": port, "tls": True}
        with closing(RedisAdapter(RedisConfig(**place, tls_ca_file=str(tls.authority)))) as adapter:
            store(adapter, KEY, payload(1))
            assert load(adapter, KEY, 5000)[2] == payload(1)
            assert adapter.delete(KEY)
            assert adapter.describe()["tls"] is True

        with pytest.raises(OSError, match="certificate"):
            RedisAdapter(RedisConfig(**place))


def test_a_full_server_refuses_and_keeps_what_it_has(server: RedisServer, raw_server: RawValues) -> None:
    with closing(adapter_for(server)) as adapter:
        store(adapter, KEY, payload(1))
        ask(server, "CONFIG", "SET", "maxmemory", "1mb")
        try:
            with pytest.raises(StorageFull, match="maxmemory"):
                store(adapter, KEY._replace(cache_salt=""), payload(2))
            assert load(adapter, KEY, 5000)[2] == payload(1)
        finally:
            ask(server, "CONFIG", "SET", "maxmemory", "0")


def test_a_full_cluster_refuses(nodes: list[RedisServer], raw_cluster: RawValues) -> None:
    with closing(adapter_for(nodes[0], cluster=True)) as adapter:
        for node in nodes:
            ask(node, "CONFIG", "SET", "maxmemory", "1mb")
        try:
            with pytest.raises(StorageFull, match="maxmemory"):
                store(adapter, KEY, payload(2))
        finally:
            for node in nodes:
                ask(node, "CONFIG", "SET", "maxmemory", "0")


def test_values_live_as_long_as_the_ttl_says(server: RedisServer, raw_server: RawValues) -> None:
    with closing(adapter_for(server, ttl_seconds=1000)) as mortal, closing(adapter_for(server)) as immortal:
        store(mortal, KEY, payload(1))
        store(immortal, KEY._replace(cache_salt=""), payload(1))

    with server.client() as client:
        assert sorted(client.ttl(name) for name in raw_server.names()) == [-1, pytest.approx(1000, abs=30)]


def test_prefixes_keep_servers_apart(server: RedisServer, raw_server: RawValues) -> None:
    for number, prefix in enumerate(("", "a:", "a:b:", "k?", "kv")):
        with closing(adapter_for(server, key_prefix=prefix)) as adapter:
            store(adapter, KEY, payload(number))
            assert load(adapter, KEY, 5000)[2] == payload(number)
            assert [stored.key for stored in adapter.scan()] == [KEY]


def test_values_of_another_kind_are_left_out(server: RedisServer, raw_server: RawValues) -> None:
    with closing(adapter_for(server)) as adapter, server.client() as client:
        store(adapter, KEY, payload(1))
        (name,) = raw_server.names()
        client.rpush(name.replace("alice", "bob"), "a list")
        client.set(PREFIX.encode() + b"\xff\xfe", "no text")

        assert [stored.key for stored in adapter.scan()] == [KEY]
        with pytest.raises(OSError, match="WRONGTYPE"):
            load(adapter, KEY._replace(cache_salt="bob"), 5000)


def test_a_scan_tells_how_long_ago_an_object_was_used(server: RedisServer, raw_server: RawValues) -> None:
    with closing(adapter_for(server)) as adapter, server.client() as client:
        store(adapter, KEY, payload(1))
        (name,) = raw_server.names()
        wait_for(lambda: client.object("idletime", name) >= 1, 20, "a second has passed unused")

        (found,) = adapter.scan()

        assert found.used_at < time.time() - 0.5


def test_a_closed_adapter_lets_go_of_its_connections(server: RedisServer, nodes: list[RedisServer]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for node, cluster in ((server, False), (nodes[0], True)):
        adapter = adapter_for(node, cluster=cluster)
        assert adapter.exists(KEY) is False
        assert set(os.listdir("/proc/self/fd")) - before

        adapter.close()

        assert not set(os.listdir("/proc/self/fd")) - before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either url or host"),
        ({"host": "h", "url": "redis://h"}, "not both"),
        ({"url": "http://h:1"}, "begins neither"),
        ({"url": "redis://h:port"}, "a port that is no number"),
        ({"host": "h", "ttl_seconds": -1}, "ttl_seconds is -1"),
        ({"host": "h", "request_timeout_s": 0}, "must be above 0"),
        ({"host": "h", "more_nodes": ["h2"]}, "host:port"),
        ({"url": "unix:///tmp/s", "cluster": True}, "Unix socket"),
    ],
)
def test_a_setting_that_cannot_work_stops_the_start(fields: dict[str, object], words: str) -> None:
    with pytest.raises(StartError, match=words):
        open_adapter("redis", fields)
