"""GET /metrics: Prometheus text of the web tier and the engine in one. POST /metrics/reset: from zero again."""

from flask import Blueprint, Response, current_app
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

import app
from app import metrics
from app.backend import current_backend
from app.baseline import EXTENSION as BASELINES
from app.errors import plain_text
from app.policy import DETAIL, TEXT, Level, policy

router = Blueprint("metrics", __name__)


@router.get("/metrics")
@policy(Level.OPEN, DETAIL)
def show_metrics() -> Response:
    """Always 200: what is away is a gauge at 0."""
    parts = current_app.extensions
    text = metrics.render(current_backend(), parts[app.REGISTRY], parts[BASELINES])
    return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.post("/metrics/reset")
@policy(Level.ADMIN, TEXT)
def reset_metrics() -> Response:
    """Counters and histograms of all processes go back to zero. The body is not read."""
    parts = current_app.extensions
    metrics.reset(current_backend(), parts[app.REGISTRY], parts[BASELINES])
    return plain_text("ok")
