"""Whether the quotas in Redis are those under which L2 was filled: `quota:epoch`, kept beside L2.

Redis names each life of its quota hash with an epoch, and each durable change within it with a generation. A file here
keeps the last of both that this L2 goes with. When Redis lost its data or was restored from an older copy, or another
Redis was put in place, a quota that is missing says nothing, and limit 0 for salts without a quota is suspended: under
IsolatedLRU it would delete what took days to compute.

the file says                        L2             then
-----------------------------------  -------------  ------------------------------------------------------------
this epoch, this generation or less  whatever       trusted; the file follows
another epoch, more, nothing         is empty       trusted, and the file is written
another epoch, more, nothing         is not         in doubt: suspended until the next quota is set, then the
                                                    file is written
another epoch, more, nothing         being scanned  in doubt until that is known

The file is written only once the quotas that it speaks of are in Redis: a crash in between finds Redis ahead, which is
trusted, or the doubt again. A generation that lies behind stays where it is until the doubt has ended, since catching
up by other changes would end it too.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.l1.quota import QuotaTable

logger = logging.getLogger(__name__)

FILE_NAME = "quota_epoch"
#: How long it may stay unknown whether L2 is empty before people are told.
PATIENCE_S = 10.0
#: An epoch is a short name; more than this is no file of ours.
MAX_EPOCH_BYTES = 256
#: Where people find what to do.
PAGE = 'docs/redis_keys.md, "When Redis loses its data"'


class Mark(NamedTuple):
    """A state of the durable quotas: an epoch, and how often they changed in it. Written `EPOCH:GENERATION`."""

    epoch: str
    generation: int = 0

    @classmethod
    def parse(cls, text: str) -> "Mark":
        """Without a readable generation it is 0: nothing was counted yet."""
        epoch, colon, number = text.rpartition(":")
        return cls(epoch, int(number)) if colon and number.isascii() and number.isdigit() else cls(text)

    def __str__(self) -> str:
        return f"{self.epoch}:{self.generation}" if self.generation else self.epoch


class Holdings(NamedTuple):
    """What the storages behind L1 hold, as far as is known; `complete` when that is all."""

    adapters: int
    objects: int
    nbytes: int
    complete: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is certainly nothing."""
        return self.complete and not self.objects


