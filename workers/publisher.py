"""Writes the engine's snapshots and the tenants' hashes to Redis: every 0.5 s, and at once when woken.

Redis keeps each byte on its disk: a body that did not change is only dated anew, and the metrics, which always change
and are the longest, are written every METRICS_INTERVAL_S and when woken.

A command that changes what a snapshot shows hands its reply over here: it is sent after a publication that began
after the command's effect, so that a PUT and the GET behind it agree. While Redis is away the replies wait.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis

from contract import snapshots
from contract.keys import Keys
from contract.masking import mask_urls
from contract.redis_client import describe, redis_time_s
from engine.periodic import PeriodicThreads, RunRecord
from workers.outage import Outage
from workers.tenant_tables import TenantTables

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
METRICS_INTERVAL_S = 2.0
SHORTEST_GAP_S = 0.05
STOP_TIMEOUT_S = 10.0


class Publisher:
    """One thread. `wake` and `after_next` may be called from any; `sources` make the bodies, by snapshot name."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        boot_id: str,
        sources: Mapping[str, Callable[[], Any]],
        tenants: TenantTables,
        threads: PeriodicThreads,
    ) -> None:
        self._client = client
        self._writer = snapshots.SnapshotWriter(client, keys, boot_id)
        self._metrics_due_at = 0.0
        self._sources = sources
        self._tenants = tenants
        self._threads = threads
        self._record = RunRecord("publisher", "high", INTERVAL_S)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._outage = Outage(logger, "publisher")
        self._thread = threading.Thread(target=self._loop, name="larder-publisher", daemon=True)

    def start(self) -> None:
        """Publishes for the first time, so that what is read from now on is this boot's. Raises redis.RedisError."""
        self._publish()
        self._threads.add(self._record)
        self._record.is_running = True
        self._thread.start()

    def wake(self) -> None:
        """Something changed that a snapshot shows."""
        self._wake.set()

    def after_next(self, reply: Callable[[], None]) -> None:
        """Calls `reply` in the publisher's thread after a publication that begins after now."""
        with self._lock:
            self._waiting.append(reply)
        self._wake.set()

    def publish_now(self, timeout_s: float) -> None:
        """Returns once a publication that began after now has ended; at once while Redis is away."""
        published = threading.Event()
        if self._outage.is_on:
            self.wake()
            return
        self.after_next(published.set)
        published.wait(timeout_s)

    def stop(self) -> None:
        """Publishes once more, so that the last replies go out, and ends."""
        self._record.stopped_on_purpose = True
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def _loop(self) -> None:
        try:
            while True:
                if self._wake.wait(INTERVAL_S):
                    self._wake.clear()
                    self._metrics_due_at = 0.0
                is_last = self._stopping.is_set()
                began = time.monotonic()
                pause_s = SHORTEST_GAP_S if self._turn() else self._outage.pause_s
                if is_last:
                    return
                self._stopping.wait(max(0.0, pause_s - (time.monotonic() - began)))
        finally:
            self._record.is_running = False

    def _turn(self) -> bool:
        """Publishes and sends the replies that waited for it. False while Redis is away."""
        started = time.time()
        with self._lock:
            replies, self._waiting = self._waiting, []
        if replies:
            self._metrics_due_at = 0.0
        try:
            self._publish()
        except redis.RedisError as error:
            with self._lock:
                self._waiting = replies + self._waiting
            self._outage.failed(describe(error))
            self._record.ran(started, success=False, message=describe(error))
            return False
        except Exception as error:  # a loop top: a bug in a source must not end the publishing
            logger.exception("a publication failed")
            self._record.ran(started, success=False, message=repr(error))
        else:
            self._outage.worked()
            self._record.ran(started, success=True)
        for reply in replies:
            reply()
        return True

    def _publish(self) -> None:
        taken_at = redis_time_s(self._client)
        self._tenants.write(self._client)
        names, now = set(self._sources), time.monotonic()
        if snapshots.METRICS in self._writer.held() and now < self._metrics_due_at:
            names.discard(snapshots.METRICS)
        bodies = {name: mask_urls(source()) for name, source in self._sources.items() if name in names}
        self._writer.write(bodies, taken_at=taken_at)
        if snapshots.METRICS in names:
            self._metrics_due_at = now + METRICS_INTERVAL_S
