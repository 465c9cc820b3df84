"""GET /metrics: Prometheus text of the web tier and the engine in one."""

from flask import Blueprint, Response, current_app
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

import app
from app import metrics
from app.backend import current_backend
from app.policy import DETAIL, Level, policy

router = Blueprint("metrics", __name__)


@router.get("/metrics")
@policy(Level.OPEN, DETAIL)
def show_metrics() -> Response:
    """Always 200: what is away is a gauge at 0."""
    text = metrics.render(current_backend(), current_app.extensions[app.REGISTRY])
    return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)
