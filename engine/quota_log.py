"""Tells people what quotas deleted: by salt and place, in few lines however much goes and however many salts there are.

what                                      level    when
----------------------------------------  -------  --------------------------------------------------------------
a salt without a quota begins to lose     WARNING  after the pass, once per salt in an hour
what else quotas deleted, summed by salt  INFO     after the pass, then at most every 30 s

Each time the first salts are named, and the others are summed in one line.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from engine.l1.quota import QuotaTable

logger = logging.getLogger(__name__)

#: Salts that are named each time.
NAMED = 10
SAY_AGAIN_S = 30.0
WARN_AGAIN_S = 3600.0
#: Salts that are remembered as warned of; beyond that the longest known is forgotten.
REMEMBERED = 1024
SALT_CHARACTERS = 100


class _Sums:
    """Objects and bytes by salt for the first salts, and of all others together."""

    def __init__(self) -> None:
        self.named: dict[str, tuple[int, int, int]] = {}
        self.others = (0, 0)

    def add(self, salt: str, objects: int, nbytes: int, limit: int) -> None:
        if salt in self.named or len(self.named) < NAMED:
            before = self.named.get(salt, (0, 0, 0))
            self.named[salt] = (before[0] + objects, before[1] + nbytes, limit)
        else:
            self.others = (self.others[0] + objects, self.others[1] + nbytes)


class QuotaLog:
    """Belongs to the one thread that evicts from `place`: `note` for each salt of a pass, `tell` after each pass."""

    def __init__(self, place: str, quotas: QuotaTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._place, self._quotas, self._clock = place, quotas, clock
        self._warned: OrderedDict[str, float] = OrderedDict()
        self._warnings, self._sums = _Sums(), _Sums()
        self._told_at = float("-inf")

    def note(self, cache_salt: str, objects: int, nbytes: int, limit_bytes: int) -> None:
        """That much was deleted of a salt because it held more than its limit."""
        if not objects:
            return
        is_news = cache_salt in self._warnings.named or (
            not limit_bytes and not self._quotas.has(cache_salt) and self._is_due(cache_salt)
        )
        (self._warnings if is_news else self._sums).add(cache_salt, objects, nbytes, limit_bytes)

    def tell(self) -> None:
        """Logs what is due."""
        warnings, self._warnings = self._warnings, _Sums()
        for salt, (objects, nbytes, _) in warnings.named.items():
            logger.warning(
                "no quota is registered for tenant %.*r, its limit is 0: %d objects, %d bytes deleted from %s so far",
                SALT_CHARACTERS, salt, objects, nbytes, self._place,
            )  # fmt: skip
        if warnings.others[0]:
            logger.warning("further tenants without a quota: %d objects, %d bytes deleted from %s",
                           *warnings.others, self._place)  # fmt: skip
        now = self._clock()
        if not self._sums.named or now - self._told_at < SAY_AGAIN_S:
            return
        self._told_at = now
        sums, self._sums = self._sums, _Sums()
        for salt, (objects, nbytes, limit) in sums.named.items():
            logger.info(
                "tenant %.*r was over its limit of %d bytes: %d objects, %d bytes deleted from %s",
                SALT_CHARACTERS, salt, limit, objects, nbytes, self._place,
            )  # fmt: skip
        if sums.others[0]:
            logger.info("further tenants over their limits: %d objects, %d bytes deleted from %s",
                        *sums.others, self._place)  # fmt: skip

    def _is_due(self, cache_salt: str) -> bool:
        """Whether nobody was warned of this salt for long; from now on somebody was."""
        now = self._clock()
        if now - self._warned.get(cache_salt, float("-inf")) < WARN_AGAIN_S:
            return False
        self._warned[cache_salt] = now
        self._warned.move_to_end(cache_salt)
        if len(self._warned) > REMEMBERED:
            self._warned.popitem(last=False)
        return True
