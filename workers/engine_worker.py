"""The engine's process: python -m workers.engine_worker [flags of ./larder server].

    run directory locked → instance id claimed in Redis → pool → quotas → snapshots → commands → data plane → ready

Until Redis has been reached once the state is `starting` and nothing is served, since the instance id may belong to
another host's engine and the quotas are unknown. From then on the data plane needs no Redis. SIGTERM and SIGINT stop it
in the reverse order.

exit code  meaning
---------  --------------------------------------------------------------
0          stopped as asked
78         cannot start, and trying again will not help; the log says why
1          another boot took over the instance id, or a bug
"""

import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import redis
from prometheus_client import PlatformCollector, ProcessCollector

from contract import snapshots
from contract.command_taker import CommandTaker
from contract.errors import RedisAway
from contract.keys import Keys
from contract.log_lines import set_up_logging
from contract.mask_text import mask_urls_in
from contract.masking import mask_secrets
from contract.prefetch_jobs import PrefetchStore
from contract.redis_client import check_server, describe, open_blocking_redis, open_redis
from contract.settings import SettingError, Settings, load_settings
from engine.config import GIB, EngineConfig
from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.server import DataPlaneServer
from engine.engine import Engine
from engine.errors import StartError
from engine.gauges import QuotaGauges, ThreadGauges
from workers.command_handlers import Worker
from workers.command_loop import BLOCK_S, CommandLoop
from workers.errors import EXIT_CANNOT_START, CannotStart
from workers.heartbeat import Heartbeat
from workers.l2_handlers import describe_adapters
from workers.live_settings import LiveSettings, SharedLevels
from workers.outage import Outage
from workers.ownership import claim_instance, lock_file
from workers.prefetch_jobs import PrefetchJobs
from workers.publisher import Publisher
from workers.queue_metrics import CommandCounts
from workers.redis_exposure import tell_exposure
from workers.script_app import make_script_app
from workers.script_runner import ScriptRunner
from workers.tenant_tables import TenantTables

logger = logging.getLogger(__name__)

EXIT_USURPED = 1
#: How often a thread may take the interpreter from another; the default of 5 ms is felt by the data plane.
SWITCH_INTERVAL_S = 0.0005
PUBLISH_TIMEOUT_S = 2.0
#: A signal that another thread was given is handled once this one, the main thread, moves.
SIGNAL_LOOK_S = 1.0
LOG_LEVELS_INTERVAL_S = 0.5
#: Between looks whether something that was set while Redis was away is to be handed on.
TELL_INTERVAL_S = 0.5


def engine_config(settings: Settings) -> EngineConfig:
    """The engine's part of the settings: fields of the same name, and the pool's size in bytes."""
    names = {field.name for field in dataclasses.fields(EngineConfig)} & {f.name for f in dataclasses.fields(Settings)}
    values = {name: getattr(settings, name) for name in names}
    return EngineConfig(l1_size_bytes=int(settings.l1_size_gb * GIB), **values)


