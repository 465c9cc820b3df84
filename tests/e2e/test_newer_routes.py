"""Routes under the names of newer LMCache clients, on a real stack: what each does, and how it differs from its elder.

Every test stores objects of its own model, so that none minds what another deletes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from contract.prefetch_jobs import new_request_id
from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.e2e.l2_stack import SLOT, L2Stack, start_l2_stack
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

CHUNK, BLOCKS = 256, 16
NOT_UP = {"detail": "server not initialized"}
TYPES = ["fs", "dax", "memory", "dax", "redis"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[L2Stack]:
    with start_l2_stack(tmp_path_factory.mktemp("newer")) as made:
        yield made


@pytest.fixture
def lonely_web(tmp_path: Any) -> Iterator[WebProcess]:
    """gunicorn and Redis, and no engine."""
    with start_redis("redis", tmp_path / "redis") as redis, WebProcess(tmp_path / "larder", redis.url) as alone:
        yield alone


@contextmanager
def stored(stack: L2Stack, model: str, chunks: int) -> Iterator[tuple[LarderClient, list[dict[str, Any]]]]:
    """A registered client whose objects are in L1 and in the primary adapter, with their keys."""
    address = f"tcp://127.0.0.1:{stack.engine.port}"
    with SharedKV([(2, BLOCKS * chunks, 16, 1, 8)]) as memory, LarderClient(address, model) as client:
        client.register_shared(memory)
        client.store(tokens(chunks), [list(range(BLOCKS * chunks))], f"store-{model}")
        client.end_session(f"store-{model}")
        wait_for(lambda: len(keys_of(stack, model)) == chunks, 20, "what was stored is in L2")
        yield client, keys_of(stack, model)


def tokens(chunks: int) -> list[int]:
    return list(range(CHUNK * chunks))


def keys_of(stack: L2Stack, model: str) -> list[dict[str, Any]]:
    return [entry["key"] for entry in stack.http("GET", f"/cache/objects?model_name={model}").json()["entries"]]


def in_l1(stack: L2Stack) -> int:
    return int(stack.http("GET", "/status").json()["storage_manager"]["l1_manager"]["total_object_count"])


def delete(stack: L2Stack, keys: list[dict[str, Any]], **members: Any) -> dict[str, Any]:
    answer = stack.http("DELETE", "/cache/objects", {"keys": keys, **members})
    assert answer.status == 200, answer.body
    return dict(answer.json())


def test_config_is_conf(stack: L2Stack) -> None:
    newer, elder = stack.http("GET", "/config"), stack.http("GET", "/conf")

    assert (newer.status, newer.body) == (200, elder.body)
    assert newer.body.startswith(b'{\n  "mp": {')
    assert "/objects" in newer.body.decode(), "adapters are shown as objects, with their fields"


def test_config_adapters_tell_tier_and_whether_they_can_be_changed(stack: L2Stack) -> None:
    expected = [
        {"index": index, "type_name": name, "tier": "l2", "primary": index == 0, "reconfigurable": name == "dax"}
        for index, name in enumerate(TYPES)
    ]

    assert stack.http("GET", "/config/adapters").json() == {"adapters": expected}


def test_clear_spares_what_is_leased_unless_forced(stack: L2Stack) -> None:
    with stored(stack, "newer-clear", 3) as (client, _):
        assert client.lookup(tokens(2), "reader") == 2 * CHUNK
        body = b'{"status":"ok","cleared":{"tier":"l1"}}'

        assert stack.http("POST", "/cache/clear").body == body
        assert in_l1(stack) == 2
        assert stack.http("POST", "/cache/clear", {"tier": "l1", "force": False}).body == body
        assert in_l1(stack) == 2
        assert stack.http("POST", "/cache/clear", {"force": True}).body == body
        assert in_l1(stack) == 0
        assert len(keys_of(stack, "newer-clear")) == 3
        client.end_session("reader")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"tier": "l2"}, 400),
        ({"tier": "all"}, 400),
        ({"tier": "l3"}, 422),
        ({"tier": None}, 422),
        ({"force": "perhaps"}, 422),
        ([], 422),
    ],
)
def test_what_clear_refuses(stack: L2Stack, body: Any, status: int) -> None:
    answer = stack.http("POST", "/cache/clear", body)

    assert answer.status == status
    assert list(answer.json()) == ["detail"]
    assert isinstance(answer.json()["detail"], str if status == 400 else list)


def test_objects_are_deleted_from_l2_by_default_and_all_keys_count(stack: L2Stack) -> None:
    with stored(stack, "newer-l2", 2) as (client, keys):
        absent = {**keys[0], "chunk_hash_hex": "00ff"}

        assert delete(stack, [*keys, absent, keys[0]]) == {"deleted": 4, "skipped": 0, "ok": True}
        assert keys_of(stack, "newer-l2") == []
        assert client.lookup(tokens(2), "reader") == 2 * CHUNK, "L1 keeps what it has"
        client.end_session("reader")


def test_objects_in_l1_count_when_they_are_there_and_are_spared_while_leased(stack: L2Stack) -> None:
    with stored(stack, "newer-l1", 3) as (client, keys):
        assert client.lookup(tokens(3), "reader") == 3 * CHUNK
        assert delete(stack, keys, tier="l1") == {"deleted": 0, "skipped": 3, "ok": True}
        client.free(tokens(3), "reader")
        wait_for(lambda: delete(stack, keys[:1], tier="l1")["deleted"] == 1, 10, "the leases are given back")
        assert delete(stack, keys[:1], tier="l1") == {"deleted": 0, "skipped": 0, "ok": True}
        assert len(keys_of(stack, "newer-l1")) == 3, "L2 keeps what it has"

        before = in_l1(stack)  # as of the deletion just before
        assert delete(stack, keys, tier="all") == {"deleted": 3 + 2, "skipped": 0, "ok": True}
        assert (in_l1(stack), keys_of(stack, "newer-l1")) == (before - 2, [])


def test_force_takes_from_l1_what_is_leased(stack: L2Stack) -> None:
    stack.http("POST", "/cache/clear", {"force": True})
    with stored(stack, "newer-force", 2) as (client, keys):
        assert client.lookup(tokens(2), "reader") == 2 * CHUNK

        wait_for(lambda: in_l1(stack) == 2, 10, "the objects are shown")

        answer = delete(stack, keys, tier="all", force=True, adapter="fs")

        assert answer == {"deleted": 4, "skipped": 0, "ok": True}
        assert in_l1(stack) == 0
        client.free(tokens(2), "reader")


def test_a_storage_that_fails_is_told_in_a_200(stack: L2Stack) -> None:
    with stored(stack, "newer-fail", 1) as (_, keys):
        answer = delete(stack, keys, tier="all", adapter="redis")

        assert (answer["deleted"], answer["skipped"], answer["ok"]) == (1, 0, False), "L1's is gone"
        assert answer["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"keys": [], "tier": "l3"}, 422),
        ({"tier": "l1"}, 422),
        ({"keys": [{"chunk_hash_hex": "0g", "model_name": "m", "kv_rank": 1}]}, 400),
        ({"keys": [], "adapter": "nope"}, 404),
        ({"keys": [], "adapter": "nope", "tier": "all"}, 404),
        ({"keys": [], "adapter": "nope", "tier": "l1"}, 200),
    ],
)
def test_what_delete_refuses(stack: L2Stack, body: Any, status: int) -> None:
    answer = stack.http("DELETE", "/cache/objects", body)

    assert answer.status == status
    assert status == 200 or list(answer.json()) == ["detail"]


def test_a_listing_tells_whether_the_storage_is_shared(stack: L2Stack) -> None:
    with stored(stack, "newer-list", 3):
        query = "model_name=newer-list&page_size=2"
        newer, elder = (
            stack.http("GET", f"/cache/objects?{query}").json(),
            stack.http("GET", f"/l2/keys?{query}").json(),
        )

        assert newer == {**elder, "shared": False}
        assert len(newer["entries"]) == 2
        more = stack.http("GET", f"/cache/objects?tier=l2&{query}&page_token={newer['next_page_token']}").json()
        assert (len(more["entries"]), more["next_page_token"]) == (1, None)
    for query, status in {
        "tier=l1": 400,
        "tier=all": 400,
        "tier=": 400,
        "page_token=x": 400,
        "page_size=0": 422,
        "adapter=nope": 404,
        "adapter=redis": 503,
    }.items():
        answer = stack.http("GET", f"/cache/objects?{query}")
        assert (answer.status, list(answer.json())) == (status, ["detail"]), query


def prefetch(stack: L2Stack, model: str, ids: list[int], **members: Any) -> Any:
    return stack.http("POST", "/cache/prefetches", {"model_name": model, "world_size": 1, "token_ids": ids, **members})


def test_a_prefetch_counts_what_was_there_as_found(stack: L2Stack) -> None:
    with stored(stack, "newer-warm", 3) as (_, keys):
        delete(stack, keys[:2], tier="l1")
        begun = prefetch(stack, "newer-warm", tokens(3), source_tier="l2", target_tier="l1")
        request_id = begun.json()["request_id"]

        assert (begun.status, begun.json()) == (202, {"request_id": request_id, "chunks": 3, "status": "submitted"})
        result = stack.http("GET", f"/cache/prefetches/{request_id}?wait=20")
        assert result.json() == {"request_id": request_id, "status": "completed", "found_keys": 3, "total_keys": 3}
        assert result.headers["Cache-Control"] == "no-store"
        again = stack.http("GET", f"/cache/prefetches/{request_id}")
        assert (again.status, list(again.json())) == (404, ["detail"])
        assert prefetch(stack, "newer-warm", [1, 2]).json() == {"chunks": 0, "status": "noop"}

        elder = prefetch(stack, "newer-warm", tokens(3)).json()["request_id"]
        taken = stack.http("GET", f"/l2/prefetch/{elder}?wait=20").json()
        assert taken == {"status": "completed", "found_keys": 0, "total_keys": 3}, "the elder route counts its own"


def test_what_prefetch_refuses_and_in_which_order(stack: L2Stack) -> None:
    too_many = [7] * 1_000_001
    with stored(stack, "newer-refuse", 1):
        for model, members, status in [
            ("nobody", {"token_ids": tokens(1)}, 503),
            ("nobody", {"token_ids": too_many}, 503),
            ("newer-refuse", {"token_ids": too_many}, 400),
            ("newer-refuse", {"token_ids": tokens(1), "cache_salt": "a@b"}, 400),
            ("newer-refuse", {"token_ids": tokens(1), "source_tier": "l1"}, 400),
            ("newer-refuse", {"token_ids": tokens(1), "target_tier": "l2"}, 400),
            ("newer-refuse", {"token_ids": tokens(1), "target_tier": 1}, 422),
            ("newer-refuse", {"token_ids": [-1]}, 422),
        ]:
            body = {"model_name": model, "world_size": 1, **members}
            answer = stack.http("POST", "/cache/prefetches", body, timeout_s=30)
            assert (answer.status, list(answer.json())) == (status, ["detail"]), members.keys()
        assert stack.http("POST", "/l2/prefetch", {**body, "model_name": "nobody", "token_ids": [1]}).status == 409


def test_a_backend_is_asked_and_changed_under_the_newer_path(stack: L2Stack) -> None:
    newer, elder = "/reconfigure/dax/l2/status", "/reconfigure/dax/status"
    # What an earlier test stored may still be on its way to the devices.
    wait_for(lambda: stack.http("GET", newer).json() == stack.http("GET", elder).json(), 20, "the same on both paths")
    nobody = {"enabled": False, "backend": "fs", "num_adapters": 0, "adapters": []}
    assert stack.http("GET", "/reconfigure/fs/l2/status").json() == nobody
    device = str(stack.device("dax-newer"))

    added = stack.http("POST", "/reconfigure/dax/l2/add", {"device_path": device, "size": 16 * SLOT})
    assert (added.status, added.json()["operation"], added.json()["device"]["state"]) == (200, "add", "active")
    removed = stack.http("POST", "/reconfigure/dax/l2/remove", {"device_path": device})
    assert (removed.status, removed.json()["state"]) == (200, "removed")
    for size in (True, 1.0, None, []):
        answer = stack.http("POST", "/reconfigure/dax/l2/add", {"device_path": device, "size": size})
        assert (answer.status, answer.json()["detail"][0]["loc"]) == (422, ["size"]), size
    answer = stack.http("POST", "/reconfigure/fs/l2/add", {"device_path": device, "size": 1})
    assert (answer.status, list(answer.json())) == (404, ["error"])


def test_l1_is_no_dax_device(stack: L2Stack) -> None:
    device = {"device_path": "/dev/dax0.0"}
    for method, path, body in [
        ("GET", "status", None),
        ("POST", "add", {**device, "size": "1GiB"}),
        ("POST", "remove", device),
        ("POST", "remove", {**device, "mode": "drain"}),
    ]:
        answer = stack.http(method, f"/reconfigure/dax/l1/{path}", body)
        assert (answer.status, list(answer.json())) == (409, ["error"])
        assert answer.json()["error"].startswith("L1 is not Device-DAX backed")
    for path, body in [("add", device), ("add", {**device, "size": True}), ("remove", {**device, "mode": "evict"})]:
        assert stack.http("POST", f"/reconfigure/dax/l1/{path}", body).status == 422
    wrong = stack.http("POST", "/reconfigure/dax/l1/remove", {**device, "more": 1})
    assert (wrong.status, wrong.json()["detail"][0]["loc"]) == (422, ["more"])


def test_before_the_engine_is_up(lonely_web: WebProcess) -> None:
    key = {"chunk_hash_hex": "00", "model_name": "m", "kv_rank": 1}
    not_up = [
        ("GET", "/config/adapters", None),
        ("POST", "/cache/clear", None),
        ("POST", "/cache/checksums", {"block_ids": [0], "chunk_size": 1}),
        ("DELETE", "/cache/objects", {"keys": [key], "tier": "all"}),
        ("DELETE", "/cache/objects", {"keys": [key], "tier": "l1"}),
        ("GET", "/cache/objects", None),
        ("POST", "/cache/prefetches", {"model_name": "m", "world_size": 1, "token_ids": [1]}),
        ("GET", f"/cache/prefetches/{new_request_id()}", None),
    ]
    for method, path, body in not_up:
        answer = lonely_web.http(method, path, body)
        assert (answer.status, answer.json()) == (503, NOT_UP), path
    assert lonely_web.http("GET", "/config").json() == {"error": "configs not initialized"}
    for method, path, body in [
        ("GET", "/reconfigure/dax/l2/status", None),
        ("POST", "/reconfigure/dax/l2/add", {"device_path": "/x", "size": 1}),
        ("GET", "/reconfigure/dax/l1/status", None),
        ("POST", "/reconfigure/dax/l1/add", {"device_path": "/x", "size": 1}),
        ("POST", "/reconfigure/dax/l1/remove", {"device_path": "/x"}),
    ]:
        answer = lonely_web.http(method, path, body)
        assert (answer.status, answer.json()) == (503, {"error": "engine not initialized"}), path
    # The form of a request is judged before that.
    assert lonely_web.http("DELETE", "/cache/objects", {}).status == 422
    assert lonely_web.http("POST", "/cache/clear", {"tier": "x"}).status == 422


def test_without_adapters_l2_is_503_and_l1_is_not(tmp_path: Any) -> None:
    with (
        start_redis("redis", tmp_path / "redis") as redis,
        EngineProcess(tmp_path / "larder", redis.url),
        WebProcess(tmp_path / "larder", redis.url) as web,
    ):
        for tier in ("l2", "all"):
            answer = web.http("DELETE", "/cache/objects", {"keys": [], "tier": tier})
            assert (answer.status, answer.json()) == (503, {"detail": "no L2 adapter configured"})
        assert web.http("GET", "/cache/objects").json() == {"detail": "no L2 adapter configured"}
        assert web.http("DELETE", "/cache/objects", {"keys": [], "tier": "l1"}).json()["ok"] is True
        assert web.http("GET", "/config/adapters").json() == {"adapters": []}
