"""The one place that opens a Redis connection.

Two clients per process: one for everything that answers at once (1 s to answer), one for blocking reads (its
socket waits longer than the longest block). Neither repeats a call by itself: a lost reply to an XADD must not
become two entries. Both share nothing with a forked child, so open them after the fork.
"""

import re

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.errors import RedisAway
from contract.mask_text import mask_text

CALL_TIMEOUT_S = 1.0
OLDEST_VERSION = (6, 2)
# More than the threads of a process ever need: one connection per waiting thread.
MAX_CONNECTIONS = 256


def open_redis(url: str, *, timeout_s: float = CALL_TIMEOUT_S) -> redis.Redis:
    """A client for calls that answer at once. Nothing is connected before the first call."""
    return _open(url, connect_timeout_s=timeout_s, answer_timeout_s=timeout_s)


def open_blocking_redis(url: str, *, block_s: float) -> redis.Redis:
    """A client for calls that may block up to `block_s` seconds in the server."""
    return _open(url, connect_timeout_s=CALL_TIMEOUT_S, answer_timeout_s=block_s + CALL_TIMEOUT_S)


def _open(url: str, *, connect_timeout_s: float, answer_timeout_s: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=connect_timeout_s,
        socket_timeout=answer_timeout_s,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        protocol=2,
        max_connections=MAX_CONNECTIONS,
    )


def redis_time_s(client: redis.Redis) -> float:
    """Redis's clock, seconds since 1970."""
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6


def check_server(client: redis.Redis) -> str | None:
    """What makes this server unfit, or None. Raises RedisAway when it cannot be asked."""
    try:
        server = client.info("server")
        memory = client.info("memory")
    except redis.RedisError as error:
        raise RedisAway(describe(error)) from error
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_VERSION:
        return f"Redis {version} is too old, 6.2 or newer is needed"
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        return f"Redis has maxmemory-policy {policy}, which may drop queued commands; noeviction is needed"
    return None


def describe(error: Exception) -> str:
    """One line on what failed, without its secrets."""
    return mask_text(f"{type(error).__name__}: {error}".replace("\n", " "))
