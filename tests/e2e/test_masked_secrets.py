"""No secret that the web tier was started with, or that a client sends it, is shown: neither by /env nor in its log."""

import json
from pathlib import Path

import pytest

from tests.e2e.raw_http import exchange
from tests.stack import WebProcess, free_port
from tests.waiting import wait_for

SECRET = "hush4711"
ADAPTER = {"type": "s3", "bucket": "b", "access_key_id": SECRET, "secret_access_key": SECRET}
ENVIRONMENT = {
    "LARDER_L2_ADAPTER": json.dumps([ADAPTER]),
    "GUNICORN_CMD_ARGS": f"--name web-{SECRET[:4]} --env password={SECRET}",
    "JAVA_OPTS": f"-Dpassword={SECRET} -Xmx4g",
    "DATABASE": f"host=db password={SECRET} user=app",
    "BLOB": f"AccountName=a;AccountKey={SECRET};EndpointSuffix=core.net",
    "HEADER": f"Authorization: Bearer {SECRET}",
    "PEM": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
}


def test_neither_the_environment_nor_the_log_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    adapter = ENVIRONMENT["LARDER_L2_ADAPTER"]
    with WebProcess(tmp_path, f"redis://me:{SECRET}@127.0.0.1:{free_port()}/0", l2_adapter=adapter) as web:
        shown = web.http("GET", "/env").body.decode()
        exchange(int(str(web.settings["http_port"])), f"GET /x?password={SECRET}\r\n\r\n".encode())
        wait_for(lambda: "Invalid HTTP request line" in web.log_path.read_text(), 10, "gunicorn complains of it")
        log = web.log_path.read_text()

    variables = json.loads(shown)
    assert SECRET not in shown + log
    assert json.loads(variables["LARDER_L2_ADAPTER"])[0] == {
        **ADAPTER,
        "access_key_id": "***",
        "secret_access_key": "***",
    }
    assert variables["GUNICORN_CMD_ARGS"] == "--name web-hush --env password=***"
    assert variables["JAVA_OPTS"] == "-Dpassword=*** -Xmx4g"
    assert variables["DATABASE"] == "host=db password=*** user=app"
    assert variables["BLOB"] == "AccountName=a;AccountKey=***;EndpointSuffix=core.net"
    assert variables["HEADER"] == "Authorization: Bearer ***"
    assert "'GET /x?password=***'" in log
