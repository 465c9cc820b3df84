"""The routes of prefetch jobs, status by status, and how a body with a million ids is read."""

import dataclasses
import json
import random
import threading
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError
from werkzeug.test import TestResponse

from app import prefetch_body
from app.prefetch_body import MAX_BODY_BYTES, PrefetchBody, TokenIds, parse_prefetch_body
from app.request_schema import parse_json
from contract.commands import CancelPrefetch, StartPrefetch
from contract.errors import CommandFailed, DeadlinePassed, EngineAway, QueueFull, RedisAway
from contract.prefetch_jobs import PrefetchJob, new_request_id
from contract.token_ids import MAX_TOKEN_IDS, read_token_ids
from tests.unit.app.memory_backend import MemoryBackend
from tests.waiting import wait_for

BODY = {"model_name": "a/model", "world_size": 2, "token_ids": [1, 2, 3], "cache_salt": "alice"}
RUNNING = {"status": "running", "chunks": 3}
PENDING = {"status": "pending"}


def post(client: FlaskClient, **members: Any) -> TestResponse:
    body = json.dumps({**BODY, **members})
    return client.post("/l2/prefetch", data=body, content_type="application/json")


def keep(backend: MemoryBackend, **fields: Any) -> str:
    job = PrefetchJob(new_request_id(), "a/model", 2, "")
    backend.prefetch.jobs[job.request_id] = dataclasses.replace(job, **fields)
    return job.request_id


def answer_of(response: TestResponse) -> tuple[int, Any]:
    return response.status_code, response.get_json()


