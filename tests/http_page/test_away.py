"""Each route while L2, the engine or Redis is not there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.dataplane.client import LarderClient
from tests.http_page import away_cases
from tests.http_page.exchange import Site, in_order
from tests.http_page.sites import Product, own_server
from tests.stack import EngineProcess
from tests.waiting import wait_for


@pytest.mark.parametrize("flow", away_cases.BARE)
def test_without_l2(bare: Product, flow: str) -> None:
    in_order(bare.web, away_cases.BARE[flow])


@pytest.mark.parametrize("flow", away_cases.BARE_OWN)
def test_own_server_without_l2(bare: Product, flow: str) -> None:
    in_order(bare.own, away_cases.BARE_OWN[flow])


def test_prefetch_without_l2(bare: Product) -> None:
    with LarderClient(f"tcp://127.0.0.1:{bare.parts['engine'].port}", "page/bare") as client:
        client.register_arrays([np.zeros((2, 48, 16, 1, 8), np.float16)])
        in_order(bare.web, away_cases.PREFETCH_WITHOUT_L2)


@pytest.mark.parametrize("flow", away_cases.ENGINELESS)
def test_without_engine(engineless: Site, flow: str) -> None:
    in_order(engineless, away_cases.ENGINELESS[flow])


@pytest.mark.parametrize("flow", away_cases.LONELY)
def test_without_redis(lonely: Site, flow: str) -> None:
    in_order(lonely, away_cases.LONELY[flow])


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The own server of an engine that waits for Redis."""
    directory: Path = tmp_path_factory.mktemp("waiting")
    settings = {**own_server(), "l2_adapter": '{"type": "memory"}', "run_script_enabled": "true"}
    engine = EngineProcess(directory, "redis://127.0.0.1:1/0", **settings)
    engine.launch()
    try:
        wait_for(lambda: engine.record().get("error", "").startswith("Redis"), 30, "the engine waits for Redis")
        yield Site(int(str(settings["internal_api_server_port_start"])))
    finally:
        engine.stop()


@pytest.mark.parametrize("flow", away_cases.WAITING)
def test_engine_that_waits_for_redis(waiting: Site, flow: str) -> None:
    in_order(waiting, away_cases.WAITING[flow])
