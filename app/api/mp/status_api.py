"""GET /status: the engine's own report, as it last published it."""

from typing import Any, Literal

from flask import Blueprint, Response

from app.backend import current_backend
from app.declarations import answers, refuses
from app.policy import ERROR, Level, policy
from contract.snapshots import STATUS

router = Blueprint("status", __name__)

STATUS_BODY = {
    "is_healthy": bool,
    "engine_type": Literal["MPCacheServer"],
    "chunk_size": int,
    "hash_algorithm": str,
    "active_sessions": int,
    "frozen": bool,
    "hot_cache": bool,
    "registered_gpu_ids": list[int],
    "cache_context_meta": dict[str, dict[str, Any]],
    "active_prefetch_jobs": int,
    "storage_manager": {"is_healthy": bool, ...: Any},
    ...: Any,
}
EXAMPLE = {
    "is_healthy": True,
    "engine_type": "MPCacheServer",
    "chunk_size": 256,
    "hash_algorithm": "blake3",
    "active_sessions": 0,
    "frozen": False,
    "hot_cache": True,
    "registered_gpu_ids": [],
    "cache_context_meta": {},
    "active_prefetch_jobs": 0,
    "storage_manager": {
        "is_healthy": True,
        "l1_manager": {"is_healthy": True, "total_object_count": 0, "memory_used_bytes": 0},
        "l2_adapters": [],
    },
}


@router.get("/status")
@policy(Level.READ, ERROR)
@answers(200, STATUS_BODY, example=EXAMPLE)
@refuses(503)
def status() -> Response:
    """The engine's report on itself. At most half a second old, and newer than any change that was answered before.

    For people: its keys may grow.
    """
    return Response(current_backend().read_text(STATUS), mimetype="application/json")
