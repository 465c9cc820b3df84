"""GET and POST /conf: the settings of this process, and changing those that can change while it runs."""

import json
from typing import Any

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import current_backend
from app.declarations import PLAIN, answers, reads, refuses
from app.errors import plain_text
from app.inspection import INDENT, fact, shape_of, shown
from app.policy import Level, policy
from app.request_schema import LarderSchema, Text, parse_json, takes_query, whole_body
from contract.commands import ChangeSettings
from contract.process_facts import SETTINGS

router = Blueprint("vllm_settings", __name__)

CONF = shape_of("conf")


class NamesQuery(LarderSchema):
    names: fields.Field = Text(load_default="", metadata={"description": "Names with commas between; none: all."})


@router.get("/conf")
@policy(Level.READ, CONF)
@takes_query(NamesQuery)
@answers(200, str, example='{\n  "chunk_size": 256\n}', content=PLAIN)
def show_settings(names: str) -> Response:
    """The settings of this process, as indented JSON. All of them, or the named ones; unknown names are left out."""
    return plain_text(chosen(fact(SETTINGS), names))


@router.post("/conf")
@policy(Level.ADMIN, CONF)
@reads(dict[str, Any], example={"log_level": "INFO"})
@answers(200, {"updated": dict[str, Any]}, example={"updated": {"log_level": "INFO"}})
@answers(
    200,
    {"updated": dict[str, Any], "errors": dict[str, str]},
    example={"updated": {"log_level": "INFO"}, "errors": {"chunk_size": "Config is not mutable at runtime"}},
    says="`errors` names what was refused.",
)
@answers(400, {"error": str}, example={"error": "Request body must be a JSON object"})
@answers(400, {"error": str, "message": str}, example={"error": "Invalid JSON body", "message": "Expecting value"})
@refuses(400, "100 settings are changed at most at once")
@answers(400, {"updated": dict[str, Any]}, example={"updated": {}}, says="Nothing was asked for.")
@answers(
    400,
    {"updated": dict[str, Any], "errors": dict[str, str]},
    example={"updated": {}, "errors": {"chunk_size": "Config is not mutable at runtime"}},
    says="Nothing was changed.",
)
@refuses(503)
def change_settings() -> Response:
    """Changes settings while the process runs. Each for itself: one that is refused keeps none of the others from being
    set."""
    try:
        values = parse_json(whole_body())
    except ValueError as error:
        return shown({"error": "Invalid JSON body", "message": str(error)}, 400)
    if not isinstance(values, dict):
        return shown({"error": "Request body must be a JSON object"}, 400)
    reply = current_backend().call(ChangeSettings(values))
    body: dict[str, Any] = {"updated": reply["updated"]}
    if reply["errors"]:
        body["errors"] = reply["errors"]
    return shown(body, 200 if reply["updated"] else 400)


def chosen(values: dict[str, Any], names: str) -> str:
    """The values of these names, of all without names, as indented JSON."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    kept = {name: values[name] for name in wanted if name in values} if wanted else values
    return json.dumps(kept, indent=INDENT, ensure_ascii=False)
