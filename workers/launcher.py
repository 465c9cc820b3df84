"""./larder server: starts Redis (unless one is given), the engine and the web server, and keeps them running.

    start    checks (settings, directory, ports, Redis) → Redis → engine and web together → all ready
    running  what dies is started again, with a pause that doubles from 0.2 to 10 s
    stop     SIGTERM or SIGINT: web, engine, Redis, in this order; only the data directory stays

exit code  meaning
---------  --------------------------------------------
0          stopped as asked
1          could not start; the last line says why
78         the same, and trying again will not help
"""

import dataclasses
import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import redis

from contract.engine_record import RECORD_FILE, read_file_record
from contract.errors import RedisAway
from contract.keys import Keys
from contract.log_lines import set_up_logging
from contract.mask_text import mask_urls_in
from contract.redis_client import check_server, describe, open_redis
from contract.settings import ENVIRONMENT_PREFIX, SettingError, Settings, load_settings
from contract.version import COMMIT_VARIABLE
from workers import embedded_redis
from workers.child import Child, ChildPlan
from workers.errors import EXIT_CANNOT_START, CannotStart, WillNotStart
from workers.ownership import lock_file
from workers.ports import answers_http, check_port, http_url

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
LOOK_INTERVAL_S = 0.05
#: A Redis with much data, or a pool of hundreds of GiB, takes its time.
START_TIMEOUT_S = 600.0
STILL_WAITING_S = 10.0
SOUND_CHECK_INTERVAL_S = 1.0
#: An external Redis may be starting at the same time as we are.
REDIS_PATIENCE_S = 5.0
#: A child that dies this often before it was ever ready will not get there.
START_ATTEMPTS = 3


