"""No route and no status of the page is left out by the cases of this directory, and no status that the API document
has for one of its routes.

What the page has and no case exercises must stand in docs/http_api.md with its reason, and nothing else may.
"""

import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

import pytest
from flask import Flask
from werkzeug.exceptions import HTTPException

from app import close_app, create_app
from app.config import AppConfig
from app.openapi import BUG, build
from tests.http_page import away_cases, client_cases, l2_cases, part1_cases, part2_cases, part3_cases
from tests.http_page.exchange import Case
from tests.http_page.page import OWN, WEB
from tests.stack import ROOT
from tests.unit.app.memory_backend import MemoryBackend

#: What a document says of routes that web tier and internal API server have in common, and the other alone answers.
SHARED = {"web": {("POST /run_script", 501)}, "own": {("GET /loglevel", 503), ("POST /metrics/reset", 503)}}
#: What every route of a level, or with a body, has.
EVERYWHERE = {401, 403, 413}
WHERE = {"web": "web tier", "own": "internal"}
_ROW = re.compile(r"^\| (web tier|internal) \| `(\w+ [^`]+)` \| ([\d, ]+) \| (.+) \|$", re.MULTILINE)

Pair = tuple[str, int]
CASES: dict[str, list[Iterable[Case]]] = {
    "web": [
        *part1_cases.FLOWS.values(), *l2_cases.FLOWS.values(), *part3_cases.FLOWS.values(), *away_cases.BARE.values(),
        *away_cases.ENGINELESS.values(), *away_cases.LONELY.values(), away_cases.PREFETCH_WITHOUT_L2,
        away_cases.TOO_MANY,
    ],
    "own": [
        *part2_cases.FLOWS.values(), *away_cases.BARE_OWN.values(), *away_cases.WAITING.values(), client_cases.EMPTY,
        *client_cases.FLOWS.values(),
    ],
}  # fmt: skip
CATEGORIES = {"web": ("common", "mp"), "own": ("common", "vllm", "controller")}
PAGE = {"web": WEB, "own": OWN}


@pytest.fixture(params=["web", "own"])
def side(request: pytest.FixtureRequest) -> str:
    """The web tier, or the internal API server."""
    return str(request.param)


@pytest.fixture
def app(side: str) -> Iterator[Flask]:
    made = create_app(AppConfig(http_host="0.0.0.0", http_port=8080), MemoryBackend(), CATEGORIES[side])
    yield made
    close_app(made)


def exercised(app: Flask, side: str) -> set[Pair]:
    """The routes and statuses of all cases."""
    routes = app.url_map.bind("localhost")
    found: set[Pair] = set()
    for flow in CASES[side]:
        for case in flow:
            path = unquote(re.sub(r"<\w+>|%2F", "x", case.target.partition("?")[0]))
            try:
                rule, _ = routes.match(path, case.method, return_rule=True)
            except HTTPException:
                continue
            found.add((f"{case.method} {rule.rule}", case.status))
    return found


def missing_by_the_docs(side: str) -> dict[Pair, str]:
    """What docs/http_api.md says that this server does not give, with its reasons."""
    rows = _ROW.findall((ROOT / "docs/http_api.md").read_text())
    return {
        (route.replace("{", "<").replace("}", ">"), int(status)): why
        for where, route, statuses, why in rows
        if where == WHERE[side]
        for status in statuses.split(",")
    }


def test_the_page_is_exercised_or_the_docs_say_why_not(app: Flask, side: str) -> None:
    page = {(route, status) for route, statuses in PAGE[side].items() for status in statuses}

    assert page - exercised(app, side) == set(missing_by_the_docs(side))
    assert all(len(why) > 20 for why in missing_by_the_docs(side).values())


def test_what_the_api_document_tells_of_routes_of_the_page_is_exercised(app: Flask, side: str) -> None:
    told = {
        (f"{method.upper()} {path.replace('{', '<').replace('}', '>')}", int(status))
        for path, operations in build(app)["paths"].items()
        for method, operation in operations.items()
        for status, response in operation["responses"].items()
        if int(status) not in EVERYWHERE and BUG not in json.dumps(response)
    }
    of_page = {(route, status) for route, status in told if route in PAGE[side]}

    assert of_page - exercised(app, side) <= SHARED[side]


def test_every_route_of_the_page_is_served(app: Flask, side: str) -> None:
    served = {f"{method} {rule.rule}" for rule in app.url_map.iter_rules() for method in rule.methods or ()}

    assert set(PAGE[side]) <= served
