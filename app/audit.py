"""Notes in the audit stream who asked for which admin action, and how it ended.

Best effort: no action is refused or delayed because it cannot be noted; what was lost is counted. Only admitted
callers are noted, so that refused ones cannot push the history out of the stream.
"""

import threading
from collections import deque
from collections.abc import Callable

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter

from app.own_metrics import OwnCounter, OwnRegistry
from app.policy import Level
from contract.errors import RedisAway
from contract.masking import mask_query

Entry = dict[str, str]

EXTENSION = "larder_audit"
MAX_TEXT = 200
MAX_WAITING = 1000
# Notes of this long go to Redis in one round trip.
GATHER_S = 0.05
CLOSE_TIMEOUT_S = 2.0


class AuditTrail:
    """Writes notes in the background, in the order in which they were taken. The thread starts with the first note.

    `write` sends a batch and raises RedisAway. note() may be called from any thread; close() once, at the end.
    """

    def __init__(self, write: Callable[[list[Entry]], None], count_lost: Callable[[int], None]) -> None:
        self._write = write
        self._count_lost = count_lost
        self._waiting: deque[Entry] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._something_waits = threading.Event()
        self._closing = threading.Event()

    def note(self, entry: Entry) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._count_lost(1)
            return
        self._waiting.append(entry)
        if self._thread is None:
            self._start()
        if not self._something_waits.is_set():
            self._something_waits.set()

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        self._closing.set()
        self._something_waits.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._run, name="larder-audit", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._waiting):
            self._something_waits.wait()
            self._closing.wait(GATHER_S)
            if not self._closing.is_set():
                self._something_waits.clear()
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                if batch:
                    self._write(batch)
            except RedisAway:
                self._count_lost(len(batch))


def leave_out() -> None:
    """No note of this request: it changed nothing, and its like come often enough to push the others out."""
    g.larder_unnoted = True


def _entry(caller: str, status: int) -> Entry:
    entry = {
        "action": f"{request.method} {request.path}"[:MAX_TEXT],
        "query": mask_query(request.environ.get("QUERY_STRING", ""))[:MAX_TEXT],
        "caller": caller,
        "address": request.environ.get("REMOTE_ADDR", ""),
        "status": str(status),
    }
    if forwarded_for := request.environ.get("HTTP_X_FORWARDED_FOR"):
        entry["forwarded_for"] = forwarded_for[:MAX_TEXT]  # as the proxy says; `address` is the proxy
    return entry


def install(app: Flask, write: Callable[[list[Entry]], None], registry: CollectorRegistry) -> AuditTrail:
    """Notes every admin request of the app from here on. The caller closes the trail."""
    counter = OwnCounter if isinstance(registry, OwnRegistry) else Counter
    lost = counter("larder_audit_lost", "Admin actions that could not be noted in the audit stream", registry=registry)
    trail = AuditTrail(write, lost.inc)

    @app.after_request
    def note_admin_action(response: Response) -> Response:
        caller = g.get("larder_caller")
        is_action = g.get("larder_level") is Level.ADMIN and "larder_unnoted" not in g
        if is_action and caller is not None:
            trail.note(_entry(caller, response.status_code))
        return response

    return trail
