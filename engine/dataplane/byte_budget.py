"""How many KV bytes are held inside messages at one time."""

import threading

from zmq import MessageTracker


class ByteBudget:
    """Bytes of messages in hand: arrived and not yet stored, or answered and not yet sent. Any thread may call.

    A store asks when it arrives, a retrieve before its answer is made.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held = 0
        self._sending: list[tuple[MessageTracker, int]] = []
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        return self._held

    def take(self, nbytes: int) -> bool:
        """Takes `nbytes`, or nothing and False when they do not fit. 0 always fits."""
        if not nbytes:
            return True
        with self._lock:
            if self._held + nbytes > self._limit_bytes:
                return False
            self._held += nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """Gives back `nbytes`; a negative number is taken, whether it fits or not."""
        if nbytes:
            with self._lock:
                self._held -= nbytes

    def give_back_when_sent(self, tracker: MessageTracker, nbytes: int) -> None:
        """The socket still needs `nbytes`; `collect` gives them back once it does not."""
        with self._lock:
            self._sending.append((tracker, nbytes))

    def collect(self) -> None:
        """Gives back what has been sent meanwhile, or was dropped with its connection."""
        if not self._sending:
            return
        with self._lock:
            sending, self._sending = self._sending, []
            for tracker, nbytes in sending:
                if tracker.done:
                    self._held -= nbytes
                else:
                    self._sending.append((tracker, nbytes))
