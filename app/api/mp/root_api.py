"""GET / and GET /healthcheck: what load balancers and Kubernetes ask."""

import time
from typing import Any

from flask import Blueprint

from app.backend import current_backend
from app.policy import DETAIL, ErrorShape, Level, policy
from contract.errors import EngineAway, RedisAway

router = Blueprint("root", __name__)

HEALTH = ErrorShape("reason", status="unhealthy")


@router.get("/")
@policy(Level.OPEN, DETAIL)
def root() -> dict[str, Any]:
    """Static: says that the web tier answers."""
    return {"status": "ok", "service": "LMCache HTTP API"}


@router.get("/healthcheck")
@policy(Level.OPEN, HEALTH)
def healthcheck() -> dict[str, Any]:
    """200 while the engine's heartbeat is fresh and its state is ready, whether Redis is there or not."""
    try:
        record = current_backend().engine_record(reuse=False)
    except RedisAway as error:
        raise EngineAway("missing") from error
    if record is None or not record.is_alive(time.time()) or record.state != "ready":
        raise EngineAway("missing" if record is None else record.state)
    return {"status": "healthy"}
