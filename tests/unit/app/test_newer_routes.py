"""What is special under the names of newer clients, over a backend in memory: orders, counts, missing bodies."""

import dataclasses
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from contract.commands import ClearCache, DeleteKeys, DeleteL1Keys, ListKeys
from contract.errors import CommandFailed, QueueFull
from contract.object_keys import EncodedKey
from contract.prefetch_jobs import PrefetchJob, new_request_id
from contract.token_ids import MAX_TOKEN_IDS
from tests.unit.app.memory_backend import MemoryBackend

KEY = {"chunk_hash_hex": "00ff", "model_name": "m", "kv_rank": 1}
ENCODED = EncodedKey("00ff", "m", 1)
BODY = {"model_name": "a/model", "world_size": 2, "token_ids": [1, 2, 3]}


def answer_of(response: TestResponse) -> tuple[int, Any]:
    return response.status_code, response.get_json()


def keep(backend: MemoryBackend, **fields: Any) -> str:
    job = PrefetchJob(new_request_id(), "a/model", 2, "")
    backend.prefetch.jobs[job.request_id] = dataclasses.replace(job, **fields)
    return job.request_id


@pytest.mark.parametrize(
    ("data", "content_type", "status", "force"),
    [
        (None, None, 200, False),
        (b"", "text/plain", 200, False),
        (b"null", "application/json", 200, False),
        (b"{}", "application/json", 200, False),
        (b"{}", None, 200, False),
        (b'{"force":"yes","more":1}', "application/vnd.x+json", 200, True),
        (b"{}", "text/plain", 422, None),
        (b"a=b", "application/x-www-form-urlencoded", 422, None),
        (b"{", "application/json", 422, None),
        (b"[]", "application/json", 422, None),
    ],
)
def test_clear_takes_a_body_or_none(
    client: FlaskClient,
    backend: MemoryBackend,
    data: bytes | None,
    content_type: str | None,
    status: int,
    force: bool | None,
) -> None:
    answer = client.post("/cache/clear", data=data, content_type=content_type)

    assert answer.status_code == status
    assert backend.commands == ([] if force is None else [ClearCache(force=force)])


def test_l2_is_deleted_from_first(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.delete"] = {"adapter": "fs", "deleted": 0, "ok": True}
    backend.replies["l1.delete"] = {"deleted": 1, "skipped": 1}

    answer = client.delete("/cache/objects", json={"keys": [KEY, KEY], "tier": "all", "force": 1, "adapter": "fs"})

    assert answer_of(answer) == (200, {"deleted": 3, "skipped": 1, "ok": True})
    assert backend.commands == [DeleteKeys("fs", (ENCODED, ENCODED)), DeleteL1Keys((ENCODED, ENCODED), True)]


def test_a_refusal_of_l2_leaves_l1_alone(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.delete"] = CommandFailed("unavailable", "no L2 adapter configured")

    answer = client.delete("/cache/objects", json={"keys": [KEY], "tier": "all"})

    assert answer_of(answer) == (503, {"detail": "no L2 adapter configured"})
    assert backend.commands == [DeleteKeys(None, (ENCODED,))]


def test_a_failed_storage_counts_what_was_really_deleted(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.delete"] = {"adapter": "fs", "deleted": 1, "ok": False, "error": "gone"}

    answer = client.delete("/cache/objects", json={"keys": [KEY] * 3, "adapter": None})

    assert answer_of(answer) == (200, {"deleted": 1, "skipped": 0, "ok": False, "error": "gone"})


def test_what_cannot_be_listed_is_503_here_and_501_there(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.list"] = CommandFailed("unsupported", "too many objects to list")

    assert answer_of(client.get("/cache/objects?page_token=")) == (503, {"detail": "too many objects to list"})
    assert answer_of(client.get("/l2/keys")) == (501, {"detail": "too many objects to list"})
    assert backend.commands == [ListKeys(None, None, 500, None)] * 2


@pytest.mark.parametrize("count", [1, MAX_TOKEN_IDS + 1])
def test_no_layout_is_503_and_comes_before_too_many_ids(
    client: FlaskClient, backend: MemoryBackend, count: int
) -> None:
    backend.replies["prefetch.start"] = CommandFailed("conflict", "no worker is registered")

    answer = client.post("/cache/prefetches", json={**BODY, "token_ids": [7] * count})

    assert answer_of(answer) == (503, {"detail": "no worker is registered"})
    assert backend.prefetch.jobs == {}


def test_too_many_ids_leave_no_job(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["prefetch.start"] = {"status": "noop", "chunks": 0}

    answer = client.post("/cache/prefetches", json={**BODY, "token_ids": [7] * (MAX_TOKEN_IDS + 1)})

    assert answer_of(answer) == (400, {"detail": f"more than {MAX_TOKEN_IDS} token_ids"})
    assert backend.prefetch.jobs == {}


def test_a_full_queue_is_503_with_a_time_to_come_back(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies = dict.fromkeys(("prefetch.start", "cache.clear", "l1.delete"), QueueFull("full", 2.5))

    for answer in (
        client.post("/cache/prefetches", json=BODY),
        client.post("/cache/clear"),
        client.delete("/cache/objects", json={"keys": [KEY], "tier": "l1"}),
    ):
        assert answer_of(answer) == (503, {"detail": "full"})
        assert answer.headers["Retry-After"] == "3"


def test_a_poll_names_its_job_and_counts_what_was_there(client: FlaskClient, backend: MemoryBackend) -> None:
    running = keep(backend, status="running")
    failed = keep(backend, status="failed", error="why", found_keys=2, resident_keys=3, total_keys=9)

    assert answer_of(client.get(f"/cache/prefetches/{running}")) == (200, {"request_id": running, "status": "pending"})
    head = client.head(f"/cache/prefetches/{failed}")
    assert (head.status_code, head.headers["Allow"]) == (405, "GET")
    result = {"request_id": failed, "status": "completed", "found_keys": 5, "total_keys": 9}
    assert answer_of(client.get(f"/cache/prefetches/{failed}")) == (
        200,
        {**result, "outcome": "failed", "error": "why"},
    )
    assert client.get(f"/l2/prefetch/{failed}").status_code == 404, "it is taken once, under whichever name"


def test_the_form_of_a_change_of_l1_is_told_before_the_engine_is_asked(
    client: FlaskClient, backend: MemoryBackend
) -> None:
    backend.engine = None

    assert client.post("/reconfigure/dax/l1/add", json={"device_path": "/x"}).status_code == 422
    right = client.post("/reconfigure/dax/l1/add", json={"device_path": "/x", "size": 1})
    assert answer_of(right) == (503, {"error": "engine not initialized"})
    assert client.post("/reconfigure/dax/l1/grow", json={}).status_code == 404
