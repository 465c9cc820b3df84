"""A storage with more objects than are listed, which is made of three here: the bound is lowered in a real engine."""

import json
import sys
from collections.abc import Iterator, Sequence

import pytest

from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.http_page.away_cases import TOO_MANY
from tests.http_page.exchange import Site, in_order
from tests.http_page.sites import port_of
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for


class SmallEngine(EngineProcess):
    """Lists two objects at most of a storage that it has to read through."""

    def command(self) -> Sequence[str]:
        lowered = (
            "import runpy; from engine.l2 import listing; listing.MAX_SCANNED = 2; listing.SCAN_SLICE = 1; "
            "runpy.run_module('workers.engine_worker', run_name='__main__')"
        )
        return [sys.executable, "-c", lowered]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three objects in a storage that others write to as well."""
    directory = tmp_path_factory.mktemp("many")
    files = directory / "objects"
    adapter = json.dumps({"type": "fs", "base_path": str(files), "shared": True})
    with (
        start_redis("redis", directory / "redis") as redis,
        SmallEngine(directory / "larder", redis.url, l2_adapter=adapter) as engine,
        WebProcess(directory / "larder", redis.url) as web,
        SharedKV([(2, 64, 16, 1, 8)]) as memory,
        LarderClient(f"tcp://127.0.0.1:{engine.port}", "page/many") as client,
    ):
        client.register_shared(memory)
        client.store(list(range(768)), [list(range(1, 49))], "request-many")
        wait_for(lambda: len(list(files.glob("??/*@*"))) == 3, 20, "all is in L2")
        yield Site(port_of(web))


def test_too_many_objects(site: Site) -> None:
    in_order(site, TOO_MANY)
