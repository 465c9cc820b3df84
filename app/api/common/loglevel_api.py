"""GET /loglevel: the levels of the loggers, one or all, and changing one in every process of the server."""

from typing import Literal

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import Backend, current_backend
from app.declarations import PLAIN, answers, refuses
from app.errors import RouteError, in_this_process_alone, plain_text
from app.policy import TEXT, Level, policy
from app.request_schema import LarderSchema, Text, takes_query
from contract.commands import ShowLoggers
from contract.errors import ContractError, OthersAway, RedisAway
from contract.log_levels import (
    APPLIED,
    LEVELS,
    MAX_LOGGERS,
    MAX_NAME_CHARACTERS,
    all_levels,
    effective_level,
    has_logger,
)
from contract.log_levels import is_logger_name as is_name

router = Blueprint("loglevel", __name__)


class LogLevelQuery(LarderSchema):
    logger_name: fields.Field = Text(load_default="", metadata={"description": "A logger; none: all of them."})
    level: fields.Field = Text(
        load_default="", metadata={"description": f"Sets the logger's level: {' '.join(LEVELS)}, in any case."}
    )


@router.get("/loglevel")
@policy(Level.READ, TEXT, admin_with="level")
@takes_query(LogLevelQuery)
@answers(200, str, example="app: INFO\napp.api: INFO\n", content=PLAIN)
@answers(200, str, example="Set app level to DEBUG (including all handlers)", content=PLAIN)
@answers(
    200,
    str,
    example="Set app level to DEBUG (including all handlers) in this process alone; the others follow when Redis "
    "answers again (timed out)",
    content=PLAIN,
    says="From an internal API server while Redis is away.",
)
@answers(200, Literal[None], example=None, says="JSON null: a `level` without a `logger_name` does nothing.")
@refuses(400, "Invalid log level: LOUD", "200 loggers have a level of their own already")
@refuses(503, "Redis does not answer: timed out")
def loglevel(logger_name: str, level: str) -> Response:
    """The levels of loggers, and setting one in every process. Without parameters all loggers; with a name its level;
    with a level too, sets it. A level alone does nothing."""
    backend = current_backend()
    if not logger_name:
        return Response("null", mimetype="application/json") if level else plain_text(_list(backend))
    if not is_name(logger_name):
        raise RouteError(400, f"Invalid logger name: at most {MAX_NAME_CHARACTERS} printable characters")
    if level:
        return plain_text(_set(backend, logger_name, level))
    _follow(backend)
    return plain_text(f"{logger_name}: {_level(backend, logger_name)}")


def _set(backend: Backend, name: str, level: str) -> str:
    """In Redis first, from where the other processes take it; this one does before it answers."""
    word = level.upper()
    if word not in LEVELS:
        raise RouteError(400, f"Invalid log level: {level}")
    done = f"Set {name} level to {word} (including all handlers)"
    try:
        if not backend.set_log_level(name, word):
            raise RouteError(400, f"{MAX_LOGGERS} loggers have a level of their own already")
    except OthersAway as error:
        return f"{done}{in_this_process_alone(error)}"
    _follow(backend)
    return done


def _level(backend: Backend, name: str) -> str:
    """Of a logger, or of its nearest parent, that only the engine has, it is the engine's word."""
    if has_logger(name):
        return effective_level(name)
    theirs, place = _of_the_engine(backend), name
    while place and not has_logger(place):
        if place in theirs:
            return theirs[place]
        place = place.rpartition(".")[0]
    return effective_level(name)


def _list(backend: Backend) -> str:
    """This process's loggers and those that only the engine has, while it answers."""
    _follow(backend)
    levels = {**_of_the_engine(backend), **all_levels()}
    return "".join(f"{name}: {levels[name]}\n" for name in sorted(levels))


def _of_the_engine(backend: Backend) -> dict[str, str]:
    """Nothing while it does not answer."""
    try:
        return dict(backend.call(ShowLoggers()).get("levels", {}))
    except ContractError:
        return {}


def _follow(backend: Backend) -> None:
    """What was set through another worker counts here too; without Redis it is this process's own word."""
    try:
        APPLIED.sync(backend.log_levels)
    except RedisAway:
        pass
