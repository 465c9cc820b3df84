"""POST /clear-cache: empties L1."""

from typing import Literal

from flask import Blueprint

from app.backend import current_backend
from app.declarations import answers, refuses
from app.policy import ErrorShape, Level, policy
from contract.commands import ClearCache

router = Blueprint("cache", __name__)

ACTION = ErrorShape("reason", status="error")


@router.post("/clear-cache")
@policy(Level.ADMIN, ACTION)
@answers(200, {"status": Literal["ok"]}, example={"status": "ok"})
@refuses(503)
def clear_cache() -> dict[str, str]:
    """Drops every object of L1, also those in use. The body is not read."""
    current_backend().call(ClearCache(force=True))
    return {"status": "ok"}
