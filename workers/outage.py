"""One outage, one line: what is tried again for ever is logged when it first fails and when it works again."""

import logging
import time

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Outage:
    """Follows whether something works. For one thread. `pause_s` is how long to wait before the next try."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._since: float | None = None
        self.pause_s = FIRST_PAUSE_S

    @property
    def is_on(self) -> bool:
        """Whether it did not work when it was tried last. Any thread may ask."""
        return self._since is not None

    def failed(self, error: object) -> None:
        """It did not work; the first time in a row is logged, and the pause doubles up to 2 s."""
        if self._since is None:
            self._since = time.monotonic()
            self.pause_s = FIRST_PAUSE_S
            self._logger.warning("%s: cannot reach Redis, trying on: %s", self._what, error)
        else:
            self.pause_s = min(LONGEST_PAUSE_S, self.pause_s * 2)

    def worked(self) -> None:
        """It worked; the first time after a failure is logged."""
        if self._since is not None:
            self._logger.warning("%s: Redis is back after %.1f s", self._what, time.monotonic() - self._since)
            self._since = None