def test_a_job_is_written_and_started(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["prefetch.start"] = RUNNING

    answer = post(client)

    (request_id,) = backend.prefetch.jobs
    assert answer_of(answer) == (202, {"request_id": request_id, "chunks": 3, "status": "submitted"})
    job = backend.prefetch.jobs[request_id]
    assert (job.model_name, job.world_size, job.cache_salt, job.status) == ("a/model", 2, "alice", "submitted")
    assert backend.prefetch.inputs[request_id] == "[1,2,3]"
    assert backend.commands == [StartPrefetch(request_id)]


def test_less_than_a_chunk_leaves_nothing(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["prefetch.start"] = {"status": "noop", "chunks": 0}

    assert answer_of(post(client)) == (202, {"chunks": 0, "status": "noop"})
    assert backend.prefetch.jobs == {}


@pytest.mark.parametrize(
    ("failure", "status", "detail"),
    [
        (CommandFailed("conflict", "no worker is registered"), 409, "no worker is registered"),
        (CommandFailed("bad_request", "cache_salt breaks a rule"), 400, "cache_salt breaks a rule"),
        (QueueFull("64 prefetch jobs run already", 1.0), 503, "64 prefetch jobs run already"),
        (EngineAway("draining"), 503, "engine not initialized"),
        (DeadlinePassed("prefetch.start"), 503, "the engine did not answer in time"),
        (RedisAway("cut"), 503, "Redis does not answer"),
    ],
)
def test_a_job_that_is_refused_is_taken_back(
    client: FlaskClient, backend: MemoryBackend, failure: Exception, status: int, detail: str
) -> None:
    backend.replies["prefetch.start"] = failure

    answer = post(client)

    assert answer.status_code == status
    assert answer.get_json()["detail"].startswith(detail)
    assert backend.prefetch.jobs == {}


def test_a_full_list_refuses(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.prefetch.is_full = True

    answer = post(client)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    assert backend.commands == []


@pytest.mark.parametrize(
    ("members", "loc"),
    [
        ({"model_name": None}, ["body", "model_name"]),
        ({"model_name": "\ud800"}, ["body", "model_name"]),
        ({"world_size": 1.5}, ["body", "world_size"]),
        ({"world_size": "x"}, ["body", "world_size"]),
        ({"token_ids": None}, ["body", "token_ids"]),
        ({"token_ids": "1,2"}, ["body", "token_ids"]),
        ({"token_ids": [1, -1]}, ["body", "token_ids", 1]),
        ({"token_ids": [2**32]}, ["body", "token_ids", 0]),
        ({"token_ids": [1, 2, 1.5]}, ["body", "token_ids", 2]),
        ({"token_ids": [[1]]}, ["body", "token_ids", 0]),
        ({"cache_salt": None}, ["body", "cache_salt"]),
        ({"cache_salt": 7}, ["body", "cache_salt"]),
    ],
)
def test_a_body_of_another_form_is_422_also_without_an_engine(
    client: FlaskClient, backend: MemoryBackend, members: dict[str, Any], loc: list[Any]
) -> None:
    backend.engine = None

    answer = post(client, **members)

    assert answer.status_code == 422
    problem = answer.get_json()["detail"][0]
    assert problem["loc"] == loc
    assert {"type", "loc", "msg"} == problem.keys()


@pytest.mark.parametrize("name", ["model_name", "world_size", "token_ids"])
def test_a_missing_member_is_422(client: FlaskClient, name: str) -> None:
    answer = client.post("/l2/prefetch", json={key: value for key, value in BODY.items() if key != name})

    assert (answer.status_code, answer.get_json()["detail"][0]["loc"]) == (422, ["body", name])


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b"7", b'{"token_ids": [1,'])
def test_no_object_is_422(client: FlaskClient, body: bytes) -> None:
    assert client.post("/l2/prefetch", data=body, content_type="application/json").status_code == 422


def test_integers_come_in_all_forms_that_a_body_knows(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["prefetch.start"] = RUNNING

    assert post(client, token_ids=["7", 8.0, True, 2**32 - 1], world_size="2").status_code == 202
    assert list(backend.prefetch.inputs.values()) == ["[7,8,1,4294967295]"]


def test_too_many_ids_are_400_before_the_engine_is_asked(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None

    many = post(client, token_ids=[7] * (MAX_TOKEN_IDS + 1))
    mixed = post(client, token_ids=["7"] * (MAX_TOKEN_IDS + 9))

    assert answer_of(many) == (400, {"detail": "more than 1000000 token_ids"})
    assert mixed.status_code == 400
    assert post(client, token_ids=[4294967295] * MAX_TOKEN_IDS).status_code == 503


def test_a_body_beyond_all_bounds_is_413(client: FlaskClient) -> None:
    answer = client.post("/l2/prefetch", data=b" " * (MAX_BODY_BYTES + 1), content_type="application/json")

    assert answer_of(answer) == (413, {"detail": f"the body is larger than {MAX_BODY_BYTES} bytes"})


def test_a_pending_job_is_pending_as_often_as_asked(client: FlaskClient, backend: MemoryBackend) -> None:
    for status in ("submitted", "running"):
        path = f"/l2/prefetch/{keep(backend, status=status)}"
        assert [answer_of(client.get(path)) for _ in range(2)] == [(200, PENDING)] * 2


def test_polls_that_find_nothing_do_not_fill_the_audit_stream(client: FlaskClient, backend: MemoryBackend) -> None:
    pending, over = keep(backend, status="running"), keep(backend, status="completed")

    for request_id in (pending, over):
        client.get(f"/l2/prefetch/{request_id}")

    wait_for(lambda: backend.audit, 10, "the action is noted")
    assert [entry["action"] for entry in backend.audit] == [f"GET /l2/prefetch/{over}"]


@pytest.mark.parametrize(
    ("status", "more"),
    [
        ("completed", {}),
        ("failed", {"outcome": "failed", "error": "why"}),
        ("cancelled", {"outcome": "cancelled", "error": "why"}),
    ],
)
def test_an_end_is_told_once(client: FlaskClient, backend: MemoryBackend, status: str, more: dict[str, str]) -> None:
    path = f"/l2/prefetch/{keep(backend, status=status, found_keys=5, total_keys=6, error='why')}"

    first, second = client.get(path), client.get(path)

    assert answer_of(first) == (200, {"status": "completed", "found_keys": 5, "total_keys": 6, **more})
    assert second.status_code == 404
    assert isinstance(second.get_json()["detail"], str)


@pytest.mark.parametrize("request_id", ["0" * 32, "nobody", "0" * 32 + ":input", "%F0%9F%A6%8A"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_id_is_404(client: FlaskClient, request_id: str, method: str) -> None:
    assert client.open(f"/l2/prefetch/{request_id}", method=method).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/l2/prefetch"), ("GET", "/l2/prefetch/x"), ("DELETE", "/l2/prefetch/x")]
)
def test_without_an_engine_it_is_503(client: FlaskClient, backend: MemoryBackend, method: str, path: str) -> None:
    backend.engine = None

    answer = client.open(path, method=method, json=BODY if method == "POST" else None)

    assert answer_of(answer) == (503, {"detail": "engine not initialized"})


def test_a_head_takes_no_result_away_and_nothing_keeps_one(client: FlaskClient, backend: MemoryBackend) -> None:
    path = f"/l2/prefetch/{keep(backend, status='completed')}"

    head = client.head(path)
    assert (head.status_code, head.headers["Allow"]) == (405, "GET, DELETE")
    assert client.get(path).headers["Cache-Control"] == "no-store"


def test_a_poll_without_an_engine_consumes_nothing(client: FlaskClient, backend: MemoryBackend) -> None:
    engine, backend.engine = backend.engine, None
    path = f"/l2/prefetch/{keep(backend, status='completed')}"

    assert client.get(path).status_code == 503
    backend.engine = engine
    assert client.get(path).status_code == 200


def test_the_path_without_an_id_is_405(client: FlaskClient) -> None:
    answer = client.get("/l2/prefetch")

    assert answer_of(answer) == (405, {"detail": "Method Not Allowed"})
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("wait", ["31", "-1", "x", "", "1.5"])
def test_a_wait_out_of_bounds_is_422(client: FlaskClient, wait: str) -> None:
    answer = client.get(f"/l2/prefetch/{'0' * 32}?wait={wait}")

    assert (answer.status_code, answer.get_json()["detail"][0]["loc"]) == (422, ["query", "wait"])


def test_a_poll_waits_for_the_end(client: FlaskClient, backend: MemoryBackend) -> None:
    request_id = keep(backend, status="running", total_keys=6)

    def end_it_once_asked() -> None:
        wait_for(lambda: backend.prefetch.asked >= 2, 20, "the poll waits")
        job = backend.prefetch.jobs[request_id]
        backend.prefetch.jobs[request_id] = dataclasses.replace(job, status="completed", found_keys=6)

    ending = threading.Thread(target=end_it_once_asked)
    ending.start()
    answer = client.get(f"/l2/prefetch/{request_id}?wait=30")
    ending.join(30)

    assert answer_of(answer) == (200, {"status": "completed", "found_keys": 6, "total_keys": 6})


def test_a_wait_that_is_over_says_pending(client: FlaskClient, backend: MemoryBackend) -> None:
    request_id = keep(backend, status="running")

    assert answer_of(client.get(f"/l2/prefetch/{request_id}?wait=1")) == (200, PENDING)
    assert backend.prefetch.asked > 3


def test_a_poll_without_a_place_answers_at_once(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.no_place = True
    running, over = keep(backend, status="running"), keep(backend, status="completed")

    for path in ("/l2/prefetch", "/cache/prefetches"):
        answer = client.get(f"{path}/{running}?wait=30")
        assert (answer.status_code, answer.get_json()["status"]) == (200, "pending")
    assert client.get(f"/l2/prefetch/{running}").status_code == 200
    assert client.get(f"/l2/prefetch/{over}?wait=5").status_code == 200


@pytest.mark.parametrize(
    ("reply", "answer"), [("cancelled", 200), ("completed", 200), ("cancelling", 202), ("unknown", 404)]
)
def test_a_job_is_cancelled(client: FlaskClient, backend: MemoryBackend, reply: str, answer: int) -> None:
    backend.replies["prefetch.cancel"] = {"status": reply}
    request_id = keep(backend, status="running")

    response = client.delete(f"/l2/prefetch/{request_id}")

    assert response.status_code == answer
    assert backend.commands == [CancelPrefetch(request_id)]
    if answer != 404:
        assert response.get_json() == {"request_id": request_id, "status": reply}


def test_a_job_that_is_over_cannot_be_cancelled(client: FlaskClient, backend: MemoryBackend) -> None:
    assert client.delete(f"/l2/prefetch/{keep(backend, status='completed')}").status_code == 404
    assert backend.commands == []


def test_the_list_has_all_fields_in_their_types(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None
    keep(backend, status="completed", submitted_at=1.25, found_keys=3, consumed_at=2.5)
    latest = keep(backend, submitted_at=2.25)

    jobs = client.get("/jobs/prefetch").get_json()["jobs"]

    assert jobs[0]["request_id"] == latest
    assert [job["submitted_at"] for job in jobs] == [2.25, 1.25]
    assert jobs[1] == {
        "request_id": jobs[1]["request_id"], "model_name": "a/model", "world_size": 2, "cache_salt": "", "chunks": 0,
        "total_keys": 0, "found_keys": 3, "resident_keys": 0, "missing_keys": 0, "failed_keys": 0, "over_quota_keys": 0,
        "status": "completed", "error": "", "submitted_at": 1.25, "started_at": None, "finished_at": None,
        "consumed_at": 2.5, "boot_id": "",
    }  # fmt: skip
    assert len(client.get("/jobs/prefetch?limit=1").get_json()["jobs"]) == 1


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-5"])
def test_a_limit_out_of_bounds_is_422(client: FlaskClient, limit: str) -> None:
    assert client.get(f"/jobs/prefetch?limit={limit}").status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/l2/prefetch"), ("GET", "/l2/prefetch/x"), ("DELETE", "/l2/prefetch/x"), ("GET", "/jobs/prefetch")],
)
def test_all_of_it_is_for_the_same_machine(client: FlaskClient, method: str, path: str) -> None:
    answer = client.open(path, method=method, headers={"X-Forwarded-For": "192.0.2.7"})

    assert answer.status_code == 403
    assert isinstance(answer.get_json()["detail"], str)


def long_body(ids: list[int], **members: Any) -> bytes:
    return json.dumps({"model_name": "m", "world_size": 1, "token_ids": ids, **members}).encode()


def test_a_long_list_is_handed_on_as_it_came() -> None:
    some = random.Random(5)
    ids = [some.randrange(2**32) for _ in range(MAX_TOKEN_IDS)]

    loaded = PrefetchBody().load(parse_prefetch_body(long_body(ids, cache_salt="a")))

    assert isinstance(loaded["token_ids"], TokenIds)
    assert loaded["token_ids"].count == MAX_TOKEN_IDS
    assert list(read_token_ids(loaded["token_ids"].text)) == ids
    assert (loaded["model_name"], loaded["cache_salt"]) == ("m", "a")


NAMES = ['"token_ids"', '"token_ids"', '"a"', '"model_name"', r'"x\"token_ids"', r'"token\u005fids"', '"token_ids "']
VALUES = [
    "[1,2]",
    '[1,"2"]',
    "[-1]",
    "[]",
    "[1,]",
    '"token_ids"',
    '{"token_ids":[3]}',
    "[[1],2]",
    r'"\"token_ids\":[1]"',
]
VALUES += ["7", "null", "[true, 2.0]", "[1,2", "[1]]", '["]",1]']


@given(
    members=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4),
    colon=st.sampled_from([":", " : ", ""]),
    end=st.sampled_from(["}", "} ", "}]"]),
)
def test_slices_never_change_what_a_body_says(members: list[tuple[str, str]], colon: str, end: str) -> None:
    raw = ("{" + ", ".join(f"{name}{colon}{value}" for name, value in members) + end).encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch_body, "_SLICED_FROM_BYTES", 0)
        assert outcome_of(parse_prefetch_body, raw) == outcome_of(parse_json, raw)


def outcome_of(parse: Any, raw: bytes) -> object:
    """What the schema makes of a body, or how it refuses."""
    try:
        body = parse(raw)
        if not isinstance(body, dict):
            return body
        loaded = PrefetchBody(partial=True).load(body)
    except ValidationError as error:
        return str(error.messages)
    except ValueError as error:
        return str(error)
    if "token_ids" in loaded:
        loaded["token_ids"] = list(read_token_ids(loaded["token_ids"].text))
    return loaded
