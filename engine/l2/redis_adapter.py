"""Objects as string values in Redis or Valkey, one server or a cluster.

    key_prefix + model@rank@group@abcdef…[@salt]   →   the record, set by one SET (with EX where there is a TTL)

No call is repeated by the library, and each has a timeout. A connection that the server closed meanwhile is noticed
before it is used. The order of use is what the server knows of idle times, which it forgets when it restarts. A server
that cannot be reached at the start is a warning; one that refuses us stops the start.

what went wrong                                                 raised as
--------------------------------------------------------------  ---------------------------------
no connection, a timeout, loading, cluster down, slots missing  ConnectionFault
OOM: maxmemory is reached                                       StorageFull
everything else: wrong password or certificate, no right        OSError with the server's own words
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import AuthorizationError, ClusterDownError, RedisClusterException, SlotNotCoveredError
from redis.retry import Retry

from engine.l2.base import Buffers, ConnectionFault, L2Adapter, StorageFull, Stored, total_bytes
from engine.l2.object_name import is_digest_name, key_of_name, name_of
from engine.l2.record import HEADER_BYTES, key_of
from engine.object_key import ObjectKey

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: The longest string a server takes unless it is told otherwise (proto-max-bulk-len).
MAX_VALUE_BYTES = 512 << 20
MAX_CONNECTIONS = 64
SCAN_COUNT = 1000
#: Bytes taken from the socket at a time.
READ_BYTES = 1 << 20
MAX_WORDS = 300
_AWAY_WORDS = ("LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN")


@dataclass(frozen=True)
class RedisConfig:
    """A `url` (redis://, rediss:// with TLS, unix://) or `host` and `port`. What the url says counts more.

    `cluster` follows a cluster from that node; `more_nodes` ("host:port") are asked when it is away. `tls_ca_file`
    names a certificate of one's own authority, `tls_cert_file` and `tls_key_file` one's own certificate.
    `ttl_seconds` counts from the writing, 0 = for ever. `max_bytes` 0 = without a limit.
    """

    url: str = field(default="", repr=False)
    host: str = ""
    port: int = 6379
    username: str = ""
    password: str = field(default="", repr=False)
    cluster: bool = False
    more_nodes: list[str] = field(default_factory=list)
    key_prefix: str = "larder-l2:"
    tls: bool = False
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    ttl_seconds: int = 0
    connect_timeout_s: float = 1.0
    request_timeout_s: float = 5.0
    max_bytes: int = 0

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.host):
            raise ValueError("either url or host is needed, and not both")
        if self.url and not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("url begins neither with redis:// nor with rediss:// nor with unix://")
        if not _has_good_port(self.url):
            raise ValueError("url has a port that is no number")
        if self.cluster and self.url.startswith("unix://"):
            raise ValueError("a cluster is not reached through a Unix socket")
        if self.connect_timeout_s <= 0 or self.request_timeout_s <= 0:
            raise ValueError("connect_timeout_s and request_timeout_s must be above 0")
        if self.ttl_seconds < 0:
            raise ValueError(f"ttl_seconds is {self.ttl_seconds}, allowed is 0 or more")
        for node in self.more_nodes:
            if not re.fullmatch(r"\S+:\d+", str(node)):
                raise ValueError("more_nodes has something else than texts like host:port")


def _has_good_port(url: str) -> bool:
    """Python's own words for a bad port show a piece of a password that holds a slash."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True


class RedisAdapter(L2Adapter):
    """See the module's text. The client is opened with the first call, and safe to use from any thread."""

    type_name: ClassVar[str] = "redis"
    config_class = RedisConfig

    def __init__(self, config: RedisConfig) -> None:
        """Raises OSError when the server refuses us."""
        self._config = config
        self._prefix = config.key_prefix.encode()
        self._client: Any = None
        self._opening = threading.Lock()
        try:
            self._call(lambda client: client.exists(self._prefix + b"@nothing"))
        except ConnectionFault as fault:
            logger.warning("redis adapter: %s; going on without it until it answers", fault)

    def _name(self, key: ObjectKey) -> bytes:
        return self._prefix + name_of(key).encode()

    def exists(self, key: ObjectKey) -> bool:
        return bool(self._call(lambda client: client.exists(self._name(key))))

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        value = self._call(lambda client: client.get(self._name(key)))
        if value is None:
            return None
        if len(value) == total_bytes(into):
            at, whole = 0, memoryview(value)
            for buffer in into:
                buffer[:] = whole[at : at + len(buffer)]
                at += len(buffer)
        return len(value)

    def write(self, key: ObjectKey, data: Buffers) -> None:
        size = total_bytes(data)
        if size > MAX_VALUE_BYTES:
            raise OSError(f"{self._place}: a value has at most {MAX_VALUE_BYTES} bytes, this would have {size}")
        value, ttl_s = b"".join(data), self._config.ttl_seconds or None
        self._call(lambda client: client.set(self._name(key), value, ex=ttl_s))

    def delete(self, key: ObjectKey) -> bool:
        return bool(self._call(lambda client: client.unlink(self._name(key))))

    def scan(self) -> Iterator[Stored]:
        """SCAN may name a key twice while the server rearranges its table; it is yielded once."""
        seen: set[bytes] = set()
        for server in self._call(_servers):
            cursor = -1
            while cursor != 0:
                cursor, names = self._page(server, max(cursor, 0))
                fresh = [name for name in dict.fromkeys(names) if name not in seen]
                seen.update(fresh)
                yield from self._stored(server, fresh)

    def _page(self, server: "redis.Redis", cursor: int) -> tuple[int, list[bytes]]:
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b"*"
        found: Any = self._guarded(lambda: server.scan(cursor, match=pattern, count=SCAN_COUNT, _type="string"))
        return int(found[0]), list(found[1])

    def _stored(self, server: "redis.Redis", names: list[bytes]) -> Iterator[Stored]:
        """Those of `names` that are objects of ours: sizes and idle times in one round trip.

        The idle time is asked first: asking for the length ends it.
        """
        keys = {name: self._key_of(server, name) for name in names}
        ours = [(name, key) for name, key in keys.items() if key is not None]
        if not ours:
            return
        pipeline = server.pipeline(transaction=False)
        for name, _ in ours:
            pipeline.object("idletime", name)
            pipeline.strlen(name)
        answers = self._guarded(lambda: pipeline.execute(raise_on_error=False))
        now = time.time()
        for (_, key), idle_s, size in zip(ours, answers[::2], answers[1::2], strict=True):
            if isinstance(size, int) and size > 0:
                yield Stored(key, size, now - idle_s if isinstance(idle_s, int) else now)

    def _key_of(self, server: "redis.Redis", name: bytes) -> ObjectKey | None:
        try:
            text = name[len(self._prefix) :].decode()
        except UnicodeDecodeError:
            return None
        if not is_digest_name(text):
            return key_of_name(text)
        header: Any = self._guarded(lambda: server.getrange(name, 0, HEADER_BYTES - 1))
        key = key_of(memoryview(header)) if len(header) == HEADER_BYTES else None
        return key if key is not None and name_of(key) == text else None

    def capacity_bytes(self) -> int | None:
        return self._config.max_bytes or None

    @property
    def _place(self) -> str:
        config, parts = self._config, urlsplit(self._config.url)
        if parts.scheme == "unix":
            return parts.path
        return f"{parts.hostname}:{parts.port or 6379}" if config.url else f"{config.host}:{config.port}"

    def describe(self) -> dict[str, object]:
        config = self._config
        return {
            "server": self._place,
            "cluster": config.cluster,
            "key_prefix": config.key_prefix,
            "tls": config.tls or config.url.startswith("rediss://"),
            "ttl_seconds": config.ttl_seconds,
        }

    def close(self) -> None:
        with self._opening:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, verb: Callable[[Any], Answer]) -> Answer:
        return self._guarded(lambda: verb(self._open()))

    def _open(self) -> Any:
        """The client, made on first need: that of a cluster asks for the cluster's map, so its making may fail.

        Nobody waits while another thread makes one; of two that were made at once one is closed.
        """
        if self._client is not None:
            return self._client
        made = _open_client(self._config)
        with self._opening:
            if self._client is None:
                self._client = made
                return made
        made.close()
        return self._client

    def _guarded(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except (redis.RedisError, RedisClusterException, OSError, ValueError) as error:
            self._raise(error)

    def _raise(self, error: Exception) -> NoReturn:
        """Raises what the table above says. The library's error, which keeps a connection, is let go."""
        words = f"{self._place}: {type(error).__name__}: {error}".replace("\n", " ")[:MAX_WORDS]
        if isinstance(error, redis.OutOfMemoryError) or str(error).startswith("OOM "):
            raise StorageFull(words) from None
        if _is_away(error):
            raise ConnectionFault(words) from None
        raise OSError(words) from None


def _is_away(error: BaseException) -> bool:
    """Whether nobody answered, or only that the data cannot be reached."""
    if isinstance(error, redis.AuthenticationError | AuthorizationError) or "CERTIFICATE_VERIFY" in str(error):
        return False
    if isinstance(error, RedisClusterException) and not isinstance(error, SlotNotCoveredError):
        # No map of the cluster: a part of it is away, or the cause says why.
        return "not covered" in str(error) or (error.__cause__ is not None and _is_away(error.__cause__))
    away = (redis.ConnectionError, redis.TimeoutError, ClusterDownError, SlotNotCoveredError, OSError)
    return isinstance(error, away) or str(error).startswith(_AWAY_WORDS)


def _servers(client: Any) -> list[redis.Redis]:
    """Who has to be asked to see every key."""
    is_cluster = isinstance(client, RedisCluster)
    return [client.get_redis_connection(node) for node in client.get_primaries()] if is_cluster else [client]


def _open_client(config: RedisConfig) -> Any:
    """A client that repeats nothing by itself. Raises what redis-py raises."""
    options: dict[str, Any] = {
        "socket_connect_timeout": config.connect_timeout_s,
        "socket_timeout": config.request_timeout_s,
        "socket_read_size": READ_BYTES,
        "max_connections": MAX_CONNECTIONS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": False,
    }
    if config.username:
        options["username"] = config.username
    if config.password:
        options["password"] = config.password
    secure = config.tls or config.url.startswith("rediss://")
    if secure:
        files = {"ssl_ca_certs": config.tls_ca_file, "ssl_certfile": config.tls_cert_file}
        files["ssl_keyfile"] = config.tls_key_file
        options.update({name: path for name, path in files.items() if path})
    if config.cluster:
        return _open_cluster(config, {**options, "ssl": True} if secure else options)
    if config.url:
        url = re.sub(r"^redis://", "rediss://", config.url) if config.tls else config.url
        return redis.Redis.from_url(url, **options)
    return redis.Redis(config.host, config.port, ssl=secure, **options)


def _open_cluster(config: RedisConfig, options: dict[str, Any]) -> RedisCluster:
    parts = urlsplit(config.url)
    for name in ("username", "password"):
        if said := getattr(parts, name):
            options[name] = unquote(said)
    first = f"{parts.hostname}:{parts.port or 6379}" if config.url else f"{config.host}:{config.port}"
    nodes = []
    for address in (first, *config.more_nodes):
        host, _, port = address.rpartition(":")
        nodes.append(ClusterNode(host, int(port)))  # type: ignore[no-untyped-call]
    return RedisCluster(startup_nodes=nodes, **options)
