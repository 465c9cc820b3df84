"""GET /metrics: Prometheus text of the web tier and the engine in one. POST /metrics/reset: from zero again."""

from flask import Blueprint, Response, current_app
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

import app
from app import metrics
from app.backend import current_backend
from app.baseline import EXTENSION as BASELINES
from app.declarations import PLAIN, answers, refuses
from app.errors import in_this_process_alone, plain_text
from app.policy import DETAIL, TEXT, Level, policy
from contract.errors import OthersAway

router = Blueprint("metrics", __name__)


@router.get("/metrics")
@policy(Level.OPEN, DETAIL)
@answers(200, str, example="# TYPE larder_engine_up gauge\nlarder_engine_up 1.0\n", content=PLAIN)
def show_metrics() -> Response:
    """Prometheus text of web tier and engine. Always 200: what is away is a gauge at 0."""
    parts = current_app.extensions
    text = metrics.render(current_backend(), parts[app.REGISTRY], parts[BASELINES])
    return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.post("/metrics/reset")
@policy(Level.ADMIN, TEXT)
@answers(200, str, example="ok", content=PLAIN)
@answers(
    200,
    str,
    example="ok in this process alone; the others follow when Redis answers again (timed out)",
    content=PLAIN,
    says="From an internal API server while Redis is away.",
)
@refuses(503)
def reset_metrics() -> Response:
    """Counters and histograms of all processes go back to zero. The body is not read."""
    parts = current_app.extensions
    try:
        metrics.reset(current_backend(), parts[app.REGISTRY], parts[BASELINES])
    except OthersAway as error:
        return plain_text(f"ok{in_this_process_alone(error)}")
    return plain_text("ok")
