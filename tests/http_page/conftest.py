"""The products that the page is held against, one for each module that asks."""

from collections.abc import Iterator

import pytest

from tests.http_page import sites
from tests.http_page.exchange import Site
from tests.http_page.sites import Product


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with sites.full(tmp_path_factory.mktemp("full")) as product:
        yield product


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with sites.bare(tmp_path_factory.mktemp("bare")) as product:
        yield product


@pytest.fixture(scope="module")
def engineless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with sites.engineless(tmp_path_factory.mktemp("engineless")) as site:
        yield site


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with sites.lonely(tmp_path_factory.mktemp("lonely")) as site:
        yield site