class Launcher:
    """Runs once, in the main thread of its process."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._is_embedded = not settings.redis_url
        self._settings = dataclasses.replace(settings, data_dir=str(Path(settings.data_dir).resolve()))
        self._environ = environ
        self._asked_to_stop = threading.Event()
        self._children: list[Child] = []
        self._next_sound_check_at = 0.0
        self._sound_at = 0.0

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Makes run() stop everything and return. Fit for a signal handler."""
        self._asked_to_stop.set()

    def run(self) -> None:
        """Serves until stop(). Raises CannotStart, after it has stopped what it had started."""
        settings = self._settings
        began = time.monotonic()
        with lock_file(settings.run_dir / "launcher.lock", "larder server"):
            self._check()
            try:
                if self._is_embedded:
                    self._start(self._redis_plan(self._take_password()))
                    self._wait_until_ready()
                self._forget_log_levels()
                self._start(self._engine_plan(), self._web_plan())
                self._wait_until_ready()
                if not self._asked_to_stop.is_set():
                    self._announce(time.monotonic() - began)
                while not self._asked_to_stop.wait(LOOK_INTERVAL_S):
                    self._look()
                logger.info("stopping")
            finally:
                self._stop_children()

    def _check(self) -> None:
        """What can be known before anything is started. Raises CannotStart naming the setting."""
        settings = self._settings
        check_port("http_port", settings.http_host, settings.http_port)
        check_port("port", settings.host, settings.port)
        if self._is_embedded:
            check_port("redis_port", "127.0.0.1", settings.redis_port)
        else:
            self._check_external_redis()

    def _check_external_redis(self) -> None:
        shown = mask_urls_in(self._settings.redis_url)
        give_up_at = time.monotonic() + REDIS_PATIENCE_S
        client = open_redis(self._settings.redis_url)
        try:
            while True:
                try:
                    problem = check_server(client)
                    break
                except RedisAway as error:
                    if isinstance(error.__cause__, redis.AuthenticationError):
                        raise CannotStart(f"redis_url: got {shown!r}, which does not let us in: {error}") from error
                    if time.monotonic() > give_up_at or self._asked_to_stop.wait(0.2):
                        raise CannotStart(f"redis_url: got {shown!r}, which does not answer: {error}") from error
        finally:
            client.close()
        if problem is not None:
            raise CannotStart(f"redis_url: got {shown!r}: {problem}")

    def _forget_log_levels(self) -> None:
        """Levels that were set at runtime end with the run; the settings count again."""
        client = open_redis(self._settings.redis_url)
        try:
            client.delete(Keys(self._settings.instance_id).loglevels)
        except redis.RedisError as error:
            logger.warning("log levels of the last run stay in Redis: %s", describe(error))
        finally:
            client.close()

    def _take_password(self) -> str:
        """The embedded Redis's password, which is from now on in the URL that all children get."""
        settings = self._settings
        password = embedded_redis.keep_password(settings.run_dir)
        self._settings = dataclasses.replace(settings, redis_url=embedded_redis.url(settings.redis_port, password))
        return password

    def _redis_plan(self, password: str) -> ChildPlan:
        directory = Path(self._settings.data_dir) / "redis"
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)  # its files hold commands and token ids, and are made for all to read
        (directory / embedded_redis.LOG_FILE).unlink(missing_ok=True)
        argv = embedded_redis.command(embedded_redis.find_binary(), self._settings.redis_port, directory)
        told = embedded_redis.configuration(password)
        return ChildPlan("redis", argv, self._environ_without_ours(), directory, self._redis_answers, 15.0, told)

    def _engine_plan(self) -> ChildPlan:
        argv = [sys.executable, "-m", "workers.engine_worker"]
        settings = self._settings
        if not settings.internal_api_server_enabled:
            settings = dataclasses.replace(settings, admin_token="", read_token="")
        stop_timeout_s = 60.0 + settings.write_back_drain_seconds
        return ChildPlan("engine", argv, self._child_environ(settings), ROOT, self._engine_is_ready, stop_timeout_s)

    def _web_plan(self) -> ChildPlan:
        argv = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app"]
        settings = dataclasses.replace(self._settings, l2_adapter=())
        return ChildPlan("web", argv, self._child_environ(settings), ROOT, self._web_answers, 15.0)

    def _environ_without_ours(self) -> dict[str, str]:
        """The launcher's own settings must not reach a child twice: flags were merged into them."""
        return {
            name: value
            for name, value in self._environ.items()
            if name == COMMIT_VARIABLE or (name != "REDIS_URL" and not name.startswith(ENVIRONMENT_PREFIX))
        }

    def _child_environ(self, settings: Settings) -> dict[str, str]:
        """For a child with these settings: without the secrets that it does not need."""
        return {**self._environ_without_ours(), **settings.as_environ()}

    def _redis_answers(self, pid: int) -> bool:
        """Whether it is the one that was started, and has read its data: until then it refuses all that is asked."""
        client = open_redis(self._settings.redis_url)
        try:
            found = client.info()
            return bool(found.get("process_id") == pid and not found.get("loading"))
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _engine_is_ready(self, pid: int) -> bool:
        record = read_file_record(self._settings.run_dir / RECORD_FILE)
        return record is not None and record.pid == pid and record.state == "ready"

    def _web_answers(self, pid: int) -> bool:
        return answers_http(self._settings.http_host, self._settings.http_port)

    def _start(self, *plans: ChildPlan) -> None:
        for plan in plans:
            if self._asked_to_stop.is_set():
                return
            child = Child(plan)
            self._children.append(child)
            try:
                child.start()
            except OSError as error:
                raise CannotStart(f"{plan.name} cannot be started: {error}") from error

    def _wait_until_ready(self) -> None:
        """Returns when every child is ready, or stop() was called. Raises CannotStart when one will never be."""
        began = time.monotonic()
        next_line_at = began + STILL_WAITING_S
        while waiting := [child for child in self._children if not child.is_ready]:
            if self._asked_to_stop.wait(LOOK_INTERVAL_S):
                return
            self._look()
            now = time.monotonic()
            if now > began + START_TIMEOUT_S:
                raise CannotStart(f"{waiting[0].name} is not ready after {START_TIMEOUT_S:.0f} s")
            if now > next_line_at:
                next_line_at = now + STILL_WAITING_S
                logger.info("still waiting for %s", ", ".join(child.name for child in waiting))

    def _end_stuck_engine(self) -> None:
        """A living engine that is of no use, frozen or with a data plane that does not turn, is killed.

        Its death is then handled like any other.
        """
        now, patience_s = time.monotonic(), self._settings.engine_stuck_seconds
        engine = next((child for child in self._children if child.name == "engine"), None)
        if not patience_s or engine is None or now < self._next_sound_check_at:
            return
        self._next_sound_check_at = now + SOUND_CHECK_INTERVAL_S
        record = read_file_record(self._settings.run_dir / RECORD_FILE)
        is_sound = record is not None and record.state != "failed" and record.is_alive(time.time())
        if is_sound or not engine.is_ready:
            self._sound_at = now
        elif now - self._sound_at > patience_s:
            why = record.error if record is not None and record.state == "failed" else "it does not beat"
            logger.error("engine has not been sound for %.0f s (%s), killing it", now - self._sound_at, why)
            engine.kill()

    def _look(self) -> None:
        self._end_stuck_engine()
        for child in self._children:
            code = child.check()
            if code is None or child.was_ready:
                continue
            if code == EXIT_CANNOT_START:
                raise WillNotStart(f"{child.name} could not start{self._reason(child)}")
            if child.failures_in_a_row >= START_ATTEMPTS:
                raise CannotStart(f"{child.name} could not start{self._reason(child)}")

    def _reason(self, child: Child) -> str:
        if child.name != "redis":
            return ", its own lines above say why"
        log = Path(self._settings.data_dir) / "redis" / embedded_redis.LOG_FILE
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return f"; the end of {log}: " + " / ".join(lines[-3:])

    def _announce(self, took_s: float) -> None:
        settings = self._settings
        rows = {
            "HTTP": f"{http_url(settings.http_host, settings.http_port)}, listening on {settings.http_host}",
            "data plane": f"tcp://{settings.host}:{settings.port}",
            "Redis": f"{mask_urls_in(settings.redis_url)}, {'started here' if self._is_embedded else 'external'}",
            "data": settings.data_dir,
        }
        if self._is_embedded:
            rows["Redis"] += f", password in {settings.run_dir / embedded_redis.PASSWORD_FILE}"
        logger.info("larder is up after %.1f s", took_s)
        for name, value in rows.items():
            logger.info("%-10s %s", name, value)

    def _stop_children(self) -> None:
        """Stops the latest first, then removes what a killed engine could not."""
        for child in reversed(self._children):
            child.stop()
        from engine.l1.segment import remove_stale_pools  # the launcher itself stays small

        remove_stale_pools(self._settings.shm_name)
        (self._settings.run_dir / RECORD_FILE).unlink(missing_ok=True)


def run_server(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """`larder server`: returns the exit code."""
    set_up_logging("launcher", "INFO")
    try:
        settings = load_settings(argv, environ)
        set_up_logging("launcher", settings.log_level)
        launcher = Launcher(settings, environ)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, launcher.stop)
        launcher.run()
    except (SettingError, CannotStart) as error:
        logger.error("cannot start: %s", error)
        return EXIT_CANNOT_START if isinstance(error, WillNotStart) else 1
    logger.info("stopped")
    return 0
