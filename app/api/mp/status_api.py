"""GET /status: the engine's own report, as it last published it."""

from flask import Blueprint, Response

from app.backend import current_backend
from app.policy import ERROR, Level, policy
from contract.snapshots import STATUS

router = Blueprint("status", __name__)


@router.get("/status")
@policy(Level.READ, ERROR)
def status() -> Response:
    """The published JSON text, unread: at most half a second old, and newer than any change answered before."""
    return Response(current_backend().read_text(STATUS), mimetype="application/json")
