"""GET / and GET /healthcheck: what load balancers and Kubernetes ask."""

import time
from typing import Any, Literal

from flask import Blueprint

from app.backend import current_backend
from app.declarations import answers, refuses
from app.policy import DETAIL, ErrorShape, Level, policy
from contract.errors import EngineAway, RedisAway

router = Blueprint("root", __name__)

HEALTH = ErrorShape("reason", status="unhealthy")


@router.get("/")
@policy(Level.OPEN, DETAIL)
@answers(200, {"status": Literal["ok"], "service": str}, example={"status": "ok", "service": "LMCache HTTP API"})
def root() -> dict[str, Any]:
    """The web tier answers. Static, asks nobody."""
    return {"status": "ok", "service": "LMCache HTTP API"}


@router.get("/healthcheck")
@policy(Level.OPEN, HEALTH)
@answers(200, {"status": Literal["healthy"]}, example={"status": "healthy"})
@refuses(503, "engine not initialized")
def healthcheck() -> dict[str, Any]:
    """The engine is alive and ready. 200 while its heartbeat is fresh, whether Redis is there or not."""
    try:
        record = current_backend().engine_record(reuse=False)
    except RedisAway as error:
        raise EngineAway("missing") from error
    if record is None or not record.is_alive(time.time()) or record.state != "ready":
        raise EngineAway("missing" if record is None else record.state)
    return {"status": "healthy"}
