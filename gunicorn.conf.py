"""How gunicorn runs the web tier. `gunicorn -c gunicorn.conf.py wsgi:app`; settings come from the environment.

Threads, because a command may wait for the engine while probes must be answered. Preloaded, because two workers then
share most of their memory; nothing connects or starts a thread before the fork.
"""

import os
import shutil
import socket
import struct
from pathlib import Path

from gunicorn.config import Config
from gunicorn.glogging import Logger

import app
from app import metrics
from contract.log_lines import LineFormatter
from contract.loopback import is_loopback_host
from contract.settings import SettingError, load_settings

try:
    _settings = load_settings(None, os.environ)
except SettingError as error:
    raise SystemExit(f"larder: {error}") from None
_on_unix_socket = _settings.http_host.startswith("unix:")
_host = f"[{_settings.http_host}]" if ":" in _settings.http_host else _settings.http_host
_metrics_dir = _settings.run_dir / "http_metrics"
# A client that stays silent inside a request gives its thread back after the first; one that does not read its answer,
# after the second. Probes wait meanwhile if there are more such clients than threads.
_SILENT_CLIENT_S = 3
_DEAF_CLIENT_S = 20


class _Log(Logger):
    """gunicorn's own lines, in our form; they may quote what a client sent."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(LineFormatter("web %(process)d"))


bind = _settings.http_host if _on_unix_socket else f"{_host}:{_settings.http_port}"
# Files, and a Unix socket, are for this user only.
umask = 0o077
worker_class = "gthread"
workers = _settings.web_workers
threads = _settings.web_threads
preload_app = True
proc_name = f"larder-web-{_settings.instance_id}"
keepalive = 15
timeout = 30
graceful_timeout = 10
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # its file is unlinked as soon as it is open
# It would be one path for all gunicorns of a user.
control_socket_disable = True
limit_request_line = 8190
# Nobody may rewrite the peer's scheme, path or prefix by a header: access is decided from the connection.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
header_map = "refuse"
accesslog = None
errorlog = "-"
logger_class = _Log
loglevel = _settings.log_level.lower()

# Read by prometheus_client when the app is imported, in the master and so for all workers.
_metrics_dir.mkdir(parents=True, exist_ok=True)
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics_dir)


def when_ready(server) -> None:
    """The address is ours now and no worker runs yet: the last run's counts go, and an open door is announced."""
    _empty(_metrics_dir)
    metrics.begin_run()
    # Accepted connections inherit them.
    patience = {socket.SO_RCVTIMEO: _SILENT_CLIENT_S, socket.SO_SNDTIMEO: _DEAF_CLIENT_S}
    for listener in server.LISTENERS:
        if listener.sock.family == socket.AF_UNIX:
            os.chmod(listener.cfg_addr, 0o600)
        for option, seconds in patience.items():
            listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
    if not _on_unix_socket and not is_loopback_host(_settings.http_host) and not _settings.admin_token:
        server.log.warning(
            "HTTP listens on %s and LARDER_ADMIN_TOKEN is not set: admin routes answer this machine only, "
            "all others anybody; behind a proxy, a sidecar or a port-forward set a token",
            bind,
        )


def pre_fork(server, worker) -> None:
    """Gives the worker the lowest place that no live worker has, so that it goes on with a dead one's counts."""
    taken = {other.larder_place for other in server.WORKERS.values()}
    worker.larder_place = next(place for place in range(len(taken) + 1) if place not in taken)


def post_fork(server, worker) -> None:
    metrics.take_place(worker.larder_place)
    Path("/proc/self/comm").write_text(f"larder-web-{worker.larder_place}")


def post_worker_init(worker) -> None:
    app.start_loops(worker.wsgi)


def worker_exit(server, worker) -> None:
    """Also called for a worker that never loaded the application."""
    loaded = getattr(worker, "wsgi", None)
    if loaded is not None:
        app.close_app(loaded)


def on_exit(server) -> None:
    shutil.rmtree(_metrics_dir, ignore_errors=True)


def _empty(directory: Path) -> None:
    for file in directory.glob("*.db"):
        file.unlink(missing_ok=True)
