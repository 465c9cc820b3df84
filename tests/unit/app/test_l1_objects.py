"""GET /l1/objects without an engine behind it."""

import pytest
from flask.testing import FlaskClient

from app.api.mp.l1_api import EXAMPLE
from contract.commands import FindL1Objects
from contract.errors import QueueFull
from tests.unit.app.memory_backend import MemoryBackend


def test_the_engine_is_asked_in_lower_case(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l1.find"] = {"entries": [EXAMPLE], "has_more": False}

    answer = client.get("/l1/objects?chunk_hash=0F2C9b&more=1")

    assert (answer.status_code, answer.json) == (200, {"entries": [EXAMPLE], "has_more": False})
    assert backend.commands == [FindL1Objects("0f2c9b")]


@pytest.mark.parametrize(
    "query", ["", "?chunk_hash=", "?chunk_hash=0f2", "?chunk_hash=0f2g", f"?chunk_hash={'a' * 129}"]
)
def test_what_begins_no_hash_is_422(client: FlaskClient, backend: MemoryBackend, query: str) -> None:
    answer = client.get("/l1/objects" + query)

    assert (answer.status_code, answer.json["detail"][0]["loc"]) == (422, ["query", "chunk_hash"])
    assert backend.commands == []


def test_without_the_engine_it_is_503(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l1.find"] = QueueFull("4 run", 1.0)
    assert client.get("/l1/objects?chunk_hash=0f2c").headers["Retry-After"] == "1"
    backend.engine = None

    answer = client.get("/l1/objects?chunk_hash=0f2c")

    assert (answer.status_code, answer.json) == (503, {"detail": "engine not initialized"})
