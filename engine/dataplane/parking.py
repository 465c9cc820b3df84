"""Clients that wait for a lookup: answered when theirs has finished, and at their deadline at the latest."""

import heapq
import time
from collections.abc import Callable, Iterator
from itertools import count

from engine.dataplane.operations import VOID, Frames, Parked
from engine.dataplane.router import Call


class Parking:
    """Used by the socket's thread alone. `ask` gives the answer for a request id, None while its lookup runs."""

    def __init__(self, ask: Callable[[str], Frames | None], max_parked: int, max_wait_s: float) -> None:
        self._ask, self._max_parked, self._max_wait_s = ask, max_parked, max_wait_s
        self._waiting: list[tuple[float, int, Call, str]] = []
        self._ticket = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: Call, parked: Parked) -> bool:
        """False when too many wait already."""
        if len(self._waiting) >= self._max_parked:
            return False
        deadline = time.monotonic() + min(parked.wait_s, self._max_wait_s)
        heapq.heappush(self._waiting, (deadline, next(self._ticket), call, parked.request_id))
        return True

    def seconds_left(self) -> float | None:
        """Until the next deadline; None when nobody waits."""
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    def finished(self) -> Iterator[tuple[Call, Frames]]:
        """Whose lookup is done by now, with the answers."""
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            answer = self._ask(entry[3])
            if answer is None:
                heapq.heappush(self._waiting, entry)
            else:
                yield entry[2], answer

    def expired(self) -> Iterator[tuple[Call, Frames]]:
        """Who has waited long enough, with the answers: void means ask again."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, call, request_id = heapq.heappop(self._waiting)
            yield call, self._ask(request_id) or VOID

    def leave(self) -> Iterator[tuple[Call, Frames]]:
        """Everybody, because the server stops."""
        while self._waiting:
            yield heapq.heappop(self._waiting)[2], VOID
