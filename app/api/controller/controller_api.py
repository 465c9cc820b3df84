"""/controller/*: answered by a process that coordinates several instances, which none of these is."""

from flask import Blueprint, Response

from app.errors import RouteError
from app.policy import DETAIL, Level, policy

router = Blueprint("controller", __name__)


@router.get("/controller/workers")
@router.get("/controller/key-stats", endpoint="key_statistics")
@policy(Level.READ, DETAIL)
def controller() -> Response:
    """Always 503 here."""
    raise RouteError(503, "Controller manager not available")