class EngineWorker:
    """One engine with its data plane, its commands and what it publishes. Call run() once, in the main thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(settings.instance_id)
        self._asked_to_stop = threading.Event()
        self._exit_code = 0
        self._engine = engine = Engine(engine_config(settings))
        limits = DataPlaneLimits(
            max_message_bytes=settings.max_message_bytes, max_message_mode_bytes=settings.max_message_mode_bytes
        )
        self._data_plane = DataPlaneServer(engine, settings.host, settings.port, limits)
        address = f"{settings.host}:{settings.port}"
        self._heartbeat = Heartbeat(self._keys, settings.run_dir, engine.boot_id, address, engine.threads)
        self._redis = open_redis(settings.effective_redis_url)
        self._blocking_redis = open_blocking_redis(settings.effective_redis_url, block_s=BLOCK_S)
        self._tenants = TenantTables(engine, self._keys)
        self._taker = CommandTaker(self._redis, self._blocking_redis, self._keys, engine.boot_id)
        self._publisher = Publisher(
            self._redis, self._keys, engine.boot_id, self._sources(), self._tenants, engine.threads
        )
        self._prefetch = PrefetchJobs(engine, PrefetchStore(self._redis, self._keys), engine.threads)
        self._levels = SharedLevels(self._redis, self._keys)
        scripts = None
        if settings.run_script_enabled:
            scripts = ScriptRunner(make_script_app(engine), settings.script_allowed_imports)
        worker = Worker(engine, self._tenants, self._prefetch, scripts, LiveSettings(settings, engine, self._levels))
        registry = engine.stats.registry
        self._commands = CommandLoop(self._taker, worker, self._publisher, engine.threads, registry=registry)
        registry.register(CommandCounts(self._taker.counts, self._taker.in_hand))
        registry.register(ThreadGauges(engine.threads))
        registry.register(QuotaGauges(engine.quotas, engine.usage_by_salt))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._worker = worker
        self._undo: list[Callable[[], None]] = []

    def stop(self) -> None:
        """Makes run() stop everything and return; any thread may call, and a signal handler."""
        self._asked_to_stop.set()

    def run(self) -> int:
        """Serves until stop(); returns the exit code."""
        lock: TextIO | None = None
        forget = True
        try:
            lock = lock_file(self._settings.run_dir / "engine.lock", "engine")
            self._start()
            while not self._asked_to_stop.wait(SIGNAL_LOOK_S):
                pass
        except (StartError, CannotStart) as error:
            logger.error("cannot start: %s", error)
            self._exit_code = EXIT_CANNOT_START
            forget = lock is None
            if lock is not None:
                self._heartbeat.set_state("failed", str(error))
        finally:
            self._shut_down(forget=forget and lock is not None)
            if lock is not None:
                lock.close()
        return self._exit_code

    def _start(self) -> None:
        """Brings up the parts, each with its undoing; returns early when asked to stop.

        Raises StartError, CannotStart.
        """
        began = time.monotonic()
        self._heartbeat.start()
        self._start_internal_api()
        tell_exposure(self._settings.effective_redis_url)
        if not self._with_redis(self._claim):
            return
        self._heartbeat.go_to_redis(self._redis, self._usurped)
        self._engine.start()
        self._undo.append(self._engine.stop)
        if not self._with_redis(self._load):
            return
        if not self._with_redis(self._publish_first):
            return
        self._undo.append(self._publisher.stop)
        levels = self._engine.threads.run("log-levels", "low", LOG_LEVELS_INTERVAL_S, self._levels.follow)
        self._undo.append(levels.stop)
        self._engine.on_change = self._publisher.wake
        self._prefetch.start()
        self._undo.append(self._prefetch.stop)
        self._commands.start()
        self._undo.append(self._commands.stop)
        self._data_plane.start()
        self._undo.append(self._data_plane.stop)
        self._heartbeat.watch_data_plane(self._data_plane.turn_age_s)
        self._publish_now()  # what is read of a ready engine shows all its parts
        self._heartbeat.set_state("ready")
        logger.info(
            "ready after %.1f s: instance %s, boot %s, data plane on %s:%d, L1 of %.3g GiB, %d quotas",
            time.monotonic() - began, self._settings.instance_id, self._engine.boot_id, self._settings.host,
            self._data_plane.port, self._settings.l1_size_gb, len(self._engine.quotas()),
        )  # fmt: skip

    def _start_internal_api(self) -> None:
        if not self._settings.internal_api_server_enabled:
            return
        # Flask and what comes with it is loaded by those who want it.
        from workers.internal_api import open_internal_server

        server, backend = open_internal_server(
            self._settings, self._worker, self._heartbeat.record, self._sources(), self._publish_now
        )
        try:
            server.start()
        except OSError as error:
            raise CannotStart(f"internal_api_server: {server.address}: {error}") from error
        self._undo.append(server.stop)
        if server.enabled:
            teller = self._engine.threads.run("internal-api-teller", "low", TELL_INTERVAL_S, backend.tell_others)
            self._undo.append(teller.stop)

    def _with_redis(self, step: Callable[[], bool]) -> bool:
        """Repeats a step of the start until Redis lets it happen. False when asked to stop meanwhile."""
        outage = Outage(logger, f"start, {mask_urls_in(self._settings.effective_redis_url)}")
        while not self._asked_to_stop.is_set():
            try:
                done = step()
            except (redis.RedisError, RedisAway) as error:
                outage.failed(describe(error))
                self._heartbeat.set_state("starting", f"Redis cannot be reached: {describe(error)}")
                self._asked_to_stop.wait(outage.pause_s)
                continue
            outage.worked()
            self._heartbeat.set_state("starting")
            return done
        return False

    def _claim(self) -> bool:
        if problem := check_server(self._redis):
            raise CannotStart(f"redis_url: {mask_urls_in(self._settings.effective_redis_url)}: {problem}")
        return claim_instance(self._redis, self._keys, self._heartbeat.record(), self._asked_to_stop)

    def _load(self) -> bool:
        self._tenants.load(self._redis)
        return True

    def _publish_first(self) -> bool:
        self._publisher.start()
        return True

    def _publish_now(self) -> None:
        """Has the snapshots show what is true now; a Redis that is away is not waited for."""
        self._publisher.publish_now(PUBLISH_TIMEOUT_S)

    def _usurped(self, holder: str) -> None:
        if not self._asked_to_stop.is_set():
            logger.error("boot %s took over instance %s, stopping", holder, self._settings.instance_id)
            self._exit_code = EXIT_USURPED
            self.stop()

    def _sources(self) -> dict[str, Callable[[], object]]:
        engine = self._engine
        return {
            snapshots.STATUS: engine.status,
            snapshots.CONF: self._configuration,
            snapshots.ADAPTERS: lambda: describe_adapters(engine.l2),
            snapshots.PERIODIC_THREADS: engine.threads.describe,
            snapshots.METRICS: lambda: {"text": engine.metrics_text()},
        }

    def _configuration(self) -> object:
        """The engine's, and what of the process's own settings LMCache shows in the same place."""
        groups: dict[str, Any] = dict(self._engine.configuration())
        names = ("run_script_enabled", "script_allowed_imports")
        groups["mp"] = {**groups["mp"], **{name: getattr(self._settings, name) for name in names}}
        return mask_secrets(groups)

    def _shut_down(self, *, forget: bool) -> None:
        """Undoes what was started, latest first."""
        if self._undo and self._exit_code == 0:
            self._heartbeat.set_state("draining")
            logger.info("stopping")
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception:  # what is left must be undone all the same: the pool, the storages
                logger.exception("a part did not stop as it should")
        self._heartbeat.stop(forget=forget)
        self._redis.close()
        self._blocking_redis.close()
        logger.info("stopped")


def main(argv: Sequence[str]) -> int:
    """Runs the engine until a signal; returns the exit code."""
    set_up_logging("engine", "INFO")
    try:
        settings = load_settings(argv, os.environ)
    except SettingError as error:
        logger.error("cannot start: %s", error)
        return EXIT_CANNOT_START
    set_up_logging("engine", settings.log_level)
    Path("/proc/self/comm").write_text("larder-engine")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        worker = EngineWorker(settings)
    except StartError as error:
        logger.error("cannot start: %s", error)
        return EXIT_CANNOT_START
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    return worker.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
