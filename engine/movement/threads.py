"""Joining threads that may hang in a storage's library."""

import logging
import threading
import time
from collections.abc import Iterable

logger = logging.getLogger(__name__)


def join_all(threads: Iterable[threading.Thread], deadline: float) -> bool:
    """Waits until `deadline` (monotonic) for all; says which it left behind. Whether all have ended."""
    for thread in (started := [thread for thread in threads if thread.ident is not None]):
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in started if thread.is_alive()]
    if left:
        logger.warning("%s still at work in a storage, not waiting longer", ", ".join(left))
    return not left
