"""Log levels that were changed at runtime: kept in Redis, applied by every process to its own loggers.

A process that speaks for itself alone may also set one while Redis is away; the hash, and so the others, get it later.

The hash has logger -> level. A process applies what it finds there, and gives a logger back the level it had once its
field is gone; nothing else touches the levels of a running process. Loggers belong to the process, so there is one
`APPLIED` per process.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import cast

import redis

from contract.errors import RedisAway
from contract.keys import Keys
from contract.redis_client import describe

logger = logging.getLogger(__name__)

ROOT = "root"
LEVELS: Mapping[str, int] = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
    "NOTSET": logging.NOTSET,
}
#: As many loggers may have a level of their own in the hash, with names of this length.
MAX_LOGGERS = 200
MAX_NAME_CHARACTERS = 200

# KEYS: loglevels. ARGV: logger, level, most loggers[, what the field said before]
_SET = """
local now = redis.call('HGET', KEYS[1], ARGV[1])
if now and ARGV[4] and now ~= ARGV[4] and now ~= ARGV[2] then return now end
if not now and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


def is_logger_name(name: str) -> bool:
    """Whether a level may be set for it."""
    return 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable()


def effective_level(name: str) -> str:
    """The level by which a logger of this process decides; one that is not there decides as its nearest parent.

    The logger is not made: names come from callers, and a logger stays for ever.
    """
    loggers, place = logging.root.manager.loggerDict, "" if name == ROOT else name
    while place:
        logger = loggers.get(place)
        if isinstance(logger, logging.Logger) and logger.level:
            return logging.getLevelName(logger.level)
        place = place.rpartition(".")[0]
    return logging.getLevelName(logging.root.level)


def has_logger(name: str) -> bool:
    """Whether this process has a logger of this name."""
    return name == ROOT or isinstance(logging.root.manager.loggerDict.get(name), logging.Logger)


def all_levels() -> dict[str, str]:
    """The effective level of every logger of this process, the root logger included."""
    loggers = list(logging.root.manager.loggerDict.items())
    names = sorted(name for name, logger in loggers if isinstance(logger, logging.Logger))
    return {name: effective_level(name) for name in (ROOT, *names)}


def read_levels(client: redis.Redis, keys: Keys) -> dict[str, str]:
    """The hash. Raises RedisAway."""
    try:
        return cast(dict[str, str], client.hgetall(keys.loglevels))
    except redis.RedisError as error:
        raise RedisAway(describe(error)) from error


def write_level(client: redis.Redis, keys: Keys, name: str, level: str) -> bool:
    """Sets a field; False when MAX_LOGGERS others have one. Raises RedisAway."""
    return not hand_on_level(client, keys, name, level, None)


def hand_on_level(client: redis.Redis, keys: Keys, name: str, level: str, known: str | None) -> str:
    """`write_level` of what was set earlier, unless somebody has set the field since: it said `known` then, "" without
    a field, None when that is not known. Returns why it is not set, "" when it is. Raises RedisAway."""
    told = () if known is None else (known,)
    try:
        done = client.eval(_SET, 1, keys.loglevels, name, level, str(MAX_LOGGERS), *told)
    except redis.RedisError as error:
        raise RedisAway(describe(error)) from error
    if done == 1:
        return ""
    return f"{done} was set since" if done else "too many loggers have one"


class AppliedLevels:
    """Which levels this process has taken from the hash, and what they replaced. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._applied: dict[str, str] = {}
        #: What the hash said last, None before the first time.
        self._known: dict[str, str] | None = None
        #: Levels, each with what was known of its field when it was set.
        self._untold: dict[str, tuple[str, str | None]] = {}
        self._before: dict[str, tuple[int, dict[logging.Handler, int]]] = {}

    def sync(self, read: Callable[[], Mapping[str, str]]) -> None:
        """Makes the loggers what `read` says now. What it raises passes through and changes nothing."""
        with self._lock:
            # Inside, so that an older answer is never applied after a newer one.
            self._known = dict(read())
            alone = {name: level for name, (level, _) in self._untold.items()}
            wanted = dict(list(({**alone, **_usable(self._known)} | alone).items())[:MAX_LOGGERS])
            for name, level in wanted.items():
                if self._applied.get(name) != level:
                    self._set(name, level)
            for name in self._applied.keys() - wanted.keys():
                self._restore(name)
            self._set_handlers()

    def levels(self) -> dict[str, str]:
        """Which are applied now: a `sync` with these changes nothing."""
        with self._lock:
            return dict(self._applied)

    def apply(self, name: str, level: str) -> bool:
        """Sets one, where no hash is followed; False when MAX_LOGGERS others have one."""
        with self._lock:
            if name not in self._applied and len(self._applied) >= MAX_LOGGERS:
                return False
            self._set(name, level)
            self._set_handlers()
            return True

    def apply_alone(self, name: str, level: str) -> bool:
        """`apply` while the hash cannot be written: it counts here, whatever the hash says, until it is told."""
        with self._lock:
            if not self.apply(name, level):
                return False
            self._untold[name] = level, None if self._known is None else self._known.get(name, "")
            return True

    def write(self, name: str, level: str, write: Callable[[str, str], bool]) -> bool:
        """Has `write` set a field of the hash, which from then on decides about this logger again; False when it says
        so. What it raises passes through."""
        with self._lock:
            # Inside, so that what was set alone before is not handed on after it.
            if not write(name, level):
                return False
            self._note(name, level)
            return True

    def tell(self, hand_on: Callable[[str, str, str | None], str]) -> None:
        """Hands to the hash what was set without it, and what was known of the field then; gives up what it does not
        take, which `hand_on` returns the reason of. What that raises passes through: the rest waits for the next
        time."""
        with self._lock:
            for name, (level, known) in list(self._untold.items()):
                if reason := hand_on(name, level, known):
                    logger.warning("the level %s of %s, set here alone, is given up: %s", level, name, reason)
                self._note(name, level)

    def _note(self, name: str, level: str) -> None:
        """The hash knows of it."""
        self._untold.pop(name, None)
        if self._known is not None:
            self._known[name] = level

    def _set(self, name: str, level: str) -> None:
        logger = logging.getLogger(name)
        if name not in self._before:
            self._before[name] = (logger.level, {handler: handler.level for handler in logger.handlers})
        logger.setLevel(LEVELS[level])
        self._applied[name] = level

    def _set_handlers(self) -> None:
        """The handlers of a logger let through what it was set to, and what a logger below it was: that one's records
        come to them, too, and nobody would see them otherwise."""
        for name, level in self._applied.items():
            handlers = logging.getLogger(name).handlers
            if not handlers:
                continue
            below = [LEVELS[other] for place, other in self._applied.items() if _is_below(place, name)]
            lowest = min([LEVELS[level], *filter(None, below)])
            for handler in handlers:
                handler.setLevel(lowest)

    def _restore(self, name: str) -> None:
        logger = logging.getLogger(name)
        level, handlers = self._before.pop(name)
        logger.setLevel(level)
        for handler in logger.handlers:
            handler.setLevel(handlers.get(handler, handler.level))
        del self._applied[name]


def _is_below(place: str, name: str) -> bool:
    return place != name and (name == ROOT or place.startswith(f"{name}."))


def _usable(fields: Mapping[str, str]) -> dict[str, str]:
    """What a person wrote into the hash that is no level, or no name, does not count."""
    return {name: level for name, level in fields.items() if level in LEVELS and is_logger_name(name)}


APPLIED = AppliedLevels()
