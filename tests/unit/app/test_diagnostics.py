"""/loglevel, /threads, /periodic-threads* and /env: texts, statuses, and what is said while something is away."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import close_app, start_loops
from contract.errors import RedisAway
from contract.log_levels import APPLIED
from tests.unit.app.memory_backend import MemoryBackend, record

ELSEWHERE = {"REMOTE_ADDR": "192.0.2.7"}
ENGINE_LOOP = {
    "name": "publisher", "level": "high", "interval": 0.5, "is_running": True, "is_active": True,
    "stopped_on_purpose": False, "last_run_time": 1.0, "last_run_ago": 0.5, "init_wait": 0.0, "total_runs": 4,
    "failed_runs": 1, "success_rate": 75.0, "last_summary": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def levels_as_before() -> Iterator[None]:
    yield
    APPLIED.sync(dict)


def text_of(client: FlaskClient, path: str, **options: Any) -> tuple[int, str]:
    answer = client.get(path, **options)
    assert answer.content_type == "text/plain; charset=utf-8", answer.text
    return answer.status_code, answer.text


# ---- /loglevel


def test_a_level_is_set_and_read_back(client: FlaskClient, backend: MemoryBackend) -> None:
    logger = logging.getLogger("diagnosed")
    logger.addHandler(handler := logging.NullHandler())

    answer = text_of(client, "/loglevel?logger_name=diagnosed&level=debug")

    assert answer == (200, "Set diagnosed level to DEBUG (including all handlers)")
    assert (logger.level, handler.level) == (logging.DEBUG, logging.DEBUG)
    assert text_of(client, "/loglevel?logger_name=diagnosed") == (200, "diagnosed: DEBUG")
    assert text_of(client, "/loglevel?logger_name=diagnosed.child&level=") == (200, "diagnosed.child: DEBUG")
    assert "diagnosed.child" not in logging.root.manager.loggerDict
    assert backend.levels == {"diagnosed": "DEBUG"}

    backend.levels.clear()
    assert text_of(client, "/loglevel?logger_name=diagnosed") == (200, f"diagnosed: {level_of_root()}")
    assert (logger.level, handler.level) == (logging.NOTSET, logging.NOTSET)


def level_of_root() -> str:
    return logging.getLevelName(logging.root.level)


@pytest.mark.parametrize(
    ("given", "told", "read"),
    [("Warn", "WARN", "WARNING"), ("FATAL", "FATAL", "CRITICAL"), ("critical", "CRITICAL", "CRITICAL")],
)
def test_other_names_of_levels(client: FlaskClient, given: str, told: str, read: str) -> None:
    assert text_of(client, f"/loglevel?logger_name=diagnosed&level={given}")[1].endswith(
        f"{told} (including all handlers)"
    )
    assert text_of(client, "/loglevel?logger_name=diagnosed") == (200, f"diagnosed: {read}")


def test_notset_gives_a_logger_back_to_its_parent(client: FlaskClient) -> None:
    client.get("/loglevel?logger_name=diagnosed&level=ERROR")

    assert text_of(client, "/loglevel?logger_name=diagnosed&level=NOTSET")[0] == 200
    assert text_of(client, "/loglevel?logger_name=diagnosed") == (200, f"diagnosed: {level_of_root()}")


@pytest.mark.parametrize("level", ["BASIC_FORMAT", "verbose", "10", " DEBUG", "Level 7"])
def test_what_is_no_level(client: FlaskClient, backend: MemoryBackend, level: str) -> None:
    assert text_of(client, f"/loglevel?logger_name=diagnosed&level={level}") == (400, f"Invalid log level: {level}")
    assert backend.levels == {}


def test_a_level_alone_is_null(client: FlaskClient) -> None:
    answer = client.get("/loglevel?level=DEBUG")

    assert (answer.status_code, answer.content_type, answer.data) == (200, "application/json", b"null")


def test_names_are_bounded_in_number_and_length(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.most_levels = 1
    client.get("/loglevel?logger_name=diagnosed&level=INFO")

    assert text_of(client, "/loglevel?logger_name=other&level=INFO")[0] == 400
    assert text_of(client, "/loglevel?logger_name=diagnosed&level=DEBUG")[0] == 200
    for name in ("x" * 201, "a%0Ab"):
        status, text = text_of(client, f"/loglevel?logger_name={name}&level=INFO")
        assert (status, text.split(":")[0]) == (400, "Invalid logger name")
    assert "other" not in logging.root.manager.loggerDict


def test_the_list_has_the_loggers_of_the_engine_too(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["engine.loggers"] = {"levels": {"engine.somewhere": "ERROR", "root": "CRITICAL"}}

    lines = text_of(client, "/loglevel")[1].splitlines()

    assert "engine.somewhere: ERROR" in lines
    assert f"root: {level_of_root()}" in lines
    assert all(line.count(": ") == 1 for line in lines)

    backend.engine = None
    assert not [line for line in text_of(client, "/loglevel")[1].splitlines() if line.startswith("engine.somewhere")]


def test_a_logger_that_only_the_engine_has_is_asked_of_the_engine(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["engine.loggers"] = {"levels": {"far.away": "ERROR", "root": "CRITICAL", "diagnosed": "ERROR"}}
    client.get("/loglevel?logger_name=diagnosed&level=DEBUG")

    assert text_of(client, "/loglevel?logger_name=far.away") == (200, "far.away: ERROR")
    assert text_of(client, "/loglevel?logger_name=far.away.child") == (200, "far.away.child: ERROR")
    for name, level in (("root", level_of_root()), ("far", level_of_root()), ("diagnosed.child", "DEBUG")):
        assert text_of(client, f"/loglevel?logger_name={name}") == (200, f"{name}: {level}")

    backend.engine = None
    assert text_of(client, "/loglevel?logger_name=far.away") == (200, f"far.away: {level_of_root()}")


def test_reading_is_for_readers_and_setting_for_admins(client: FlaskClient, backend: MemoryBackend) -> None:
    status, text = text_of(client, "/loglevel?logger_name=diagnosed&level=DEBUG", environ_base=ELSEWHERE)

    assert (status, text.startswith("this route is for the same machine")) == (403, True)
    assert text_of(client, "/loglevel?logger_name=diagnosed", environ_base=ELSEWHERE)[0] == 200
    assert text_of(client, "/loglevel?logger_name=a&level=INFO&level=", environ_base=ELSEWHERE)[0] == 403
    assert backend.levels == {}


def test_setting_is_noted_and_reading_is_not(client: FlaskClient, backend: MemoryBackend) -> None:
    client.get("/loglevel?logger_name=diagnosed")
    client.get("/loglevel?logger_name=diagnosed&level=ERROR")
    client.get("/env")
    close_app(client.application)

    assert [(entry["action"], entry["query"], entry["status"]) for entry in backend.audit] == [
        ("GET /loglevel", "logger_name=diagnosed&level=ERROR", "200"),
        ("GET /env", "", "200"),
    ]


@pytest.mark.parametrize(
    ("token", "statuses"), [("r", [200, 403, 403, 403]), ("a", [200, 200, 200, 404]), ("x", [401, 401, 401, 401])]
)
def test_tokens_open_what_they_are_for(make_app: Callable[..., Flask], token: str, statuses: list[int]) -> None:
    caller = make_app(admin_token="a", read_token="r").test_client()
    asked = [
        ("GET", "/loglevel?logger_name=x"), ("GET", "/loglevel?logger_name=diagnosed&level=INFO"),
        ("POST", "/metrics/reset"), ("POST", "/run_script"),
    ]  # fmt: skip

    answers = [caller.open(path, method=method, headers={"Authorization": f"Bearer {token}"}) for method, path in asked]

    assert [answer.status_code for answer in answers] == statuses
    assert {answer.content_type for answer in answers} == {"text/plain; charset=utf-8"}
    assert all(("WWW-Authenticate" in answer.headers) == (answer.status_code == 401) for answer in answers)


def test_without_redis_a_process_reads_its_own_and_sets_nothing(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.fails = RedisAway("timed out")

    assert text_of(client, "/loglevel?logger_name=diagnosed") == (200, f"diagnosed: {level_of_root()}")
    assert text_of(client, "/loglevel")[0] == 200
    status, text = text_of(client, "/loglevel?logger_name=diagnosed&level=DEBUG")
    assert (status, text) == (503, "Redis does not answer: timed out")
    assert logging.getLogger("diagnosed").level == logging.NOTSET


def test_what_people_write_into_the_hash_by_hand_does_no_harm(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.levels.update({"diagnosed": "LOUD", "": "DEBUG", "x" * 300: "DEBUG", "diagnosed.b": "ERROR"})

    assert text_of(client, "/loglevel?logger_name=diagnosed.b") == (200, "diagnosed.b: ERROR")
    assert "x" * 300 not in logging.root.manager.loggerDict


def test_the_worker_follows_levels_by_itself(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.levels["diagnosed"] = "ERROR"
    start_loops(client.application)

    loop = client.get("/periodic-threads/web-follower").get_json()

    assert (loop["level"], loop["is_running"], loop["is_active"]) == ("low", True, True)


# ---- /threads


def test_threads_of_this_process_and_of_the_engine(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["engine.threads"] = {"process": "larder-engine (pid 1)", "pid": 1, "blocks": ["Thread: <e>\n"]}

    status, text = text_of(client, "/threads")

    assert status == 200
    assert text.count("=== Process: ") == 2
    assert f"Thread: {threading.current_thread()!r}\nStack trace:\n  File " in text
    number_shown = text.count("Thread: <")
    assert number_shown >= 2
    assert text.endswith(f"=== Thread Summary ===\nTotal threads: {number_shown}\n")


def test_filters_of_threads(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["engine.threads"] = {"process": "larder-engine (pid 1)", "pid": 1, "blocks": []}
    ident = threading.get_ident()

    assert "Total threads: 1\n" in text_of(client, f"/threads?name=mainTHREAD&thread_id={ident}")[1]
    assert "Total threads: 0\n" in text_of(client, f"/threads?name=other&thread_id={ident}")[1]
    assert "Total threads: 0\n" in text_of(client, "/threads?thread_id=9999999999999999999")[1]
    assert client.get("/threads?thread_id=one").status_code == 422
    assert client.get("/threads?thread_id=").status_code == 422
    assert [(c.name, c.thread_id) for c in backend.commands] == [("mainTHREAD", ident), ("other", ident)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("away", ["engine", "redis"])
def test_threads_of_this_process_alone(client: FlaskClient, backend: MemoryBackend, away: str) -> None:
    backend.engine = None if away == "engine" else backend.engine
    backend.fails = RedisAway("timed out") if away == "redis" else None

    status, text = text_of(client, "/threads?name=MainThread")

    assert status == 200
    reason = "engine missing" if away == "engine" else "timed out"
    assert text.endswith(
        f"The engine's threads are missing here: {reason}\n\n=== Thread Summary ===\nTotal threads: 1\n"
    )


def test_threads_are_for_admins(client: FlaskClient) -> None:
    assert text_of(client, "/threads", environ_base=ELSEWHERE)[0] == 403


# ---- /periodic-threads


def test_periodic_threads_of_the_engine_with_ages_as_of_now(client: FlaskClient, backend: MemoryBackend) -> None:
    dead = {**ENGINE_LOOP, "name": "l1-eviction", "level": "critical", "is_running": False, "is_active": False}
    backend.bodies["periodic_threads"] = [ENGINE_LOOP, dead]

    body = client.get("/periodic-threads").get_json()

    assert [loop["name"] for loop in body["threads"]] == ["l1-eviction", "publisher"]
    assert body["threads"][1] == {**ENGINE_LOOP, "last_run_ago": 0.75}
    assert body["summary"] == {
        "total_count": 2, "running_count": 1, "active_count": 1,
        "by_level": {
            "critical": {"total": 1, "running": 0, "active": 0},
            "high": {"total": 1, "running": 1, "active": 1},
            "medium": {"total": 0, "running": 0, "active": 0},
            "low": {"total": 0, "running": 0, "active": 0},
        },
    }  # fmt: skip
    assert client.get("/periodic-threads-health").get_json() == {
        "healthy": False,
        "unhealthy_count": 1,
        "unhealthy_threads": [{"name": "l1-eviction", "level": "critical", "last_run_ago": 0.75, "interval": 0.5}],
    }


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("level=HIGH", ["publisher"]),
        ("level=", ["l1-eviction", "publisher"]),
        ("level=low", []),
        ("running_only=yes", ["publisher"]),
        ("active_only=1&level=critical", []),
        ("running_only=off&active_only=f", ["l1-eviction", "publisher"]),
    ],
)
def test_filters_of_periodic_threads(client: FlaskClient, backend: MemoryBackend, query: str, names: list[str]) -> None:
    dead = {**ENGINE_LOOP, "name": "l1-eviction", "level": "critical", "is_running": False, "is_active": False}
    backend.bodies["periodic_threads"] = [ENGINE_LOOP, dead]

    body = client.get(f"/periodic-threads?{query}").get_json()

    assert ([loop["name"] for loop in body["threads"]], body["summary"]["total_count"]) == (names, 2)


def test_refusals_of_periodic_threads(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["periodic_threads"] = [ENGINE_LOOP]
    unknown = client.get("/periodic-threads/nobody")
    level = client.get("/periodic-threads?level=urgent")

    assert (unknown.status_code, unknown.get_json()) == (404, {"error": "Thread not found: nobody"})
    assert (level.status_code, level.get_json()) == (400, {"error": "Invalid level: urgent"})
    assert client.get("/periodic-threads?running_only=").status_code == 422
    assert client.get("/periodic-threads/publisher").get_json()["total_runs"] == 4


@pytest.mark.parametrize("state", [None, "dead", "redis"])
def test_without_the_engine_the_loops_are_the_web_tiers(
    client: FlaskClient, backend: MemoryBackend, state: str | None
) -> None:
    backend.bodies["periodic_threads"] = [ENGINE_LOOP]
    backend.engine = None if state is None else record(age_s=9.0 if state == "dead" else 0.0)
    backend.fails = RedisAway("timed out") if state == "redis" else None
    start_loops(client.application)

    listed = client.get("/periodic-threads")
    health = client.get("/periodic-threads-health")

    assert (listed.status_code, [loop["name"] for loop in listed.get_json()["threads"]]) == (200, ["web-follower"])
    assert (health.status_code, health.get_json()["healthy"]) == (200, False)
    (entry,) = health.get_json()["unhealthy_threads"]
    assert (entry["name"], entry["level"], entry["interval"]) == ("engine", "critical", 1.0)


def test_an_engine_that_failed_still_shows_its_loops(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["periodic_threads"] = [ENGINE_LOOP]
    backend.engine = record("failed")

    assert client.get("/periodic-threads/publisher").status_code == 200
    assert [entry["name"] for entry in client.get("/periodic-threads-health").get_json()["unhealthy_threads"]] == [
        "engine"
    ]


# ---- /env


def test_the_environment_is_whole_and_masked(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"PLAIN": "a=b", "PWD": "/tmp", "EMPTY_TOKEN": "", "BROKER": "amqp://mq:5672/v", "GIT_AUTHOR_NAME": "Ann"}
    hidden = {
        "AWS_SECRET_ACCESS_KEY": "hush", "SENTRY_DSN": "hush", "DB_PASSWORD": "hush", "api_key": "hush",
        "GIT_CREDENTIALS": "hush", "LARDER_ADMIN_TOKEN": "hush", "MYSQL_PWD": "hush",
        "REDISCLI_AUTH": "hush", "BASICAUTH": "hush",
    }  # fmt: skip
    urls = {"REDIS_URL": "redis://user:hush@r:6379/0", "PIP_INDEX_URL": "https://hush@p/simple?sig=hush"}
    other = {"ADAPTER": '{"type": "s3", "secret_access_key": "hush"}', "HEADERS": "authorization=Bearer hush"}
    for name, value in {**shown, **hidden, **urls, **other}.items():
        monkeypatch.setenv(name, value)

    status, text = text_of(client, "/env")

    variables = json.loads(text)
    assert status == 200
    assert "hush" not in text
    assert text.startswith('{\n  "')
    assert list(variables) == sorted(variables)
    assert {name: variables[name] for name in shown} == shown
    assert {variables[name] for name in hidden} == {"***"}
    assert variables["REDIS_URL"] == "redis://***@r:6379/0"
    assert json.loads(variables["ADAPTER"]) == {"type": "s3", "secret_access_key": "***"}
    assert text_of(client, "/env", environ_base=ELSEWHERE)[0] == 403
