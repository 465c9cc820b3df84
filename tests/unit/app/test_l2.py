"""The L2 routes without an engine behind them: forms, orders of checks, and what the engine is asked."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from contract.commands import MAX_KEYS, ControlScrub, DeleteKeys, ListKeys
from contract.errors import CommandFailed, QueueFull, RedisAway
from contract.object_keys import EncodedKey
from tests.unit.app.memory_backend import MemoryBackend

KEY = {"chunk_hash_hex": "00ff", "model_name": "m", "kv_rank": 16777472}
ADAPTERS = [{"index": 0, "type_name": "fs", "primary": True}, {"index": 1, "type_name": "s3", "primary": False}]


def delete(client: FlaskClient, keys: Any, query: str = "") -> Any:
    return client.delete("/l2" + query, json={"keys": keys})


def test_adapters_come_from_the_snapshot(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.bodies["adapters"] = {"adapters": ADAPTERS, "reconfigurable": []}

    assert client.get("/l2/adapters").json == {"adapters": ADAPTERS}
    assert backend.commands == []
    backend.engine = None
    answer = client.get("/l2/adapters")
    assert (answer.status_code, answer.json) == (503, {"detail": "engine not initialized"})


def test_keys_are_handed_on_with_their_defaults(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.delete"] = {"adapter": "fs", "deleted": 1, "ok": True}
    full = {**KEY, "object_group_id": "3", "cache_salt": "alice", "kv_rank": 1.0, "more": 1}

    answer = delete(client, [KEY, full, KEY], "?adapter=x&adapter=fs&other=1")

    assert (answer.status_code, answer.json) == (200, {"requested": 3, "adapter": "fs", "ok": True})
    key = EncodedKey("00ff", "m", 16777472, 0, "")
    assert backend.commands == [DeleteKeys("fs", (key, EncodedKey("00ff", "m", 1, 3, "alice"), key))]


def test_no_key_is_a_request_too_and_an_empty_adapter_is_one(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.delete"] = {"adapter": "fs", "deleted": 0, "ok": False, "error": "gone"}

    assert delete(client, [], "?adapter=").json == {"requested": 0, "adapter": "fs", "ok": False, "error": "gone"}
    delete(client, [])
    assert backend.commands == [DeleteKeys("", ()), DeleteKeys(None, ())]


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["body", "keys"]),
        ({"keys": None}, ["body", "keys"]),
        ({"keys": {}}, ["body", "keys"]),
        ({"keys": [KEY, 1]}, ["body", "keys", 1]),
        ({"keys": [{}]}, ["body", "keys", 0, "chunk_hash_hex"]),
        ({"keys": [{**KEY, "kv_rank": 1.5}]}, ["body", "keys", 0, "kv_rank"]),
        ({"keys": [{**KEY, "kv_rank": None}]}, ["body", "keys", 0, "kv_rank"]),
        ({"keys": [{**KEY, "object_group_id": None}]}, ["body", "keys", 0, "object_group_id"]),
        ({"keys": [{**KEY, "model_name": 3}]}, ["body", "keys", 0, "model_name"]),
        ({"keys": [{**KEY, "cache_salt": None}]}, ["body", "keys", 0, "cache_salt"]),
        ([KEY], ["body"]),
    ],
)
def test_keys_of_a_wrong_form_are_422_before_all_else(
    client: FlaskClient, backend: MemoryBackend, body: object, loc: list[object]
) -> None:
    backend.engine = None

    answer = client.delete("/l2", json=body)

    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["detail"][0]["loc"] == loc
    assert {"type", "loc", "msg"} <= set(answer.json["detail"][0])


def test_a_body_that_is_no_json_or_is_missing_is_422(client: FlaskClient) -> None:
    for options in ({"data": b"{", "content_type": "application/json"}, {}, {"data": b"{}", "content_type": "text/x"}):
        assert client.delete("/l2", **options).status_code == 422


def test_too_many_keys_then_the_first_bad_key_then_the_engine(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None
    bad = {**KEY, "model_name": "a@b"}

    answer = delete(client, [bad] * (MAX_KEYS + 1))
    assert (answer.status_code, answer.json["detail"]) == (400, "10001 keys, at most 10000 are taken")
    answer = delete(client, [KEY, bad, {**KEY, "cache_salt": "/"}])
    assert (answer.status_code, answer.json["detail"]) == (400, "keys[1]: model_name 'a@b' must not contain '@'")
    assert delete(client, [{**KEY, "kv_rank": 2**64}]).json == {"detail": "keys[0]: kv_rank is beyond 64 bits"}
    answer = delete(client, [KEY] * MAX_KEYS)
    assert (answer.status_code, answer.json) == (503, {"detail": "engine not initialized"})


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (CommandFailed("unavailable", "no L2 adapter configured"), 503),
        (CommandFailed("not_found", "no L2 adapter 'x'"), 404),
        (CommandFailed("bad_request", "page_token is malformed"), 400),
        (CommandFailed("unsupported", "L2 adapter '0-x' does not support listing"), 501),
        (QueueFull("busy", 2.0), 503),
        (RedisAway("down"), 503),
    ],
)
def test_refusals_are_details(client: FlaskClient, backend: MemoryBackend, failure: Exception, status: int) -> None:
    backend.replies = dict.fromkeys(("l2.delete", "l2.list", "l2.scrub"), failure)

    for answer in (
        delete(client, [KEY]),
        client.get("/l2/keys"),
        client.post("/l2/scrub"),
        client.get("/l2/scrub"),
        client.delete("/l2/scrub"),
    ):
        assert answer.status_code == status
        assert answer.json is not None
        assert list(answer.json) == ["detail"]


def test_a_page_is_asked_for(client: FlaskClient, backend: MemoryBackend) -> None:
    page = {"adapter": "fs", "entries": [{"key": KEY, "size_bytes": 4096}], "next_page_token": None}
    backend.replies["l2.list"] = page

    assert client.get("/l2/keys").json == page
    client.get("/l2/keys?adapter=fs&model_name=m%2F1&page_size=5000&page_token=abc&x=1")
    client.get("/l2/keys?adapter=&page_token=&page_size=1")
    assert backend.commands == [
        ListKeys(None, None, 500, None),
        ListKeys("fs", "m/1", 5000, "abc"),
        ListKeys("", None, 1, None),
    ]


@pytest.mark.parametrize("value", ["0", "5001", "-1", "", "x", "1.0", "99999999999999999999"])
def test_a_bad_page_size_is_422_before_all_else(client: FlaskClient, backend: MemoryBackend, value: str) -> None:
    backend.engine = None

    answer = client.get(f"/l2/keys?page_size={value}")

    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["detail"][0]["loc"] == ["query", "page_size"]


def test_a_scrub_is_started_watched_and_stopped(client: FlaskClient, backend: MemoryBackend) -> None:
    state = {"adapter": "fs", "state": "running"}
    backend.replies["l2.scrub"] = {**state, "started": True}
    answer = client.post("/l2/scrub?adapter=fs")
    assert (answer.status_code, answer.json) == (202, state)

    backend.replies["l2.scrub"] = {**state, "started": False}
    answer = client.post("/l2/scrub")
    assert (answer.status_code, answer.json) == (409, {"detail": "a scrub of fs is running already"})

    backend.replies["l2.scrub"] = {**state, "stopped": True}
    assert client.delete("/l2/scrub").json == {**state, "stopped": True}
    assert [command.action for command in backend.commands if isinstance(command, ControlScrub)] == [
        "start",
        "start",
        "stop",
    ]
