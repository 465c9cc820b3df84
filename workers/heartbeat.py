"""Says every second who the engine is and how it is: to a file, then to Redis.

The file comes first, since Redis may take its time to fail; it alone keeps a serving engine healthy while Redis is
away. An engine whose data-plane loop has not turned for 10 s says `failed`, and `ready` again once it turns.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis

from contract.engine_record import BEAT_INTERVAL_S, EngineRecord, forget_beat, write_file_beat, write_redis_beat
from contract.keys import Keys
from contract.redis_client import describe
from engine.periodic import PeriodicThreads, RunRecord
from workers.outage import Outage

logger = logging.getLogger(__name__)

STUCK_DATA_PLANE_S = 10.0
STOP_TIMEOUT_S = 5.0


class Heartbeat:
    """One thread. `claimed` must be set before beats go to Redis: until then the instance id may be another's."""

    def __init__(self, keys: Keys, run_dir: Path, boot_id: str, address: str, threads: PeriodicThreads) -> None:
        self._keys = keys
        self._run_dir = run_dir
        self._boot_id = boot_id
        self._address = address
        self._threads = threads
        self._host = socket.gethostname()
        self._started_at = time.time()
        self._state, self._error = "starting", ""
        self._client: redis.Redis | None = None
        self._turn_age_s: Callable[[], float] = lambda: 0.0
        self._on_usurped: Callable[[str], None] = lambda holder: None
        self._record = RunRecord("heartbeat", "high", BEAT_INTERVAL_S)
        self._redis_outage = Outage(logger, "heartbeat")
        self._file_failed, self._state_in_file = False, ""
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larder-heartbeat", daemon=True)

    def start(self) -> None:
        self._threads.add(self._record)
        self._record.is_running = True
        self._thread.start()

    def go_to_redis(self, client: redis.Redis, on_usurped: Callable[[str], None]) -> None:
        """The instance id is ours: beats go to Redis too. `on_usurped(boot id)`: another boot has it now."""
        self._on_usurped = on_usurped
        self._client = client

    def watch_data_plane(self, turn_age_s: Callable[[], float]) -> None:
        """From now on the data plane's last turn is part of the beat, and of the state."""
        self._turn_age_s = turn_age_s

    def set_state(self, state: str, error: str = "") -> None:
        """Says so at once, before it returns (to Redis only if Redis answers)."""
        self._state, self._error = state, error
        self._beat()

    def record(self) -> EngineRecord:
        """What the next beat says."""
        state, error, age_s = self._state, self._error, self._turn_age_s()
        if state == "ready" and age_s > STUCK_DATA_PLANE_S:
            state, error = "failed", f"the data plane's loop has not turned for {age_s:.0f} s"
        now = time.time()
        return EngineRecord(self._boot_id, os.getpid(), self._host, state, error, self._started_at, now, age_s)

    def stop(self, *, forget: bool) -> None:
        """Ends the beats. `forget` removes the record too, so that a successor need not wait for it to age."""
        self._record.stopped_on_purpose = True
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        if not forget:
            return
        try:
            forget_beat(self._client, self._keys, self._run_dir, self._boot_id)
            if self._client is not None:
                self._client.hdel(self._keys.instances, self._keys.instance_id)
        except redis.RedisError as error:
            logger.warning("the record stays in Redis until it ages: %s", describe(error))

    def _loop(self) -> None:
        try:
            while not self._stopping.is_set():
                started = time.time()
                try:
                    reached = self._beat()
                except Exception:  # a loop top: an engine without a beat counts as dead
                    logger.exception("a beat failed")
                    reached = False
                self._record.ran(started, success=reached)
                self._wake.wait(max(0.0, BEAT_INTERVAL_S - (time.time() - started)))
                self._wake.clear()
        finally:
            self._record.is_running = False

    def _beat(self) -> bool:
        """Writes one beat. False when it did not reach Redis.

        To the file first, which must not wait for Redis. But for the news that the engine is ready: the web tier reads
        the file, and the queue would still refuse the commands that it sends then.
        """
        with self._writing:
            record = self.record()
            is_late = record.state == "ready" and self._state_in_file != "ready"
            if not is_late:
                self._beat_to_file(record)
            try:
                holder = self._beat_to_redis(record)
            finally:
                if is_late:
                    self._beat_to_file(record)
        if holder not in (None, self._boot_id):
            self._on_usurped(holder)
        return holder is not None

    def _beat_to_redis(self, record: EngineRecord) -> str | None:
        """The boot id that has the instance id there; None when Redis was not reached."""
        if self._client is None:
            return self._boot_id
        try:
            holder = write_redis_beat(self._client, self._keys, record)
            self._client.hset(self._keys.instances, self._keys.instance_id, self._instance_row())
        except redis.RedisError as error:
            self._redis_outage.failed(describe(error))
            return None
        self._redis_outage.worked()
        return holder

    def _beat_to_file(self, record: EngineRecord) -> None:
        try:
            write_file_beat(self._run_dir, record)
            self._file_failed, self._state_in_file = False, record.state
        except OSError as error:
            if not self._file_failed:
                logger.error("the beat cannot be written to %s: %s", self._run_dir, error)
            self._file_failed = True

    def _instance_row(self) -> str:
        return json.dumps({"boot_id": self._boot_id, "host": self._host, "pid": os.getpid(), "address": self._address})