class QuotaEpoch:
    """Judges epochs and suspends the quota table's limit 0. All but `suspended_because` belongs to one thread."""

    def __init__(
        self,
        quotas: QuotaTable,
        directory: Path | None,
        holdings: Callable[[], Holdings],
        *,
        isolates: bool,
        quota_hash: str = "larder:{default}:quota",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` is made when the file is written; None: no epoch is known from before, nothing is kept.

        `isolates`: some tier evicts by quota, so people are told of a suspension. `quota_hash`: what Redis calls the
        quotas, for people.
        """
        self._quotas, self._holdings, self._isolates, self._clock = quotas, holdings, isolates, clock
        self._path = None if directory is None else directory / FILE_NAME
        self._what_to_do = (
            f"With more than one tenant do not PUT them one by one: the first PUT /quota/{{cache_salt}} ends the"
            " suspension, and tenants without a quota by then lose what they hold. Write all limits in bytes with"
            f" redis-cli hset '{quota_hash}', restart the engine, then PUT one of them: see {PAGE}"
        )
        #: What the quotas are or are about to be, what the file says, and what it should say once it can be written.
        self._mark, self._kept, self._owed = Mark(""), Mark(""), Mark("")
        #: Highest generation that the epoch is known to have reached.
        self._highest = 0
        self._in_doubt = self._ending = self._told = self._write_failed = False
        self._in_doubt_since = 0.0

    def take(self, epoch: str) -> None:
        """The quotas that are about to be loaded are of this mark. Suspends limit 0 if it cannot be trusted."""
        self._mark = mark = Mark.parse(epoch)
        self._kept = kept = Mark.parse(self._read())
        is_behind = kept.epoch == mark.epoch and mark.generation < kept.generation
        self._highest = kept.generation if is_behind else mark.generation
        self._in_doubt, self._told, self._ending = kept.epoch != mark.epoch or is_behind, False, False
        self._owed = kept
        self._in_doubt_since = self._clock()
        if not self._in_doubt:
            self._quotas.lift()
            self.keep()
            return
        if not self._holdings().adapters:
            self._quotas.lift()
            return
        if is_behind:
            why = (
                f"the quotas in Redis are of generation {mark.generation} of epoch {mark.epoch}, L2 was filled under"
                f" generation {kept.generation}: Redis was restored from an older copy or lost its last changes"
            )
        else:
            why = (
                f"the quotas in Redis are of epoch {mark.epoch}, L2 was filled under"
                f" {kept.epoch or 'none that is known'}: Redis may have lost quotas"
            )
        self._quotas.suspend(
            f"{why}, and nothing is deleted for want of one until the next PUT /quota/{{cache_salt}}."
            f" {self._what_to_do}"
        )
        self.review()

    def review(self) -> bool:
        """Ends a suspension that nothing needs any more, or tells people of it.

        True: a quota was set since, so `keep` is to be called as soon as all quotas are in Redis.
        """
        if not self._in_doubt:
            self._save()
            return False
        holdings = self._holdings()
        if not holdings.adapters:
            return False
        if holdings.is_empty:
            self._quotas.lift()
            self._ending = True
            self.keep()
            return False
        if self._quotas.suspended_because is None:
            self._ending = True
            return True
        if not self._told and (holdings.objects or self._clock() - self._in_doubt_since > PATIENCE_S):
            self._told = True
            self._tell(holdings)
        return False

    def advance(self) -> str:
        """The mark to be written together with the next change of the durable quotas.

        The same as before while a generation that lies behind is in doubt: it must be found behind again.
        """
        stays = self._in_doubt and not self._ending and self._kept.epoch == self._mark.epoch
        if not stays:
            self._highest += 1
            self._mark = Mark(self._mark.epoch, self._highest)
        return str(self._mark)

    def keep(self) -> None:
        """All quotas are in Redis under the present mark: L2 goes with it from now on, unless it is in doubt.

        What cannot be written is tried again with the next `review`.
        """
        if self._in_doubt and not self._ending:
            return
        self._owed = self._mark
        self._in_doubt = self._ending = False
        self._save()

    def _save(self) -> None:
        if self._owed == self._kept:
            return
        try:
            self._write(self._owed)
        except OSError as error:
            if not self._write_failed:
                logger.error("the quotas' epoch cannot be kept in %s: %s; it is tried again", self._path, error)
            self._write_failed = True
            return
        self._kept, self._write_failed = self._owed, False
        if self._told:
            self._told = False
            logger.info("tenants without a quota have limit 0 again")

    @property
    def suspended_because(self) -> str | None:
        """For GET /status: why limit 0 is suspended, where that has an effect."""
        return self._quotas.suspended_because if self._isolates else None

    def _tell(self, holdings: Holdings) -> None:
        if self._isolates:
            logger.warning(
                "limit 0 for tenants without a quota is suspended, L2 holds %d objects, %d bytes%s, and %d quotas are"
                " registered: %s",
                holdings.objects, holdings.nbytes, "" if holdings.complete else " as far as it has been scanned",
                len(self._quotas.all()), self._quotas.suspended_because,
            )  # fmt: skip

    def _read(self) -> str:
        if self._path is None:
            return ""
        try:
            with open(self._path, "rb") as file:
                return file.read(MAX_EPOCH_BYTES).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            logger.error("the quotas' epoch cannot be read from %s: %s; it counts as unknown", self._path, error)
            return ""

    def _write(self, mark: Mark) -> None:
        """Whole or not at all, and on the disk when it returns."""
        if self._path is None:
            return
        directory = self._path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = directory / f"{FILE_NAME}.new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{mark}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(beside, self._path)
        with contextlib.suppress(OSError):  # not every file system can sync a directory
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
