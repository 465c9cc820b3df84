"""Part 1 of the page against a server that is up."""

import pytest

from tests.http_page import l2_cases, part1_cases
from tests.http_page.exchange import in_order
from tests.http_page.sites import Product
from tests.waiting import wait_for

FLOWS = {**part1_cases.FLOWS, **l2_cases.FLOWS}


def shows_clients(product: Product) -> bool:
    status = product.web.send(part1_cases.STATUS_CASE).json()
    return bool(status["registered_gpu_ids"] and status["registered_non_cuda_instance_ids"])


@pytest.mark.parametrize("flow", FLOWS)
def test_as_the_page_says(full: Product, flow: str) -> None:
    if flow == "status":
        wait_for(lambda: shows_clients(full), 20, "the clients are shown")
    in_order(full.web, FLOWS[flow])
