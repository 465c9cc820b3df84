"""Settings of a running engine: shown without secrets, and changed by the rules of the start."""

import logging
from collections.abc import Iterator

import pytest

from contract.keys import Keys
from contract.log_levels import APPLIED, read_levels, write_level
from contract.redis_client import open_redis
from contract.settings import Settings, load_settings
from engine.movement.steering import CHANGEABLE
from tests.stack import RedisServer
from tests.unit.engine.engine_client import CONFIG, started
from workers.live_settings import FAILED, FIXED, UNKNOWN, LiveSettings, SharedLevels

SECRETS = {
    "LARDER_ADMIN_TOKEN": "hunter-one",
    "LARDER_READ_TOKEN": "hunter-two",
    "LARDER_REDIS_URL": "redis://larder:hunter-three@redis:6379/0",
    "LARDER_L2_ADAPTER": '{"type": "redis", "url": "redis://:hunter-four@r/0", "password": "hunter-five"}',
}


@pytest.fixture
def live() -> Iterator[LiveSettings]:
    level = logging.getLogger().level
    with started(CONFIG) as engine:
        yield LiveSettings(load_settings(None, SECRETS), engine)
    logging.getLogger().setLevel(level)


def test_every_setting_is_shown_and_no_secret_in_it(live: LiveSettings) -> None:
    shown = live.shown()
    assert set(shown) == set(Settings.__dataclass_fields__)
    assert "hunter" not in str(shown)
    assert shown["admin_token"] == "***"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("eviction_trigger_watermark", 0.5, 0.5),
        ("eviction_ratio", "0.25", 0.25),
        ("l1_write_ttl_seconds", 7, 7.0),
        ("l1_read_ttl_seconds", 1e3, 1000.0),
        ("l2_lookup_deadline_seconds", 0.1, 0.1),
        ("write_back_drain_seconds", 0, 0.0),
        ("log_level", "warning", "WARNING"),
    ],
)
def test_what_is_changed_is_shown(live: LiveSettings, name: str, given: object, value: object) -> None:
    assert live.change({name: given}) == {"updated": {name: value}, "errors": {}}
    assert live.shown()[name] == value


@pytest.mark.parametrize("name", [*CHANGEABLE, "log_level"])
@pytest.mark.parametrize("given", [None, [], {}, -1, "", "much", float("nan"), float("inf"), True, "x" * 100_000])
def test_what_the_start_would_refuse_changes_nothing(live: LiveSettings, name: str, given: object) -> None:
    before = live.shown()
    reply = live.change({name: given})
    assert reply["updated"] == {}
    assert reply["errors"][name].startswith(FAILED)
    assert len(reply["errors"][name]) < 400
    assert live.shown() == before


def test_one_refusal_keeps_none_of_the_others_from_being_set(live: LiveSettings) -> None:
    reply = live.change({"port": 1, "nothing": 1, "eviction_ratio": 0.5, "l2_store_policy": "skip_l1"})
    assert reply["updated"] == {"eviction_ratio": 0.5}
    errors = reply["errors"]
    assert (errors["port"], errors["nothing"]) == (FIXED, UNKNOWN)
    assert errors["l2_store_policy"].startswith(FAILED)
    assert live.change({"l2_store_policy": "default"})["updated"] == {"l2_store_policy": "default"}


def test_the_level_reaches_the_root_logger(live: LiveSettings) -> None:
    live.change({"log_level": "ERROR"})
    assert logging.getLogger().level == logging.ERROR


def test_the_level_is_every_process_s_and_what_others_set_shows(any_redis: RedisServer) -> None:
    keys = Keys("levels")
    client = open_redis(any_redis.url)
    away = open_redis("redis://127.0.0.1:1")
    before = logging.getLogger().level
    try:
        with started(CONFIG) as engine:
            live = LiveSettings(load_settings(None, {}), engine, SharedLevels(client, keys))
            assert live.change({"log_level": "error"})["updated"] == {"log_level": "ERROR"}
            assert read_levels(client, keys) == {"root": "ERROR"}
            assert (live.shown()["log_level"], logging.getLogger().level) == ("ERROR", logging.ERROR)

            write_level(client, keys, "root", "CRITICAL")
            live.follow_log_levels()
            assert live.shown()["log_level"] == "CRITICAL"

            lone = LiveSettings(load_settings(None, {}), engine, SharedLevels(away, keys))
            assert lone.change({"log_level": "INFO"})["updated"] == {"log_level": "INFO"}
            assert (lone.shown()["log_level"], logging.getLogger().level) == ("INFO", logging.INFO)

            live.follow_log_levels()
            assert live.shown()["log_level"] == "INFO", "what was set meanwhile counts"
            assert live.change({"log_level": "WARNING"})["updated"] == {"log_level": "WARNING"}
            assert live.shown()["log_level"] == "WARNING"
    finally:
        APPLIED.tell(lambda *told: "")
        APPLIED.sync(dict)
        logging.getLogger().setLevel(before)
        client.close()
        away.close()
