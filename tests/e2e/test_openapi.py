"""The API document against the server that serves it: thousands of requests made from it, and no answer that it does
not tell of. Requests that break the rules are among them; whether they are refused is not asked, since the API reads
laxer than JSON Schema can say."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.openapi import BUG
from engine.dataplane.client import LarderClient, SharedKV
from tests.client_process import ClientProcess
from tests.conftest import start_redis
from tests.e2e.l2_stack import L2Stack, start_l2_stack
from tests.stack import Part, WebProcess, free_port, http

CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ALL_KINDS = ("--phases", "examples,coverage,fuzzing")
#: What the examples of the document speak of.
MODEL, INSTANCE = "llama-8b", 7


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[L2Stack]:
    """gunicorn beside Redis and an engine with adapters and a server of its own, scripts switched on, and a client with
    a few objects."""
    settings = {
        "run_script_enabled": "true",
        "internal_api_server_enabled": "true",
        "internal_api_server_host": "127.0.0.1",
        "internal_api_server_port_start": free_port(),
    }
    with ExitStack() as parts:
        stack = parts.enter_context(start_l2_stack(tmp_path_factory.mktemp("openapi"), **settings))
        memory = parts.enter_context(SharedKV([(2, 48, 16, 1, 8)]))
        address = f"tcp://127.0.0.1:{stack.engine.port}"
        client = parts.enter_context(LarderClient(address, MODEL, instance_id=INSTANCE))
        client.register_shared(memory)
        client.store(list(range(512)), [list(range(32))], "request-openapi")
        client.end_session("request-openapi")
        stack.wait_for_objects(2, ["fs", "dax"])
        yield stack


@pytest.fixture(scope="module")
def inference(stack: L2Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientProcess]:
    """A process with a cache client and a server of its own."""
    with ClientProcess(tmp_path_factory.mktemp("inference"), f"tcp://127.0.0.1:{stack.engine.port}") as client:
        yield client


def own_server(stack: L2Stack) -> str:
    """The address of the engine's."""
    return f"http://127.0.0.1:{stack.engine.settings['internal_api_server_port_start']}"


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with objects that have no members but those it names, and without bugs among the answers."""
    closed: dict[str, Any] = _close(copy.deepcopy(document))
    for item in closed["paths"].values():
        for operation in item.values():
            if BUG in json.dumps(operation["responses"].get("500")):
                del operation["responses"]["500"]
    return closed


def _close(node: Any) -> Any:
    if isinstance(node, list):
        return [_close(member) for member in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "object" and "properties" in node:
        node.setdefault("additionalProperties", False)
    return {name: _close(member) for name, member in node.items()}


def assert_documented(url: str, log: Part, directory: Path, *options: str) -> None:
    """Fails with what schemathesis found, and the end of the log of the part that answered."""
    answer = http("GET", f"{url}/openapi.json")
    assert answer.status == 200
    place = directory / "strict.json"
    place.write_text(json.dumps(strict(answer.json())))
    program = [str(Path(sys.executable).parent / "schemathesis"), "run", str(place), "--url", url]
    checks = ["--checks", ",".join(CHECKS), "--continue-on-failure", "--request-timeout", "20"]
    looks = ["--no-color", "--workers", "1", "--warnings", "off"]
    ran = subprocess.run(
        [*program, *checks, *looks, *options], cwd=directory, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        pytest.fail(f"{ran.stdout[-12000:]}\n{ran.stderr[-2000:]}\n{log.log_tail()}", pytrace=False)


def test_no_answer_is_undocumented(stack: L2Stack, tmp_path: Path) -> None:
    assert_documented(stack.web.url, stack.web, tmp_path, *ALL_KINDS, "--max-examples", "12", "--seed", "1")


def test_no_answer_of_the_engines_own_server_is_undocumented(stack: L2Stack, tmp_path: Path) -> None:
    assert_documented(own_server(stack), stack.engine, tmp_path, *ALL_KINDS, "--max-examples", "6", "--seed", "1")


def test_no_answer_of_a_clients_server_is_undocumented(inference: ClientProcess, tmp_path: Path) -> None:
    assert_documented(inference.url, inference, tmp_path, *ALL_KINDS, "--max-examples", "6", "--seed", "1")


def test_no_answer_is_undocumented_while_engine_and_redis_are_away(tmp_path: Path) -> None:
    few = (tmp_path, "--phases", "examples,fuzzing", "--max-examples", "4", "--seed", "1")
    with start_redis("redis", tmp_path / "redis") as redis, WebProcess(tmp_path / "larder", redis.url) as alone:
        assert_documented(alone.url, alone, *few)
        redis.kill()

        assert_documented(alone.url, alone, *few)


@pytest.mark.soak
def test_no_answer_is_undocumented_for_minutes(stack: L2Stack, inference: ClientProcess, tmp_path: Path) -> None:
    assert_documented(stack.web.url, stack.web, tmp_path, "--max-examples", "300", "--max-time", "300")
    assert_documented(own_server(stack), stack.engine, tmp_path, "--max-examples", "300", "--max-time", "200")
    assert_documented(inference.url, inference, tmp_path, "--max-examples", "300", "--max-time", "100")
