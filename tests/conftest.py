"""Fixtures for every test: nothing may be left behind, and real servers are a fixture away."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import RUN_MARK, SIDE_BY_SIDE, Census, leaks_since
from tests.stack import (
    EngineProcess,
    Larder,
    RedisServer,
    WebProcess,
    embedded_redis_binary,
    need,
    redis62_binary,
)

if SIDE_BY_SIDE in os.environ:
    os.environ[RUN_MARK] = str(os.getpid())
os.environ.setdefault(RUN_MARK, str(os.getpid()))

REDIS_BINARIES = {"redis": embedded_redis_binary, "redis62": redis62_binary}


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test after which a thread, descriptor, process or shared memory entry is there that was not before.

    Set up before the other fixtures of a test and torn down after them; fixtures of a wider scope are not its
    business, those of a module are checked by `module_leaves_nothing_behind`.
    """
    before = Census.take()
    yield
    if left := leaks_since(before):
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for what a module's own fixtures start."""
    before = Census.take()
    yield
    if left := leaks_since(before):
        pytest.fail(f"left behind by {request.node.name}:\n  " + "\n  ".join(left), pytrace=False)


def start_redis(feature: str, directory: Path) -> RedisServer:
    """A server of the version that `feature` names, not started yet."""
    binary = REDIS_BINARIES[feature]()
    need(feature, binary is not None, "its server binary is not installed (requirements-dev.txt brings it)")
    assert binary is not None
    return RedisServer(directory, binary)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis of the version that the installation brings."""
    with start_redis("redis", tmp_path / "redis") as server:
        yield server


@pytest.fixture(params=list(REDIS_BINARIES))
def any_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis; a test that asks for it runs once for each version we promise to work with."""
    with start_redis(request.param, tmp_path / "redis") as server:
        yield server


@pytest.fixture
def engine_process(tmp_path: Path, redis_server: RedisServer) -> Iterator[EngineProcess]:
    """An engine worker that is ready, beside `redis_server`."""
    with EngineProcess(tmp_path / "larder", redis_server.url) as engine:
        yield engine


@pytest.fixture
def web_process(tmp_path: Path, redis_server: RedisServer) -> Iterator[WebProcess]:
    """gunicorn beside `redis_server`; it shares the data directory of `engine_process`."""
    with WebProcess(tmp_path / "larder", redis_server.url) as web:
        yield web


@pytest.fixture
def larder(tmp_path: Path) -> Iterator[Larder]:
    """The whole product, started by its launcher with an embedded Redis."""
    with Larder(tmp_path / "larder") as whole:
        yield whole
