"""The reconfiguration routes without an engine behind them."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from contract.commands import Reconfigure
from tests.unit.app.memory_backend import MemoryBackend

DAX = {"backend": "dax", "supported_operations": ["status"], "adapter_index": 0, "l2_adapter_index": 1, "status": {}}
ADD = {"device_path": "/dev/dax1.0", "size": "100GiB"}


@pytest.fixture(autouse=True)
def published(backend: MemoryBackend) -> None:
    second = {**DAX, "adapter_index": 1}
    backend.bodies["adapters"] = {"adapters": [], "reconfigurable": [DAX, second, {**DAX, "backend": "alpha"}]}


def post(client: FlaskClient, path: str, body: Any) -> Any:
    return client.post(f"/reconfigure/{path}", json=body)


def test_backends_are_sorted_and_named_once(client: FlaskClient, backend: MemoryBackend) -> None:
    answer = client.get("/reconfigure/backends")
    assert answer.json == {"enabled": True, "num_backends": 2, "backends": ["alpha", "dax"]}

    backend.bodies["adapters"] = {"adapters": [], "reconfigurable": []}
    assert client.get("/reconfigure/backends").json == {"enabled": False, "num_backends": 0, "backends": []}


@pytest.mark.parametrize("segment", ["dax", "DAX", "%20Dax%20"])
def test_a_status_names_the_adapters_of_its_backend(client: FlaskClient, segment: str) -> None:
    answer = client.get(f"/reconfigure/{segment}/status")

    expected = {"enabled": True, "backend": "dax", "num_adapters": 2, "adapters": [DAX, {**DAX, "adapter_index": 1}]}
    assert answer.json == expected


def test_an_unknown_backend_has_no_adapters_and_a_blank_one_is_refused(client: FlaskClient) -> None:
    nope = {"enabled": False, "backend": "nope", "num_adapters": 0, "adapters": []}
    assert client.get("/reconfigure/nope/status").json == nope
    blank = client.get("/reconfigure/%20/status")
    assert (blank.status_code, blank.json) == (400, {"error": "backend must be non-empty"})


def test_without_engine_reads_are_503(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None
    for path in ("backends", "dax/status"):
        answer = client.get(f"/reconfigure/{path}")
        assert (answer.status_code, answer.json) == (503, {"error": "engine not initialized"})


def test_checks_come_in_their_order(client: FlaskClient, backend: MemoryBackend) -> None:
    ready, backend.engine = backend.engine, None
    assert client.post("/reconfigure/%20/add", data=b"{", content_type="application/json").status_code == 422
    assert client.post("/reconfigure/%20/add").status_code == 422
    assert post(client, "%20/add", [1]).status_code == 422
    assert post(client, "%20/add", {}).status_code == 503
    backend.engine = ready
    assert post(client, "%20/%20", {}).json == {"error": "backend must be non-empty"}
    assert post(client, "dax/%20", {}).json == {"error": "operation must be non-empty"}
    assert post(client, "dax/add", {}).status_code == 422
    assert backend.commands == []


@pytest.mark.parametrize(
    ("operation", "body", "loc"),
    [
        ("add", {"size": 1}, ["device_path"]),
        ("add", {"device_path": "/x"}, ["size"]),
        ("add", {**ADD, "size": True}, ["size"]),
        ("add", {**ADD, "size": 1.5}, ["size"]),
        ("add", {**ADD, "size": None}, ["size"]),
        ("add", {**ADD, "device_path": 1}, ["device_path"]),
        ("add", {**ADD, "mode": "migrate"}, ["mode"]),
        ("add", {**ADD, "adapter_index": "x"}, ["adapter_index"]),
        ("remove", {"device_path": "/x", "mode": "burn"}, ["mode"]),
        ("remove", {"device_path": "/x", "mode": None}, ["mode"]),
        ("remove", {"device_path": "/x", "mode": ["migrate"]}, ["mode"]),
        ("remove", {"device_path": "/x", "force": "maybe"}, ["force"]),
        ("remove", {"device_path": "/x", "size": 1}, ["size"]),
        ("resize", {**ADD, "mode": "drain"}, ["mode"]),
        ("resize", {**ADD, "speed": 1}, ["speed"]),
    ],
)
def test_dax_fields_are_strict(client: FlaskClient, operation: str, body: dict[str, Any], loc: list[str]) -> None:
    answer = post(client, f"dax/{operation}", body)

    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.json["detail"]] == [loc]
    assert all({"type", "loc", "msg"} == set(problem) for problem in answer.json["detail"])


def test_dax_operations_are_handed_on_with_their_defaults(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.reconfigure"] = {"body": {"status": "ok"}}

    assert post(client, " DAX / Add ", {**ADD, "adapter_index": "1"}).json == {"status": "ok"}
    post(client, "dax/remove", {"device_path": "/x"})
    post(
        client,
        "dax/resize",
        {"device_path": "/x", "size": 5, "mode": "evict", "force": "yes", "adapter_index": -(10**18)},
    )
    post(client, "dax/status", {"whatever": 1})

    assert backend.commands == [
        Reconfigure("dax", "add", 1, ADD),
        Reconfigure("dax", "remove", 0, {"device_path": "/x", "mode": "migrate", "force": False}),
        Reconfigure("dax", "resize", -1, {"device_path": "/x", "size": 5, "mode": "evict", "force": True}),
        Reconfigure("dax", "status", 0, {}),
    ]


def test_a_generic_backend_gets_the_fields_as_they_came(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["l2.reconfigure"] = {"body": {"anything": [1]}}
    fields = {"a": None, "b": {"c": 1.5}, "size": True}

    answer = post(client, "Nope/Turn", {**fields, "adapter_index": 10**18})

    assert answer.json == {"anything": [1]}
    assert backend.commands == [Reconfigure("nope", "turn", 1_000_000, fields)]
    bad = post(client, "nope/turn", {"adapter_index": "x"})
    assert bad.status_code == 422
    assert bad.json["detail"][0]["loc"] == ["body", "adapter_index"]


@pytest.mark.parametrize(
    ("code", "status"),
    [("bad_request", 400), ("forbidden", 403), ("not_found", 404), ("conflict", 409), ("no_room", 507)],
)
def test_refusals_have_their_status_and_fields(
    client: FlaskClient, backend: MemoryBackend, code: str, status: int
) -> None:
    fields = {"status": "blocked", "reason": "in use", "locked_key_count": 1}
    backend.replies["l2.reconfigure"] = {"refused": code, "message": "no", "fields": fields}

    answer = post(client, "dax/add", ADD)

    assert (answer.status_code, answer.json) == (status, {"error": "no", **fields})


def test_a_crowd_of_unknown_members_is_told_in_few_words(client: FlaskClient) -> None:
    crowd = b'{"device_path":"x","' + b"a" * 100_000 + b'":1,' + b",".join(b'"%d":0' % n for n in range(9000)) + b"}"
    half = b'{"device_path":"x","\\ud800":1}'

    many, one = (
        client.post("/reconfigure/dax/remove", data=body, content_type="application/json") for body in (crowd, half)
    )

    assert (many.status_code, one.status_code) == (422, 422)
    assert len(many.get_json()["detail"]) == 100
    assert len(many.data) < 20_000
    assert [problem["loc"] for problem in one.get_json()["detail"]] == [["\ud800"]]
