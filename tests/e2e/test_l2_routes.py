"""Adapters, keys and their deletion over HTTP, on a real stack with files, a DAX device, a codec and a storage away."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import snapshots
from contract.keys import Keys
from tests.conftest import start_redis
from tests.e2e.l2_stack import SECRET, STORED_BYTES, L2Stack, start_l2_stack
from tests.stack import STOP_TIMEOUT_S, EngineProcess, WebProcess, need
from tests.waiting import wait_for

STORING = ("fs", "dax", "memory")
TYPES = ["fs", "dax", "memory", "dax", "redis"]
CHUNKS = {"e2e/one": 5, "e2e/two": 3}
OBJECTS = sum(CHUNKS.values())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[L2Stack]:
    with start_l2_stack(tmp_path_factory.mktemp("l2")) as made:
        made.store(CHUNKS["e2e/one"], "e2e/one")
        made.store(CHUNKS["e2e/two"], "e2e/two", salt="alice")
        made.wait_for_objects(OBJECTS, STORING)
        yield made


def walk(stack: L2Stack, query: str) -> list[list[dict[str, Any]]]:
    pages, token = [], ""
    while token is not None:
        page = stack.http("GET", f"/l2/keys?{query}&page_token={token}").json()
        pages.append(page["entries"])
        token = page["next_page_token"]
    return pages


def test_adapters_are_named_in_their_order(stack: L2Stack) -> None:
    answer = stack.http("GET", "/l2/adapters")

    expected = [{"index": index, "type_name": name, "primary": index == 0} for index, name in enumerate(TYPES)]
    assert answer.json() == {"adapters": expected}
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("adapter", STORING)
def test_a_listing_has_every_key_with_its_stored_size(stack: L2Stack, adapter: str) -> None:
    page = stack.http("GET", f"/l2/keys?adapter={adapter}").json()

    keys = [entry["key"] for entry in page["entries"]]
    assert (page["adapter"], page["next_page_token"], len(keys)) == (adapter, None, OBJECTS)
    assert [key["chunk_hash_hex"] for key in keys] == sorted(key["chunk_hash_hex"] for key in keys)
    assert {(key["model_name"], key["cache_salt"]) for key in keys} == {("e2e/one", ""), ("e2e/two", "alice")}
    assert {key["kv_rank"] for key in keys} == {16777472}
    assert {key["object_group_id"] for key in keys} == {0}
    sizes = {entry["size_bytes"] for entry in page["entries"]}
    if adapter == "memory":
        assert 4096 < max(sizes) < STORED_BYTES
    else:
        assert sizes == {STORED_BYTES}


@pytest.mark.parametrize("adapter", STORING)
def test_pages_add_up(stack: L2Stack, adapter: str) -> None:
    pages = walk(stack, f"adapter={adapter}&page_size=3")

    assert [len(page) for page in pages] == [3, 3, 2]
    assert [entry for page in pages for entry in page] == stack.entries(f"adapter={adapter}")
    of_one = walk(stack, f"adapter={adapter}&page_size=2&model_name=e2e%2Fone")
    assert [len(page) for page in of_one] == [2, 2, 1]
    assert walk(stack, f"adapter={adapter}&model_name=e2e") == [[]]


def test_the_primary_is_meant_without_a_name(stack: L2Stack) -> None:
    assert stack.http("GET", "/l2/keys").json()["adapter"] == "fs"
    assert stack.http("DELETE", "/l2", {"keys": []}).json() == {"requested": 0, "adapter": "fs", "ok": True}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("page_size=0&adapter=nope", 422),
        ("page_size=5001", 422),
        ("page_size=", 422),
        ("adapter=nope&page_token=x", 404),
        ("adapter=", 404),
        ("page_token=x", 400),
        ("page_token=e30", 400),
        ("adapter=redis&page_token=x", 400),
        ("adapter=redis", 503),
    ],
)
def test_bad_questions_for_keys(stack: L2Stack, query: str, status: int) -> None:
    answer = stack.http("GET", f"/l2/keys?{query}")

    assert answer.status == status
    assert list(answer.json()) == ["detail"]
    assert SECRET not in answer.body.decode()


def test_a_shell_script_walks_all_pages(stack: L2Stack, tmp_path: Path) -> None:
    for tool in ("curl", "jq"):
        need(tool, shutil.which(tool) is not None, f"{tool} is not on PATH")
    script = tmp_path / "walk.sh"
    script.write_text(
        "set -eu\n"
        'token=""\n'
        "while :; do\n"
        f'  page=$(curl -fsS "{stack.web.url}/l2/keys?page_size=3&page_token=$token")\n'
        "  printf '%s\\n' \"$page\" | jq -r '.entries[].key.chunk_hash_hex'\n"
        "  token=$(printf '%s' \"$page\" | jq -r '.next_page_token // empty')\n"
        '  [ -n "$token" ] || break\n'
        "done\n"
    )

    ran = subprocess.run(["sh", str(script)], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.split() == [entry["key"]["chunk_hash_hex"] for entry in stack.entries()]


def test_deleted_keys_are_gone_from_one_adapter_alone(stack: L2Stack) -> None:
    before = stack.entries()
    in_l1 = stack.http("GET", "/status").json()["storage_manager"]["l1_manager"]["total_object_count"]
    keys = [entry["key"] for entry in before[:2]]
    absent = {"chunk_hash_hex": "abcd", "model_name": "nobody", "kv_rank": 1}

    answer = stack.http("DELETE", "/l2?adapter=fs", {"keys": [*keys, keys[0], absent]})

    assert answer.json() == {"requested": 4, "adapter": "fs", "ok": True}
    for _ in range(4):
        assert stack.entries() == before[2:]
    assert stack.http("DELETE", "/l2", {"keys": keys}).json()["ok"] is True
    assert len(stack.entries("adapter=dax")) == OBJECTS
    report = stack.http("GET", "/status").json()["storage_manager"]
    assert report["l1_manager"]["total_object_count"] == in_l1
    assert report["l2_adapters"][0]["stored_object_count"] == OBJECTS - 2


def test_a_storage_that_is_away_is_part_of_a_deletes_answer(stack: L2Stack) -> None:
    key = stack.entries()[0]["key"]

    answer = stack.http("DELETE", "/l2?adapter=redis", {"keys": [key]})

    body = answer.json()
    assert answer.status == 200
    assert (body["requested"], body["adapter"], body["ok"]) == (1, "redis", False)
    assert body["error"]
    assert SECRET not in body["error"]


def test_bad_deletes(stack: L2Stack) -> None:
    key = {"chunk_hash_hex": "00", "model_name": "m", "kv_rank": 1}
    bad = {**key, "cache_salt": "a/b"}

    assert stack.http("DELETE", "/l2?adapter=nope").status == 422
    assert stack.http("DELETE", "/l2?adapter=nope", {"keys": [{}]}).status == 422
    too_many = stack.http("DELETE", "/l2?adapter=nope", {"keys": [bad] * 10_001})
    assert (too_many.status, too_many.json()) == (400, {"detail": "10001 keys, at most 10000 are taken"})
    broken = stack.http("DELETE", "/l2?adapter=nope", {"keys": [key, bad]})
    assert broken.status == 400
    assert broken.json()["detail"].startswith("keys[1]: cache_salt")
    unknown = stack.http("DELETE", "/l2?adapter=nope", {"keys": [key]})
    assert unknown.status == 404
    assert list(unknown.json()) == ["detail"]
    assert stack.http("DELETE", "/l2?adapter=", {"keys": [key]}).status == 404
    assert stack.http("DELETE", "/l2", {"keys": [key] * 10_000}).json()["requested"] == 10_000
    refused = stack.http("DELETE", "/l2", {"keys": []}, headers={"X-Forwarded-For": "192.0.2.7"})
    assert refused.status == 403


def test_a_scrub_reads_all_and_says_so(stack: L2Stack) -> None:
    never = stack.http("GET", "/l2/scrub?adapter=memory").json()
    assert (never["adapter"], never["state"]) == ("memory", "never")

    begun = stack.http("POST", "/l2/scrub?adapter=memory")

    assert begun.status == 202
    assert begun.json()["adapter"] == "memory"
    done = wait_for(
        lambda: (state := stack.http("GET", "/l2/scrub?adapter=memory").json())["state"] == "completed" and state,
        20,
        "the scrub is over",
    )
    assert (done["good_objects"], done["corrupt_objects"], done["failed_objects"]) == (OBJECTS, 0, 0)
    assert stack.http("DELETE", "/l2/scrub?adapter=memory").json()["stopped"] is False
    for method in ("GET", "POST", "DELETE"):
        assert stack.http(method, "/l2/scrub?adapter=nope").status == 404


def test_a_second_scrub_of_the_same_adapter_has_to_wait(stack: L2Stack) -> None:
    """The one of a storage that is away does not end by itself."""
    assert stack.http("POST", "/l2/scrub?adapter=redis").status == 202

    again = stack.http("POST", "/l2/scrub?adapter=redis")

    assert (again.status, again.json()) == (409, {"detail": "a scrub of redis is running already"})
    stopped = stack.http("DELETE", "/l2/scrub?adapter=redis").json()
    assert (stopped["stopped"], stopped["state"]) == (True, "stopped")


def test_secrets_are_shown_nowhere(stack: L2Stack) -> None:
    conf = stack.http("GET", "/conf")
    shown = conf.json()["storage_manager"]["l2_adapter_config"]["adapters"]
    assert [adapter["type"] for adapter in shown] == TYPES
    assert shown[4]["url"] == "redis://:***@127.0.0.1:1/0"

    client = stack.redis.client()
    try:
        published = [client.hget(Keys("default").snapshot(name), "body") or "" for name in snapshots.NAMES]
    finally:
        client.close()
    log = stack.engine.log_path.read_text(errors="replace")
    web_log = stack.web.log_path.read_text(errors="replace")
    status = stack.http("GET", "/status").body.decode()
    assert [text for text in (conf.body.decode(), status, log, web_log, *published) if SECRET in text] == []


def test_a_walk_goes_on_after_a_restart_of_the_engine(tmp_path: Path) -> None:
    with start_l2_stack(tmp_path) as stack:
        stack.store(4, "e2e/walk")
        stack.wait_for_objects(4, ["fs"])
        everything = stack.entries()
        first = stack.http("GET", "/l2/keys?page_size=2").json()
        path = f"/l2/keys?page_token={first['next_page_token']}"

        stack.engine.kill()
        stack.engine.start()
        wait_for(lambda: stack.http("GET", path).status == 200, 20, "the engine lists again")
        rest = stack.http("GET", path).json()

        assert len(rest["entries"]) == 2
        assert first["entries"] + rest["entries"] == everything


@pytest.fixture(scope="module")
def without_l2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EngineProcess, WebProcess]]:
    directory = tmp_path_factory.mktemp("no-l2")
    with (
        start_redis("redis", directory / "redis") as redis,
        EngineProcess(directory / "larder", redis.url) as engine,
        WebProcess(directory / "larder", redis.url) as web,
    ):
        yield engine, web


KEY_BODY = {"keys": [{"chunk_hash_hex": "00", "model_name": "m", "kv_rank": 1}]}
NEEDS_ADAPTER = [
    ("DELETE", "/l2", KEY_BODY),
    ("DELETE", "/l2?adapter=fs", KEY_BODY),
    ("GET", "/l2/keys", None),
    ("GET", "/l2/keys?adapter=fs&page_token=x", None),
    ("POST", "/l2/scrub", None),
    ("GET", "/l2/scrub", None),
    ("DELETE", "/l2/scrub", None),
]


def test_without_an_adapter(without_l2: tuple[EngineProcess, WebProcess]) -> None:
    _, web = without_l2
    assert web.http("GET", "/l2/adapters").json() == {"adapters": []}
    for method, path, body in NEEDS_ADAPTER:
        answer = web.http(method, path, body)
        assert (answer.status, answer.json()) == (503, {"detail": "no L2 adapter configured"}), path
    assert web.http("DELETE", "/l2", {"keys": [{}]}).status == 422
    assert web.http("GET", "/l2/keys?page_size=0").status == 422


def test_reconfiguration_without_a_backend(without_l2: tuple[EngineProcess, WebProcess]) -> None:
    _, web = without_l2
    none = {"enabled": False, "num_backends": 0, "backends": []}
    assert web.http("GET", "/reconfigure/backends").json() == none
    size = {"error": "size must be a positive integer byte count or a string like '100GiB'"}
    for path, body, status, expected in [
        ("dax/add", {"device_path": "/x", "size": "1 GiB"}, 404, {"error": "dax adapter not found"}),
        ("dax/add", {"device_path": "/x", "size": "1 GB2"}, 400, size),
        ("dax/add", {"device_path": "/x", "size": 0}, 400, size),
        ("dax/status", {}, 400, {"error": "unsupported dax reconfigure operation: status"}),
        ("Nope/x", {"any": 1}, 404, {"error": "nope adapter not found"}),
        ("%20/x", {}, 400, {"error": "backend must be non-empty"}),
    ]:
        answer = web.http("POST", f"/reconfigure/{path}", body)
        assert (answer.status, answer.json()) == (status, expected), path


def test_without_an_engine(without_l2: tuple[EngineProcess, WebProcess]) -> None:
    engine, web = without_l2
    engine.stop()

    for method, path, body in [*NEEDS_ADAPTER, ("GET", "/l2/adapters", None)]:
        answer = web.http(method, path, body)
        assert (answer.status, answer.json()) == (503, {"detail": "engine not initialized"}), path
    for method, path, body in [
        ("GET", "/reconfigure/backends", None),
        ("GET", "/reconfigure/dax/status", None),
        ("POST", "/reconfigure/%20/x", {}),
    ]:
        answer = web.http(method, path, body)
        assert (answer.status, answer.json()) == (503, {"error": "engine not initialized"}), path
    assert web.http("DELETE", "/l2", {"keys": 1}).status == 422


@pytest.mark.parametrize(
    ("adapter", "complaint"),
    [
        ({"type": "nope", "password": SECRET}, "unknown type 'nope'"),
        ({"type": "redis", "url": f"redis://:{SECRET}@h", "host": "h"}, "either url or host"),
        ({"type": "redis", "hots": SECRET}, "unknown field 'hots'"),
        ({"type": "s3", "bucket": "b", "session_token": [SECRET]}, "session_token is something that is not shown"),
        ({"type": "fs"}, "base_path is missing"),
        ({"type": "memory", "serde": {"type": "rot13"}}, "unknown type 'rot13'"),
    ],
)
def test_a_bad_adapter_stops_the_start(tmp_path: Path, adapter: dict[str, object], complaint: str) -> None:
    with start_redis("redis", tmp_path / "redis") as redis:
        engine = EngineProcess(tmp_path / "larder", redis.url, l2_adapter=json.dumps(adapter))
        engine.launch()
        assert engine.process is not None

        assert engine.process.wait(STOP_TIMEOUT_S) == 78
        log = engine.log_path.read_text()
        assert complaint in log
        assert SECRET not in log
        assert "Traceback" not in log
