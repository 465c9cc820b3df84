"""Whether the quotas in Redis are those under which L2 was filled: `quota:epoch`, kept beside L2.

Redis names each life of its quota hash with an epoch. A file here keeps the epoch that this L2 goes with. When Redis
lost its data, or another Redis was put in place, the two differ, a quota that is missing says nothing, and limit 0 for
salts without a quota is suspended: under IsolatedLRU it would delete what took days to compute.

the file says      L2             then
-----------------  -------------  ---------------------------------------------------------------------------
the same epoch     whatever       trusted
another, nothing   is empty       trusted, and the file is written
another, nothing   is not         in doubt: suspended until the next quota is set, then the file is written
another, nothing   being scanned  in doubt until that is known

The file is written only once the quotas that ended the doubt are in Redis: a crash in between must find it again.
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
    """Judges epochs and suspends the quota table's limit 0. `take`, `review` and `keep` are called by one thread."""

    def __init__(
        self,
        quotas: QuotaTable,
        directory: Path | None,
        holdings: Callable[[], Holdings],
        *,
        isolates: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` is made when the file is written; None: no epoch is known from before, nothing is kept.

        `isolates`: some tier evicts by quota, so people are told of a suspension.
        """
        self._quotas, self._holdings, self._isolates, self._clock = quotas, holdings, isolates, clock
        self._path = None if directory is None else directory / FILE_NAME
        self._epoch = ""
        self._in_doubt = self._told = self._write_failed = False
        self._in_doubt_since = 0.0

    def take(self, epoch: str) -> None:
        """The quotas that are about to be loaded are of this epoch. Suspends limit 0 if it cannot be trusted."""
        self._epoch = epoch
        kept = self._read()
        holdings = self._holdings()
        self._in_doubt = bool(holdings.adapters) and kept != epoch
        self._told = False
        self._in_doubt_since = self._clock()
        if not self._in_doubt:
            self._quotas.lift()
            return
        self._quotas.suspend(
            f"the quotas in Redis are of epoch {epoch}, L2 was filled under {kept or 'none that is known'}: Redis may"
            " have lost quotas, and nothing is deleted for want of one until the next PUT /quota/{cache_salt}"
        )
        self.review()

    def review(self) -> bool:
        """Ends a suspension that nothing needs any more, or tells people of it.

        True: a quota was set since, so `keep` is to be called as soon as all quotas are in Redis.
        """
        if not self._in_doubt:
            return False
        holdings = self._holdings()
        if holdings.is_empty:
            self._quotas.lift()
            self.keep()
            return False
        if self._quotas.suspended_because is None:
            return True
        if not self._told and (holdings.objects or self._clock() - self._in_doubt_since > PATIENCE_S):
            self._told = True
            self._tell(holdings)
        return False

    def keep(self) -> None:
        """The epoch goes with L2 from now on. What cannot be written is tried again with the next `review`."""
        try:
            self._write()
        except OSError as error:
            if not self._write_failed:
                logger.error("the quotas' epoch cannot be kept in %s: %s; it is tried again", self._path, error)
            self._write_failed = True
            return
        self._in_doubt = self._write_failed = False
        if self._told:
            logger.info("tenants without a quota have limit 0 again")

    @property
    def suspended_because(self) -> str | None:
        """For GET /status: why limit 0 is suspended, where that has an effect."""
        return self._quotas.suspended_because if self._isolates else None

    def _tell(self, holdings: Holdings) -> None:
        if self._isolates:
            logger.warning(
                "limit 0 for tenants without a quota is suspended: %s. L2 holds %d objects, %d bytes%s; %d quotas are"
                " registered. Set the quotas again: the first PUT ends the suspension, and tenants without a quota"
                " then lose what they hold",
                self._quotas.suspended_because, holdings.objects, holdings.nbytes,
                "" if holdings.complete else " as far as it has been scanned", len(self._quotas.all()),
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

    def _write(self) -> None:
        """Whole or not at all, and on the disk when it returns."""
        if self._path is None:
            return
        directory = self._path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = directory / f"{FILE_NAME}.new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{self._epoch}\n".encode())
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
