"""Part 3 of the page against a server that is up."""

import pytest

from tests.http_page.exchange import in_order
from tests.http_page.part3_cases import FLOWS
from tests.http_page.sites import Product


@pytest.mark.parametrize("flow", FLOWS)
def test_as_the_page_says(full: Product, flow: str) -> None:
    in_order(full.web, FLOWS[flow])
