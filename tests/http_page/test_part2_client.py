"""Part 2 of the page against the internal API server in the process of a cache client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.internal_server import InternalAPIConfig
from engine.dataplane.client import LarderClient, SharedKV
from tests.e2e.served_engine import ServedEngine
from tests.http_page.client_cases import EMPTY, FLOWS
from tests.http_page.exchange import Site, in_order
from workers.client_api import internal_api_of


@pytest.fixture(scope="module")
def client_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Of a client with two registered layers; what it answered before stands in `EMPTY`."""
    prefix = str(tmp_path_factory.mktemp("page") / "socket")
    config = InternalAPIConfig(enabled=True, socket_path_prefix=prefix, run_script_enabled=True)
    with (
        ServedEngine() as engine,
        SharedKV([(2, 8, 4, 2, 8)] * 2, "float32") as memory,
        LarderClient(f"tcp://127.0.0.1:{engine.port}", "model") as client,
        internal_api_of(client, config) as server,
    ):
        assert server.socket_path is not None
        site = Site(Path(server.socket_path))
        in_order(site, EMPTY)
        client.register_shared(memory)
        yield site


@pytest.mark.parametrize("flow", FLOWS)
def test_as_the_page_says(client_site: Site, flow: str) -> None:
    in_order(client_site, FLOWS[flow])
