"""Bodies that many routes have in common."""

import re
from typing import Any

from tests.http_page.exchange import OneOf

#: A reason in free words.
WORDS = re.compile(r"\S.*", re.DOTALL)
MD5 = re.compile(r"[0-9a-f]{32}")
NUMBER = OneOf(int, float)
NOT_FOUND = {"detail": "Not Found"}
NOT_ALLOWED = {"detail": "Method Not Allowed"}
SUCCESS = {"status": "success"}

STATES = OneOf("active", "draining", "removing", "removed", "closed", "failed")
DAX_DEVICE = {
    "is_healthy": bool, "device_path": str, "max_dax_size_bytes": int, "slot_bytes": int, "max_slots": int,
    "live_slot_count": int, "locked_key_count": int, "borrowed_slot_count": int, "active_read_count": int,
    "active_write_count": int, "closing": bool, "supports_restart_recovery": bool, "index": int, "device_id": int,
    "state": STATES, "inflight_store_tasks": int, "inflight_lookup_tasks": int, "inflight_load_tasks": int,
}  # fmt: skip
LOOP = {
    "name": str, "level": OneOf("critical", "high", "medium", "low"), "interval": float, "is_running": bool,
    "is_active": bool, "last_run_ago": OneOf(float, None), "total_runs": int, "failed_runs": int,
    "success_rate": OneOf(float, None),
    "last_summary": OneOf(
        {"timestamp": float, "duration_ms": float, "success": bool, "message": str, "extra_info": {...: ...}}, None
    ),
    "init_wait": float, "last_run_time": NUMBER, "stopped_on_purpose": bool,
}  # fmt: skip
COUNTS = {"total": int, "running": int, "active": int}
LOOPS = {
    "summary": {
        "total_count": int, "running_count": int, "active_count": int,
        "by_level": {"critical": COUNTS, "high": COUNTS, "medium": COUNTS, "low": COUNTS},
    },
    "threads": [LOOP, ...],
}  # fmt: skip
THREADS = re.compile(r"=== Process: \S+ \(pid \d+\) ===\n.*\n=== Thread Summary ===\nTotal threads: \d+\n", re.DOTALL)
NO_THREADS = re.compile(r"=== Process: .*\n=== Thread Summary ===\nTotal threads: 0\n", re.DOTALL)


def problem(*loc: str | int) -> dict[str, Any]:
    """The body of a 422 with one problem, at this place."""
    return {"detail": [{"type": WORDS, "loc": list(loc), "msg": WORDS}]}


def fault(reason: Any) -> dict[str, Any]:
    """A refusal of an inspecting route of an internal API server; `reason` is the whole `error`."""
    return {"error": reason, "message": WORDS}


def unavailable(route: str) -> dict[str, Any]:
    return {"error": f"{route} API is unavailable", "message": "LMCache engine not configured."}
