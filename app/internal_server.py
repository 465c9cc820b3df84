"""An HTTP server inside a process of its own kind: the engine worker, or an inference process that embeds the cache.

    index   process                          TCP                 Unix socket
    -----   ------------------------------   -----------------   ----------------------
    0       the engine worker, a scheduler   port_start          <prefix>_<port_start>
    1 + w   worker w of an inference engine  port_start + 1 + w  <prefix>_<its port>

The same routes as in the web tier where they are `common`, and those of `vllm` and `controller`. It answers from its
own process, so curl reaches it with Redis and gunicorn down. With a prefix there are Unix sockets alone, mode 0600.
"""

import asyncio
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from cheroot import wsgi
from flask import Flask

from app import close_app, create_app
from app.access import ON_UNIX_SOCKET
from app.backend import Backend
from app.config import AppConfig
from app.in_process_backend import InProcessBackend

__all__ = ["InProcessBackend", "InternalAPIConfig", "InternalAPIServer", "Manager"]

logger = logging.getLogger(__name__)

CATEGORIES = ("common", "vllm", "controller")
MANAGER = "larder_manager"
THREADS = 4
#: Connections beyond the threads that wait for one.
MAX_WAITING = 64
CLIENT_TIMEOUT_S = 10
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class InternalAPIConfig:
    """Settings `internal_api_server_*`. `include_index_list` empty: every index."""

    enabled: bool = False
    host: str = "0.0.0.0"
    port_start: int = 6999
    include_index_list: tuple[int, ...] = ()
    socket_path_prefix: str = ""
    access_log: bool = True
    log_level: str = "WARNING"
    admin_token: str = ""
    read_token: str = ""


class Manager(Protocol):
    """Who looks after the cache in this process."""

    @property
    def internal_api(self) -> InternalAPIConfig:
        """How to serve, and whether."""

    @property
    def internal_api_index(self) -> int:
        """0, or 1 + worker id."""

    @property
    def backend(self) -> Backend:
        """Whom the routes ask; closed by its owner."""


class InternalAPIServer:
    """`start` returns at once, `stop` ends it; both do nothing where the process is not to run one."""

    def __init__(self, lmcache_manager: Manager) -> None:
        self._manager = lmcache_manager
        self._config = config = lmcache_manager.internal_api
        index = lmcache_manager.internal_api_index
        self.port = config.port_start + index
        wanted = not config.include_index_list or index in config.include_index_list
        self.enabled = config.enabled and wanted
        self.socket_path = f"{config.socket_path_prefix}_{self.port}" if config.socket_path_prefix else ""
        self._server: wsgi.Server | None = None
        self._app: Flask | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Where it listens, for people."""
        return f"unix:{self.socket_path}" if self.socket_path else f"http://{self._config.host}:{self.port}"

    def start(self) -> None:
        """Listens from now on, in a daemon thread. Raises OSError when the address cannot be had."""
        if not self.enabled or self._server is not None:
            return
        config = self._config
        app_config = AppConfig(config.host, self.port, config.admin_token, config.read_token)
        self._app = create_app(app_config, self._manager.backend, CATEGORIES)
        self._app.extensions[MANAGER] = self._manager
        self._server = self._open(self._app)
        self._thread = threading.Thread(target=self._server.serve, name="larder-internal-api", daemon=True)
        self._thread.start()
        logger.info("internal API server %d: %s", self._manager.internal_api_index, self.address)

    def stop(self) -> None:
        """Ends what is being answered, and removes the socket file."""
        if self._server is None or self._thread is None or self._app is None:
            return
        self._server.stop()
        self._thread.join(STOP_TIMEOUT_S)
        close_app(self._app)
        self._server = None
        if self.socket_path:
            _remove_socket(self.socket_path)

    async def run(self) -> None:
        """Serves until cancelled."""
        self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(self.stop)

    def _open(self, app: Flask) -> wsgi.Server:
        where: Any = (self._config.host, self.port)
        served: Any = app
        if self.socket_path:
            os.makedirs(os.path.dirname(os.path.abspath(self.socket_path)), mode=0o700, exist_ok=True)
            _remove_socket(self.socket_path)
            where, served = self.socket_path, _OnUnixSocket(app)
        if self._config.access_log and self._config.log_level in ("DEBUG", "INFO"):
            served = _Logged(served)
        server = wsgi.Server(
            where,
            served,
            numthreads=THREADS,
            max=THREADS,
            request_queue_size=MAX_WAITING,
            timeout=CLIENT_TIMEOUT_S,
            accepted_queue_size=MAX_WAITING,
            accepted_queue_timeout=1,
        )
        before = os.umask(0o177) if self.socket_path else None
        try:
            server.prepare()
        finally:
            if before is not None:
                os.umask(before)
        return server


def _remove_socket(path: str) -> None:
    """A socket that a dead process left, or ours. Anything else at this place is somebody's and stays."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _answers(path):
            os.unlink(path)
    except FileNotFoundError:
        pass


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


class _OnUnixSocket:
    """Tells access that the connection came over the socket file, whose mode says who may."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[ON_UNIX_SOCKET] = True
        return self._app(environ, start_response)  # type: ignore[no-any-return]


class _Logged:
    """One line per request."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def logged(status: str, *rest: Any) -> Any:
            peer = environ.get("REMOTE_ADDR") or "unix"
            logger.info("%s %s %s %s", peer, environ["REQUEST_METHOD"], environ["PATH_INFO"], status)
            return start_response(status, *rest)

        return self._app(environ, logged)  # type: ignore[no-any-return]
