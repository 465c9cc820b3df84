"""GET /conf: the configuration of engine and web tier, readable also while the engine is away."""

import json
from functools import lru_cache
from typing import Any

from flask import Blueprint, Response, current_app

import app
from app.backend import current_backend
from app.config import AppConfig
from app.declarations import answers, refuses
from app.errors import RouteError
from app.policy import ERROR, Level, policy
from contract.masking import mask_secrets
from contract.snapshots import CONF

router = Blueprint("conf", __name__)

Group = dict[str, Any]
EXAMPLE = {
    "mp": {"chunk_size": 256, "hash_algorithm": "blake3", "http_host": "0.0.0.0", "http_port": 8080},
    "storage_manager": {"eviction_config": {"eviction_policy": "LRU", "trigger_watermark": 0.8}},
    "observability": {"metrics_enabled": True},
}


@router.get("/conf")
@policy(Level.READ, ERROR)
@answers(200, {"mp": Group, "storage_manager": Group, "observability": Group, ...: Group}, example=EXAMPLE)
@refuses(503, "configs not initialized", "Redis does not answer: timed out")
def conf() -> Response:
    """The configuration in force, as last published. 503 only if no engine ever published one (or Redis is away)."""
    published = current_backend().last_text(CONF)
    if published is None:
        raise RouteError(503, "configs not initialized")
    config: AppConfig = current_app.extensions[app.CONFIG]
    return Response(_render(published, config.http_host, config.http_port), mimetype="application/json")


@lru_cache(maxsize=4)
def _render(published: str, http_host: str, http_port: int) -> str:
    """Indented by two, secrets masked, with this web tier's own address among the fields of `mp`."""
    groups = json.loads(published)
    groups.setdefault("mp", {}).update(http_host=http_host, http_port=http_port)
    return json.dumps(mask_secrets(groups), indent=2, ensure_ascii=False)
