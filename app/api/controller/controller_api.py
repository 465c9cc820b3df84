"""/controller/*: answered by a process that coordinates several instances, which none of these is."""

from flask import Blueprint, Response

from app.declarations import refuses
from app.errors import RouteError
from app.policy import DETAIL, Level, policy

router = Blueprint("controller", __name__)

AWAY = "Controller manager not available"


@router.get("/controller/workers")
@router.get("/controller/key-stats", endpoint="key_statistics")
@policy(Level.READ, DETAIL)
@refuses(503, AWAY)
def controller() -> Response:
    """Always 503 here. The process that coordinates several instances answers it."""
    raise RouteError(503, AWAY)
