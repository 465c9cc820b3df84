"""Quotas over HTTP: what is taken, stored, echoed and refused."""

import pytest
from flask.testing import FlaskClient

from contract.commands import SetQuota
from tests.unit.app.memory_backend import MemoryBackend

GIB = 2**30


def test_put_then_get_a_quota(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.usages["alice"] = (GIB // 2, GIB // 4)

    put = client.put("/quota/alice", data=b'{"limit_gb": 0.001, "other": 1}', content_type="text/plain")

    assert put.get_json() == {"cache_salt": "alice", "limit_gb": 0.001, "status": "ok"}
    assert backend.commands == [SetQuota("alice", int(0.001 * GIB))]
    assert client.get("/quota/alice").get_json() == {
        "cache_salt": "alice",
        "limit_gb": 0.0009999992325901985,
        "current_usage_gb": 0.5,
        "l1_usage_gb": 0.5,
        "l2_usage_gb": 0.25,
        "exists": True,
    }
    assert client.get("/quota").get_json()["users"].keys() == {"alice"}


def test_current_usage_is_that_of_the_larger_tier(client: FlaskClient, backend: MemoryBackend) -> None:
    backend.usages["alice"] = (GIB, 3 * GIB)
    backend.limits["alice"] = 2 * GIB

    users = client.get("/quota").get_json()["users"]

    assert users == {"alice": {"limit_gb": 2.0, "current_usage_gb": 3.0, "l1_usage_gb": 1.0, "l2_usage_gb": 3.0}}


@pytest.mark.parametrize(
    ("sent", "echoed"), [("10", 10.0), ("0", 0.0), ('"3.5"', 3.5), ("true", 1.0), ("-0.0", 0.0), ("-0", 0.0)]
)
def test_limits_that_are_taken(client: FlaskClient, sent: str, echoed: float) -> None:
    answer = client.put("/quota/alice", data=f'{{"limit_gb": {sent}}}')

    assert answer.status_code == 200
    assert answer.get_json()["limit_gb"] == echoed
    assert isinstance(answer.get_json()["limit_gb"], float)
    assert b"-0" not in answer.data


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "invalid JSON body"),
        ("{", "invalid JSON body"),
        ("[" * 100_000, "invalid JSON body"),
        ("[1]", "body must be {'limit_gb': <float>}"),
        ("{}", "body must be {'limit_gb': <float>}"),
        ("null", "body must be {'limit_gb': <float>}"),
        ('{"limit_gb": "x"}', "limit_gb must be numeric"),
        ('{"limit_gb": null}', "limit_gb must be numeric"),
        ('{"limit_gb": []}', "limit_gb must be numeric"),
        ('{"limit_gb": NaN}', "limit_gb must be finite"),
        ('{"limit_gb": Infinity}', "limit_gb must be finite"),
        ('{"limit_gb": -Infinity}', "limit_gb must be finite"),
        ('{"limit_gb": 1e400}', "limit_gb must be finite"),
        ('{"limit_gb": "inf"}', "limit_gb must be finite"),
        ('{"limit_gb": ' + "9" * 400 + "}", "limit_gb must be finite"),
        ('{"limit_gb": ' + "9" * 5001 + "}", "limit_gb must be finite"),
        ('{"limit_gb": -1}', "limit_gb must be non-negative"),
        ('{"limit_gb": 1e308}', "limit_gb must be at most 8589934591"),
        ('{"limit_gb": 8589934592}', "limit_gb must be at most 8589934591"),
    ],
)
def test_limits_that_are_refused_change_nothing(
    client: FlaskClient, backend: MemoryBackend, body: str, error: str
) -> None:
    answer = client.put("/quota/alice", data=body)

    assert (answer.status_code, answer.get_json()) == (400, {"error": error})
    assert backend.limits == {}


def test_the_empty_salt_is_called_default(client: FlaskClient, backend: MemoryBackend) -> None:
    assert client.put("/quota/_default", json={"limit_gb": 1}).get_json()["cache_salt"] == "_default"

    assert backend.limits == {"": GIB}
    assert client.get("/quota/_default").get_json()["exists"] is True
    assert client.get("/quota").get_json()["users"].keys() == {"_default"}
    assert client.delete("/quota/_default").get_json() == {"cache_salt": "_default", "status": "removed"}
    assert client.delete("/quota/_default").get_json() == {"cache_salt": "_default", "status": "not_found"}


@pytest.mark.parametrize(
    ("segment", "salt"),
    [
        ("a%20b", "a b"),
        ("k%C3%BChl", "kühl"),
        ("a@b", "a@b"),
        ("a%40b", "a@b"),
        ("%EF%BF%BD", "\ufffd"),
        ("x" * 200, "x" * 200),
    ],
)
def test_salts_are_percent_decoded(client: FlaskClient, backend: MemoryBackend, segment: str, salt: str) -> None:
    answer = client.put(f"/quota/{segment}", json={"limit_gb": 1})

    assert answer.get_json()["cache_salt"] == salt
    assert list(backend.limits) == [salt]


@pytest.mark.parametrize("segment", ["\xff", "a\xfeb", "x" * 1025])
def test_salts_that_cannot_be(client: FlaskClient, backend: MemoryBackend, segment: str) -> None:
    path = {"PATH_INFO": f"/quota/{segment}"}

    put = client.put("/quota/x", json={"limit_gb": 1}, environ_overrides=path)
    get = client.get("/quota/x", environ_overrides=path)

    assert (put.status_code, get.status_code) == (400, 400)
    assert backend.limits == {}


def test_a_slash_is_no_part_of_a_salt(client: FlaskClient) -> None:
    for path in ("/quota/a/b", "/quota/a%2Fb", "/quota/"):
        assert client.get(path).get_json() == {"detail": "Not Found"}


def test_an_unknown_quota_is_no_error(client: FlaskClient) -> None:
    assert client.get("/quota/nobody").get_json()["exists"] is False
    assert client.get("/quota").get_json() == {"users": {}}
