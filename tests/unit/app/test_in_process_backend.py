"""What a process does alone while Redis is away, and tells the others later."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app.baseline import as_text
from app.in_process_backend import InProcessBackend
from contract.errors import OthersAway, RedisAway
from contract.keys import Keys
from contract.log_levels import APPLIED, effective_level
from tests.internal_client import Side
from tests.stack import RedisServer
from tests.waiting import wait_for

NAME = "tests.in_process"


class EngineSide(Side):
    def limits(self) -> dict[str, int]:
        return {}

    def usage(self) -> dict[str, tuple[int, int]]:
        return {}


def make(url: str, run_dir: Path) -> InProcessBackend:
    places: dict[str, Any] = {"max_waiting": 2, "queue_limits": (10, 1000)}
    return InProcessBackend(EngineSide(), redis_url=url, keys=Keys("alone"), run_dir=run_dir, **places)


@pytest.fixture
def backend(redis_server: RedisServer, tmp_path: Path) -> Iterator[InProcessBackend]:
    made = make(redis_server.url, tmp_path)
    yield made
    made.close()
    APPLIED.tell(lambda *told: "")
    APPLIED.sync(dict)


@pytest.fixture
def silent(backend: InProcessBackend, redis_server: RedisServer) -> Iterator[InProcessBackend]:
    """It, while Redis does not answer."""
    redis_server.freeze()
    yield backend
    redis_server.thaw()


def test_with_redis_nothing_is_done_alone(backend: InProcessBackend) -> None:
    assert backend.set_log_level(NAME, "ERROR")
    backend.write_metrics_baselines({"engine": "1"})

    assert (backend.log_levels(), backend.metrics_baselines()) == ({NAME: "ERROR"}, {"engine": "1"})
    assert backend.tell_others() is None


def test_a_level_set_alone_is_told_later(silent: InProcessBackend, redis_server: RedisServer) -> None:
    with pytest.raises(OthersAway):
        silent.set_log_level(NAME, "ERROR")
    assert effective_level(NAME) == "ERROR"
    assert "waits for Redis" in str(silent.tell_others())

    redis_server.thaw()
    wait_until_told(silent)
    assert silent.log_levels() == {NAME: "ERROR"}
    assert silent.set_log_level(NAME, "INFO")
    assert silent.tell_others() is None
    assert silent.log_levels() == {NAME: "INFO"}


def test_a_level_that_another_process_set_later_stays(silent: InProcessBackend, redis_server: RedisServer) -> None:
    APPLIED.sync(dict)
    with pytest.raises(OthersAway):
        silent.set_log_level(NAME, "ERROR")
    redis_server.thaw()
    with redis.Redis.from_url(redis_server.url) as another:
        another.hset(Keys("alone").loglevels, NAME, "INFO")

    wait_until_told(silent)

    assert silent.log_levels() == {NAME: "INFO"}
    APPLIED.sync(silent.log_levels)
    assert effective_level(NAME) == "INFO"


def test_baselines_kept_alone_are_told_later(silent: InProcessBackend, redis_server: RedisServer) -> None:
    with pytest.raises(RedisAway):
        silent.metrics_baselines()
    with pytest.raises(OthersAway):
        silent.write_metrics_baselines({"engine": "1"})
    with pytest.raises(OthersAway):
        silent.write_metrics_baselines({"engine": "2"})
    assert silent.metrics_baselines() == {"engine": "2"}
    assert "waits for Redis" in str(silent.tell_others())

    redis_server.thaw()
    wait_until_told(silent)
    assert silent.metrics_baselines() == {"engine": "2"}
    silent.write_metrics_baselines({"web": "3"})
    assert silent.metrics_baselines() == {"engine": "2", "web": "3"}


@pytest.mark.parametrize(("run", "later", "kept"), [("boot", 9.0, 9.0), ("boot", 3.0, 5.0), ("earlier", 9.0, 5.0)])
def test_a_reset_that_another_process_made_later_stays(
    silent: InProcessBackend, redis_server: RedisServer, run: str, later: float, kept: float
) -> None:
    with pytest.raises(OthersAway):
        silent.write_metrics_baselines({"engine": as_text("boot", {"a_total": 5.0})})
    redis_server.thaw()
    with redis.Redis.from_url(redis_server.url) as another:
        another.hset(Keys("alone").metrics_baseline, "engine", as_text(run, {"a_total": later}))

    wait_until_told(silent)

    assert silent.metrics_baselines() == {"engine": as_text("boot", {"a_total": kept})}


def wait_until_told(backend: InProcessBackend) -> None:
    """Not at once: the backend asks a Redis that was away only now and then."""
    wait_for(lambda: backend.tell_others() is None, 20, "Redis answers again")
