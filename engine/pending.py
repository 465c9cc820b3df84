"""Prepared transfers that wait for their commit."""

import threading
from typing import Generic, TypeVar

from engine.errors import BadRequest
from engine.object_key import ObjectKey

#: Most prepared and not yet committed transfers of one worker, per direction.
MAX_PENDING = 4096

#: What a commit must agree with its prepare in: worker, first chunk, last object (whose hash covers all before it).
Match = tuple[int, int, ObjectKey]

Held = TypeVar("Held")


class Pending(Generic[Held]):
    """Per worker, match -> what its prepares hold, oldest first. Thread-safe."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._held: dict[int, dict[Match, list[Held]]] = {}
        self._counts: dict[int, int] = {}
        self._lock = threading.Lock()

    def check_room(self, instance_id: int) -> None:
        """Raises BadRequest when the worker has too many prepared transfers already."""
        if self._counts.get(instance_id, 0) >= MAX_PENDING:
            raise BadRequest(f"instance_id {instance_id} has {MAX_PENDING} uncommitted {self._what}, no more are taken")

    def add(self, match: Match, held: Held) -> None:
        """Remembers a prepared transfer."""
        with self._lock:
            self._held.setdefault(match[0], {}).setdefault(match, []).append(held)
            self._counts[match[0]] = self._counts.get(match[0], 0) + 1

    def take(self, match: Match) -> Held | None:
        """The oldest transfer prepared under `match`, which is then forgotten."""
        with self._lock:
            of_worker = self._held.get(match[0], {})
            waiting = of_worker.get(match)
            if not waiting:
                return None
            held = waiting.pop(0)
            if not waiting:
                del of_worker[match]
            self._counts[match[0]] -= 1
            return held

    def forget(self, instance_id: int) -> None:
        """Drops everything of one worker."""
        with self._lock:
            self._held.pop(instance_id, None)
            self._counts.pop(instance_id, None)
