"""POST /run_script: runs Python in the engine's process. Off unless the settings switch it on."""

import importlib.util
from typing import Annotated

from flask import Blueprint, Response, current_app, request

import app
from app.backend import current_backend
from app.config import AppConfig
from app.declarations import MULTIPART, PLAIN, answers, reads, refuses
from app.errors import RouteError, plain_text
from app.policy import TEXT, Level, policy
from contract.commands import MAX_SCRIPT_BYTES, RunScript

router = Blueprint("run_script", __name__)

#: What a multipart form adds to its file.
FORM_BYTES = 16 * 1024
SWITCHED_OFF = (
    "run_script is switched off; start the server with --run-script-enabled (also --run-script-api-enabled, "
    "LARDER_RUN_SCRIPT_ENABLED=true, or run_script_enabled in the configuration file)"
)


@router.post("/run_script")
@policy(Level.ADMIN, TEXT)
@reads(
    {"script": Annotated[bytes, "Python source, at most 64 KiB, as a file."]},
    example={"script": "result = 6 * 7"},
    content=MULTIPART,
)
@answers(200, str, example="42", content=PLAIN, says="What the script set as `result`.")
@refuses(400, "No script file provided")
@refuses(404, SWITCHED_OFF)
@refuses(500, "Error executing script: name 'len' is not defined")
@refuses(501, "this process has a cache client; ask the internal API server of the engine, index 0")
@refuses(503)
def run_script() -> Response:
    """Runs Python in the engine's process. Off unless the settings switch it on; answers the text of what the script
    set as `result`."""
    config: AppConfig = current_app.extensions[app.CONFIG]
    if not config.run_script_enabled:
        raise RouteError(404, SWITCHED_OFF)
    request.max_content_length = MAX_SCRIPT_BYTES + FORM_BYTES
    file = request.files.get("script")
    if file is None:
        raise RouteError(400, "No script file provided")
    raw = file.read()
    if len(raw) > MAX_SCRIPT_BYTES:
        raise RouteError(413, f"the script is larger than {MAX_SCRIPT_BYTES} bytes")
    try:
        source = importlib.util.decode_source(raw)
    except (SyntaxError, UnicodeError) as error:
        raise _failed(str(error)) from error
    outcome = current_backend().call(RunScript(source))
    if "error" in outcome:
        raise _failed(outcome["error"])
    return plain_text(outcome["text"])


def _failed(reason: str) -> RouteError:
    return RouteError(500, f"Error executing script: {reason}")
