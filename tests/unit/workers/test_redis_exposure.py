"""Who else may command the engine is told by what the URL of Redis says."""

import logging

import pytest

from contract.mask_text import mask_urls_in
from workers.redis_exposure import tell_exposure

FAR = "whoever reaches that port"
NEAR = "every user of this machine"


@pytest.mark.parametrize(
    ("url", "level", "text"),
    [
        ("redis://cache.example:6379/0", "WARNING", FAR),
        ("redis://192.0.2.7", "WARNING", FAR),
        ("redis://0.0.0.0:6379/0", "WARNING", FAR),
        ("redis://[2001:db8::1]:6379/0", "WARNING", FAR),
        ("redis://user@cache.example/0", "WARNING", FAR),
        ("redis://:@cache.example/0", "WARNING", FAR),
        ("rediss://cache.example/0", "WARNING", FAR),
        ("redis://127.0.0.1:6380/0", "INFO", NEAR),
        ("redis://localhost", "INFO", NEAR),
        ("redis://[::1]:6379/0", "INFO", NEAR),
    ],
)
def test_an_open_redis_is_told_once(caplog: pytest.LogCaptureFixture, url: str, level: str, text: str) -> None:
    with caplog.at_level(logging.INFO):
        tell_exposure(url)

    assert [record.levelname for record in caplog.records] == [level]
    assert f"redis_url: {mask_urls_in(url)} has no password" in caplog.text
    assert text in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush@cache.example:6379/0",
        "redis://user:hush@cache.example:6379/0",
        "redis://cache.example?password=hush",
        "rediss://cache.example?ssl_certfile=/a.crt&ssl_keyfile=/a.key",
        "unix:///run/redis.sock",
    ],
)
def test_one_with_a_lock_is_not_worth_a_word(caplog: pytest.LogCaptureFixture, url: str) -> None:
    with caplog.at_level(logging.INFO):
        tell_exposure(url)

    assert caplog.text == ""
