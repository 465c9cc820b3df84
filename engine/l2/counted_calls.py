"""Around each call to a storage: its breaker, its duration, and what came of it, for the metrics."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import EngineError
from engine.l2.base import ConnectionFault, StorageFull
from engine.l2.calls import Calls
from engine.l2.metrics import TierCounters

logger = logging.getLogger(__name__)


class Call:
    """One call: whether the storage was asked, and what came of it."""

    __slots__ = ("asked", "outcome")

    def __init__(self) -> None:
        self.asked, self.outcome = False, "ok"


class CountedCalls:
    """Thread-safe."""

    def __init__(self, label: str, calls: Calls, counters: TierCounters) -> None:
        self._label, self._calls, self._counters = label, calls, counters

    @contextmanager
    def call(self, operation: str, *, may_take_long: bool = False) -> Iterator[Call]:
        """Around one call to the adapter: breaker, duration, outcome."""
        call, started = Call(), time.perf_counter()
        try:
            with self._calls.guarded(may_take_long=may_take_long):
                started = time.perf_counter()
                call.asked = True
                yield call
        except ConnectionFault:
            call.outcome = "fault" if call.asked else "refused"
            raise
        except StorageFull:
            call.outcome = "full"
            raise
        except OSError:
            call.outcome = "error"
            raise
        except EngineError:
            call.outcome = "error"
            raise
        except Exception as error:
            # A library's own exception must look like a failure of the storage, not like a bug of whoever asked.
            call.outcome = "error"
            logger.exception("L2 adapter %s: %s failed unexpectedly", self._label, operation)
            raise OSError(f"{operation} failed: {type(error).__name__}: {error}") from error
        finally:
            self.count(operation, call.outcome)
            if call.asked:
                self._counters.seconds[operation].observe(time.perf_counter() - started)

    def count(self, operation: str, outcome: str) -> None:
        """One more call came to this."""
        self._counters.calls[operation, outcome].inc()
