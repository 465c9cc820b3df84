"""A running server on a fake engine, and raw clients of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.server import DataPlaneServer
from tests.unit.dataplane.fake_engine import FakeEngine
from tests.unit.dataplane.raw_client import RawClient

Serve = Callable[..., tuple[FakeEngine, RawClient]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(limits=..., **config) starts a server; the result is its fake engine and one connected client.

    The client's attribute `port` serves for further clients, `engine.server` is the server.
    """
    with ExitStack() as stack:

        def start(limits: DataPlaneLimits | None = None, **config: object) -> tuple[FakeEngine, RawClient]:
            engine = FakeEngine(**config)
            server = DataPlaneServer(engine, "127.0.0.1", 0, limits)
            server.start()
            stack.callback(server.stop)
            engine.server = server
            return engine, stack.enter_context(RawClient(server.port))

        yield start
