"""POST /run_script: the switch, the form, and the texts of what went wrong."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from contract.commands import MAX_SCRIPT_BYTES, RunScript
from contract.errors import OutcomeUnknown, QueueFull, RedisAway
from tests.unit.app.memory_backend import MemoryBackend

NO_FILE = (400, "No script file provided")


@pytest.fixture
def on(make_app: Callable[..., Flask]) -> FlaskClient:
    """A caller on the same machine; scripts are switched on."""
    flask_client = make_app(run_script_enabled=True).test_client()
    flask_client.environ_base["HTTP_HOST"] = "127.0.0.1:8080"
    return flask_client


def send(client: FlaskClient, source: bytes, **options: Any) -> tuple[int, str]:
    answer = client.post("/run_script", data={"script": (io.BytesIO(source), "s.py")}, **options)
    return told(answer)


def told(answer: TestResponse) -> tuple[int, str]:
    assert answer.content_type == "text/plain; charset=utf-8", answer.text
    return answer.status_code, answer.text


def test_it_is_off_and_says_how_to_switch_it_on(client: FlaskClient, backend: MemoryBackend) -> None:
    status, text = send(client, b"result = 1")

    assert status == 404
    assert "--run-script-enabled" in text
    assert "--run-script-api-enabled" in text
    assert backend.commands == []


def test_a_result_and_an_error(on: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["script.run"] = {"text": "7"}
    assert send(on, "# é\nresult = 7".encode()) == (200, "7")
    assert send(on, b"\xef\xbb\xbfx = 1\r\ny = 2") == (200, "7")
    assert backend.commands == [RunScript("# é\nresult = 7"), RunScript("x = 1\ny = 2")]

    backend.replies["script.run"] = {"error": "name 'len' is not defined"}
    assert send(on, b"len") == (500, "Error executing script: name 'len' is not defined")
    status, text = send(on, b"\xff\xfe\x00")
    assert (status, text.startswith("Error executing script: ")) == (500, True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data": {"script": "result = 1"}},
        {"data": {"other": (io.BytesIO(b"x"), "s.py")}},
        {"json": {"script": "x"}},
        {"data": b"--b\r\nnonsense", "content_type": "multipart/form-data; boundary=b"},
        {"data": b"x", "content_type": "multipart/form-data"},
    ],
    ids=["nothing", "a plain field", "another field", "json", "broken", "no boundary"],
)
def test_forms_without_a_script(on: FlaskClient, backend: MemoryBackend, options: dict[str, Any]) -> None:
    assert told(on.post("/run_script", **options)) == NO_FILE
    assert backend.commands == []


def test_an_empty_file_is_a_script(on: FlaskClient, backend: MemoryBackend) -> None:
    backend.replies["script.run"] = {"text": "Script executed successfully"}

    assert send(on, b"") == (200, "Script executed successfully")
    assert send(on, b"x" * MAX_SCRIPT_BYTES)[0] == 200


@pytest.mark.parametrize("size", [MAX_SCRIPT_BYTES + 1, 10 * MAX_SCRIPT_BYTES])
def test_a_script_may_have_64_kib(on: FlaskClient, backend: MemoryBackend, size: int) -> None:
    assert send(on, b"#" * size)[0] == 413
    assert backend.commands == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RedisAway("timed out"), "Redis does not answer: timed out"),
        (OutcomeUnknown("had begun"), "nobody knows whether the command took effect"),
        (QueueFull("2 scripts are running already", 1.0), "2 scripts"),
    ],
)
def test_what_the_queue_says_comes_as_text(
    on: FlaskClient, backend: MemoryBackend, error: Exception, words: str
) -> None:
    backend.replies["script.run"] = error

    status, text = send(on, b"")

    assert (status, text.startswith(words)) == (503, True)


def test_without_the_engine_and_without_leave(on: FlaskClient, backend: MemoryBackend) -> None:
    backend.engine = None

    assert send(on, b"") == (503, "engine not initialized")
    assert send(on, b"", environ_base={"REMOTE_ADDR": "192.0.2.7"})[0] == 403
