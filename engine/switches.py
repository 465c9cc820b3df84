"""What operators turn on and off while the engine runs. All of it is off again after the next start.

switch      on means
----------  ----------------------------------------------------------------------------------------------------
frozen      nothing is stored (a store is answered as if all its chunks were left out), and only L1 answers
log_blocks  the block ids of each store and retrieve of a server-driven worker are logged
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from engine.cache_request import CacheRequest

logger = logging.getLogger(__name__)

#: Block ids of each KV group in a line of the log.
MAX_LOGGED_BLOCKS = 256


@dataclass(slots=True)
class Switches:
    """Read by any thread, set by operators."""

    frozen: bool = False
    log_blocks: bool = False

    def note_blocks(
        self, verb: str, request: CacheRequest, instance_id: int, block_ids: Sequence[Sequence[int]]
    ) -> None:
        """Tells, when switched on, which blocks a transfer is about, so that operators can take their checksums."""
        if self.log_blocks:
            shown = [list(ids[:MAX_LOGGED_BLOCKS]) for ids in block_ids]
            span = f"[{request.start}, {request.end})"
            logger.info("%s %r tokens %s, worker %d, blocks %s", verb, request.request_id, span, instance_id, shown)
