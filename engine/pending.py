"""Prepared transfers that wait for their commit."""

import threading
from typing import Generic, NamedTuple, TypeVar

from engine.errors import BadRequest
from engine.object_key import ObjectKey

#: Most prepared and not yet committed transfers of one registration, per direction.
MAX_PENDING = 4096

Held = TypeVar("Held")


class Match(NamedTuple):
    """What a commit must agree with its prepare in. The last object's hash covers all tokens before it."""

    registration: int
    request_id: str
    first_chunk: int
    last_object: ObjectKey


class Pending(Generic[Held]):
    """Per registration, match -> what its prepares hold, oldest first. Thread-safe."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._held: dict[int, dict[Match, list[Held]]] = {}
        self._counts: dict[int, int] = {}
        self._lock = threading.Lock()

    def check_room(self, registration: int) -> None:
        """Raises BadRequest when the registration has too many prepared transfers already."""
        if self._counts.get(registration, 0) >= MAX_PENDING:
            raise BadRequest(f"{MAX_PENDING} uncommitted {self._what} of this worker, no more are taken")

    def add(self, match: Match, held: Held) -> None:
        """Remembers a prepared transfer."""
        with self._lock:
            self._held.setdefault(match.registration, {}).setdefault(match, []).append(held)
            self._counts[match.registration] = self._counts.get(match.registration, 0) + 1

    def take_oldest(self, match: Match) -> Held | None:
        """The oldest transfer prepared under `match`, which is then forgotten."""
        taken = self._take(match, 1)
        return taken[0] if taken else None

    def take_all(self, match: Match) -> list[Held]:
        """All transfers prepared under `match`, which are then forgotten."""
        return self._take(match, MAX_PENDING)

    def _take(self, match: Match, most: int) -> list[Held]:
        with self._lock:
            of_worker = self._held.get(match.registration, {})
            waiting = of_worker.get(match)
            if not waiting:
                return []
            taken, left = waiting[:most], waiting[most:]
            if left:
                of_worker[match] = left
            else:
                del of_worker[match]
            self._counts[match.registration] -= len(taken)
            return taken

    def forget(self, registration: int) -> None:
        """Drops everything of one registration."""
        with self._lock:
            self._held.pop(registration, None)
            self._counts.pop(registration, None)
