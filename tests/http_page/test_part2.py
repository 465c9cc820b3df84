"""Part 2 of the page against the internal API server of a running engine."""

import pytest

from tests.http_page.exchange import in_order
from tests.http_page.part2_cases import FLOWS
from tests.http_page.sites import Product


@pytest.mark.parametrize("flow", FLOWS)
def test_as_the_page_says(full: Product, flow: str) -> None:
    in_order(full.own, FLOWS[flow])
