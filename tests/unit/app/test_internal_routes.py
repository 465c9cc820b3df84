"""The documents name every route of the internal API servers."""

import re
from pathlib import Path

from app import close_app, create_app
from app.backend import Backend
from app.config import AppConfig
from tests.internal_client import Manager, server

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def test_each_route_of_the_internal_servers_is_in_the_document() -> None:
    backend: Backend = Manager(server().config).backend
    app = create_app(AppConfig("127.0.0.1", 6999), backend, ("vllm", "controller"))
    close_app(app)
    page = (ROOT / "docs" / "http_api.md").read_text()
    section = page[page.index("\n## Internal API servers\n") :]
    rules = [
        (method, re.sub(r"<(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]
    assert len(rules) == 35
    assert [f"{method} {path}" for method, path in rules if f"`{method} {path}`" not in section] == []
