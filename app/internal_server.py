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

from cheroot.errors import MaxSizeExceeded
from flask import Flask

from app import close_app, create_app
from app.access import ON_UNIX_SOCKET
from app.backend import Backend
from app.config import AppConfig
from app.errors import refuse_as
from app.http_server import BoundedServer
from app.in_process_backend import InProcessBackend
from app.lone_backend import LoneBackend
from contract.loopback import is_loopback_host

__all__ = ["InProcessBackend", "InternalAPIConfig", "InternalAPIServer", "LoneBackend", "Manager"]

logger = logging.getLogger(__name__)

CATEGORIES = ("common", "vllm", "controller")
SOCKET_MODE = 0o600
DIRECTORY_MODE = 0o700
MAX_LOGGED_PATH = 300


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
    run_script_enabled: bool = False


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
        self.config = config = lmcache_manager.internal_api
        index = lmcache_manager.internal_api_index
        self.port = config.port_start + index
        wanted = not config.include_index_list or index in config.include_index_list
        self.enabled = config.enabled and wanted
        self.socket_path = f"{config.socket_path_prefix}_{self.port}" if config.socket_path_prefix else ""
        self._server: BoundedServer | None = None
        self._app: Flask | None = None
        self._socket_file = (0, 0)
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens, for people."""
        return f"unix:{self.socket_path}" if self.socket_path else f"http://{self.config.host}:{self.port}"

    def start(self) -> None:
        """Answers from now on, in daemon threads. Raises OSError when the address cannot be had, ValueError for a route
        that cannot be served."""
        with self._lock:
            if not self.enabled or self._server is not None:
                return
            config = self.config
            app_config = AppConfig(
                config.host,
                self.port,
                config.admin_token,
                config.read_token,
                run_script_enabled=config.run_script_enabled,
            )
            listener = self._listen()
            try:
                self._app = create_app(app_config, self._manager.backend, CATEGORIES)
                refuse_as(self._app, MaxSizeExceeded, 413, f"the body is larger than {app_config.max_body_bytes} bytes")
            except BaseException:
                listener.close()
                self._remove_own_socket()
                raise
            self._server = self._make_server(self._app, listener)
            self._server.begin()
        logger.info("internal API server %d: %s", self._manager.internal_api_index, self.address)
        if not self.socket_path and not is_loopback_host(config.host) and not config.admin_token:
            logger.warning(
                "internal API server %d listens on %s without an admin token: admin routes answer this machine only, "
                "all others anybody; behind a proxy, a sidecar or a port-forward set a token",
                self._manager.internal_api_index,
                self.address,
            )

    def stop(self) -> None:
        """Lets answers under way finish for a while, ends the rest, and removes the socket file."""
        with self._lock:
            server, self._server = self._server, None
            if server is None or self._app is None:
                return
            server.end()
            close_app(self._app)
            self._remove_own_socket()

    async def run(self) -> None:
        """Serves until cancelled; returns at once where it is not to run."""
        self.start()
        if self._server is None:
            return
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(self.stop)

    def _make_server(self, app: Flask, listener: socket.socket) -> BoundedServer:
        config, index = self.config, self._manager.internal_api_index
        log = logging.getLogger(f"{__name__}.{index}")
        log.setLevel(config.log_level)
        served: Any = _OnUnixSocket(app) if self.socket_path else app
        if config.access_log:
            served = _Logged(served, log)
        name = f"larder-internal-api-{index}"
        return BoundedServer(listener, served, name=name, max_body_bytes=app.config["MAX_CONTENT_LENGTH"], log=log)

    def _listen(self) -> socket.socket:
        if not self.socket_path:
            return _bound_to(self.config.host, self.port)
        os.makedirs(os.path.dirname(os.path.abspath(self.socket_path)), mode=DIRECTORY_MODE, exist_ok=True)
        _remove_stale_socket(self.socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Before it is bound, the mode that its file will have: at no moment may others connect.
            os.fchmod(listener.fileno(), SOCKET_MODE)
            listener.bind(self.socket_path)
            found = os.lstat(self.socket_path)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, error.strerror or str(error)) from error
        self._socket_file = (found.st_dev, found.st_ino)
        return listener

    def _remove_own_socket(self) -> None:
        """Not what another process has put there meanwhile."""
        try:
            found = os.lstat(self.socket_path) if self.socket_path else None
            if found is not None and (found.st_dev, found.st_ino) == self._socket_file:
                os.unlink(self.socket_path)
        except FileNotFoundError:
            pass


def _bound_to(host: str, port: int) -> socket.socket:
    """A TCP socket of the first address that a host name has."""
    passive = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = passive[0]
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale_socket(path: str) -> None:
    """What a dead process left. A socket that answers, and what is no socket, is somebody's: OSError when binding."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _answers(path):
            os.unlink(path)
    except FileNotFoundError:
        pass


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # Its queue is full: somebody listens.
            return True
        return True


class _OnUnixSocket:
    """Tells access that the connection came over the socket file, whose mode says who may."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[ON_UNIX_SOCKET] = True
        return self._app(environ, start_response)  # type: ignore[no-any-return]


class _Logged:
    """One line per request at level INFO."""

    def __init__(self, app: Any, log: logging.Logger) -> None:
        self._app, self._log = app, log

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def logged(status: str, *rest: Any) -> Any:
            peer = environ.get("REMOTE_ADDR") or "unix"
            # A path may hold line feeds, and WSGI hands it over as latin-1.
            path = ascii(environ["PATH_INFO"])[:MAX_LOGGED_PATH]
            self._log.info("%s %s %s %s", peer, environ["REQUEST_METHOD"], path, status)
            return start_response(status, *rest)

        return self._app(environ, logged)  # type: ignore[no-any-return]
