"""/freeze/* and /hot_cache/*: whether anything is stored, and whether what is in L2 stays in L1 too."""

from typing import Literal

from flask import Blueprint, Response

from app.backend import current_backend
from app.declarations import answers, refuses
from app.inspection import asks_the_engine, fact, shape_of, shown
from app.policy import Level, policy
from contract.commands import SetSwitch
from contract.process_facts import STEERING

router = Blueprint("vllm_switches", __name__)

FREEZE = shape_of("freeze")
HOT_CACHE = shape_of("hot_cache")
_WORDS = {
    ("freeze", True): "Frozen: nothing is stored, and only L1 answers",
    ("freeze", False): "Not frozen",
    ("hot_cache", True): "Objects stay in L1 once they are stored in L2",
    ("hot_cache", False): "Objects leave L1 once they are stored in L2",
}

answers_freeze = answers(
    200,
    {"status": Literal["success"], "freeze": bool, "message": str},
    example={"status": "success", "freeze": True, "message": _WORDS["freeze", True]},
)
answers_hot_cache = answers(
    200,
    {"status": Literal["success"], "hot_cache": bool, "message": str},
    example={"status": "success", "hot_cache": True, "message": _WORDS["hot_cache", True]},
)


@router.put("/freeze/enable")
@policy(Level.ADMIN, FREEZE)
@answers_freeze
@asks_the_engine
def freeze() -> Response:
    """Nothing is stored from now on. What a client has prepared already is."""
    return _set("freeze", on=True)


@router.put("/freeze/disable")
@policy(Level.ADMIN, FREEZE)
@answers_freeze
@asks_the_engine
def thaw() -> Response:
    """Objects are stored again, and all tiers answer."""
    return _set("freeze", on=False)


@router.get("/freeze/status")
@policy(Level.READ, FREEZE)
@answers_freeze
@asks_the_engine
def is_frozen() -> Response:
    """Whether nothing is stored."""
    return _show("freeze")


@router.put("/hot_cache/enable")
@policy(Level.ADMIN, HOT_CACHE)
@answers_hot_cache
@asks_the_engine
def heat() -> Response:
    """L1 keeps what is in L2 too."""
    return _set("hot_cache", on=True)


@router.put("/hot_cache/disable")
@policy(Level.ADMIN, HOT_CACHE)
@answers_hot_cache
@refuses(400, "there is no L2 adapter that could keep what leaves L1")
@asks_the_engine
def cool() -> Response:
    """L1 lets go of what is stored in L2. 400 without L2."""
    return _set("hot_cache", on=False)


@router.get("/hot_cache/status")
@policy(Level.READ, HOT_CACHE)
@answers_hot_cache
@asks_the_engine
def is_hot() -> Response:
    """Whether L1 keeps what is in L2 too."""
    return _show("hot_cache")


def _set(switch: str, *, on: bool) -> Response:
    current_backend().call(SetSwitch(switch, "", on))
    return _show(switch)


def _show(switch: str) -> Response:
    on = bool(fact(STEERING)[switch])
    return shown({"status": "success", switch: on, "message": _WORDS[switch, on]})
