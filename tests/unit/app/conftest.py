"""The application over a backend in memory, closed after each test."""

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import close_app, create_app
from app.config import AppConfig
from tests.unit.app.memory_backend import MemoryBackend

BODIES = {
    "status": {"is_healthy": True, "registered_gpu_ids": [7], "name": "kühl"},
    "conf": {"mp": {"host": "127.0.0.1", "supported_transfer_mode": "auto"}, "storage_manager": {}},
    "metrics": {"text": "# HELP lmcache_mp_x x\n# TYPE lmcache_mp_x gauge\nlmcache_mp_x 1.0\n"},
}


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(bodies=dict(BODIES))


@pytest.fixture
def make_app(backend: MemoryBackend) -> Iterator[Callable[..., Flask]]:
    """Makes an app with these settings of AppConfig."""
    made: list[Flask] = []

    def make(**settings: object) -> Flask:
        config = AppConfig(**{"http_host": "0.0.0.0", "http_port": 8080, **settings})  # type: ignore[arg-type]
        made.append(create_app(config, backend, ("common", "mp")))
        return made[-1]

    yield make
    for app in made:
        close_app(app)


@pytest.fixture
def client(make_app: Callable[..., Flask]) -> FlaskClient:
    """A caller on the same machine, no token configured."""
    flask_client = make_app().test_client()
    flask_client.environ_base["HTTP_HOST"] = "127.0.0.1:8080"
    return flask_client
