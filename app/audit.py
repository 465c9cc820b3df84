"""Notes in the audit stream who asked for which admin action, and how it ended.

Best effort: an action is not refused or delayed by more than one short Redis call because it cannot be noted; what
was lost is counted. Only admitted callers are noted, so that refused ones cannot push the history out of the stream.
"""

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter

from app.backend import current_backend
from app.errors import current_policy
from app.policy import Level

MAX_TEXT = 200


def install(app: Flask, registry: CollectorRegistry) -> None:
    lost = Counter("larder_audit_lost", "Admin actions that could not be noted in the audit stream", registry=registry)

    @app.after_request
    def note_admin_action(response: Response) -> Response:
        route_policy = current_policy()
        caller = g.get("larder_caller")
        if route_policy is None or route_policy.level is not Level.ADMIN or caller is None:
            return response
        entry = {
            "action": f"{request.method} {request.path}"[:MAX_TEXT],
            "query": request.query_string.decode("latin-1")[:MAX_TEXT],
            "caller": caller,
            "address": request.remote_addr or "",
            "status": str(response.status_code),
        }
        if not current_backend().record_audit(entry):
            lost.inc()
        return response
