"""Objects in an S3 bucket: AWS, and whatever speaks its protocol.

    prefix/ab/model@rank@group@abcdef…[@salt]        ab: the first two hex digits of the chunk hash

One PUT per object, which S3 makes visible whole or not at all. A GET is streamed into the caller's buffers. The order
of use is the order of writing. A bucket that is not there, or refuses us, stops the start; a storage that cannot be
reached then is a warning, since it may come back and the cache is of use without it.

what went wrong                                                raised as
-------------------------------------------------------------  ---------------------------
no connection, a timeout, 429, 5xx                             ConnectionFault
507, or an error code that speaks of a quota                   StorageFull
everything else: 403, no such bucket, an unknown certificate   OSError with S3's own words
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.parse import urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError, InvalidPathError
from obstore.store import S3Store

from engine.l2.base import Buffers, ConnectionFault, L2Adapter, StorageFull, Stored, total_bytes
from engine.l2.object_name import is_digest_name, key_of_name, name_of
from engine.l2.record import HEADER_BYTES, key_of
from engine.object_key import ObjectKey

if TYPE_CHECKING:
    from obstore.store import ClientConfig

logger = logging.getLogger(__name__)

#: The library repeats what failed at once (a connection closed meanwhile, a 503), but nothing that took its time.
RETRIES = 2
RETRY_WINDOW_S = 1.0
#: Bytes handed over at a time while an object is read.
READ_BYTES = 1 << 20
#: S3 lists as many names at a time.
LIST_PAGE = 1000
#: A name that no object of ours has, to ask about.
NO_OBJECT = "@nothing"
MAX_WORDS = 300
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_CAUSE = re.compile(r"(?:kind: |InvalidCertificate\(\s*)(?!Request|Other|Custom)(\w+)")
_USER_INFO = re.compile(r"//[^/\s]*@")
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})


@dataclass(frozen=True)
class S3Config:
    """What is empty is taken from the environment: AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL and so on.

    `allow_http` permits an endpoint without TLS. `unsigned_payload` saves hashing what is sent, which TLS protects
    anyway. `ca_file` names a certificate of one's own authority. `max_bytes` 0 = without a limit.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    virtual_hosted_style: bool = False
    allow_http: bool = False
    ca_file: str = ""
    unsigned_payload: bool = False
    connect_timeout_s: float = 2.0
    request_timeout_s: float = 30.0
    max_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.bucket:
            raise ValueError("bucket is empty")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint begins neither with https:// nor with http://")
        if self.endpoint.startswith("http://") and not self.allow_http:
            raise ValueError("endpoint is without TLS, which allow_http has to permit")
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.connect_timeout_s <= 0 or self.request_timeout_s <= 0:
            raise ValueError("connect_timeout_s and request_timeout_s must be above 0")
        if any(part in ("", ".", "..") for part in self.prefix.strip("/").split("/")) and self.prefix.strip("/"):
            raise ValueError(f"prefix {self.prefix!r} has an empty part, '.' or '..'")


class S3Adapter(L2Adapter):
    """See the module's text. The store is safe to use from any thread."""

    type_name: ClassVar[str] = "s3"
    config_class = S3Config

    def __init__(self, config: S3Config) -> None:
        """Raises OSError when the bucket is missing or refuses us."""
        self._config = config
        self._prefix = config.prefix.strip("/") + "/" if config.prefix.strip("/") else ""
        self._store = _open_store(config)
        try:
            for _ in obstore.list(self._store, self._prefix + NO_OBJECT, chunk_size=1):
                break
        except BaseError as error:
            try:
                self._raise(error)
            except ConnectionFault as fault:
                logger.warning("s3 adapter: %s; going on without it until it answers", fault)

    def _path(self, key: ObjectKey) -> str:
        return f"{self._prefix}{key.chunk_hash[:1].hex() or '00'}/{name_of(key)}"

    def exists(self, key: ObjectKey) -> bool:
        try:
            obstore.head(self._store, self._path(key))
        except FileNotFoundError:
            return False
        except BaseError as error:
            self._raise(error)
        return True

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        try:
            found = obstore.get(self._store, self._path(key))
            size = int(found.meta["size"])
            if size != total_bytes(into):
                return size
            return _copy(found.stream(min_chunk_size=READ_BYTES), into)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                self._raise(error)
            return None
        except BaseError as error:
            self._raise(error)

    def write(self, key: ObjectKey, data: Buffers) -> None:
        try:
            obstore.put(self._store, self._path(key), list(data), use_multipart=False)
        except (FileNotFoundError, BaseError) as error:
            self._raise(error)

    def delete(self, key: ObjectKey) -> bool:
        if not self.exists(key):
            return False
        try:
            obstore.delete(self._store, self._path(key))
        except FileNotFoundError:
            return False
        except BaseError as error:
            self._raise(error)
        return True

    def scan(self) -> Iterator[Stored]:
        """Lists everything at once; where a foreign name stops the library, the rest directory by directory."""
        last = ""
        try:
            for found in self._list(self._prefix, ""):
                last = found["path"]
                yield from self._stored(found)
        except InvalidPathError as error:
            logger.warning("s3 adapter: listing %s the long way: %s", self._place, _words(error))
            for number in range(256):
                directory = f"{self._prefix}{number:02x}"
                if f"{directory}/\U0010ffff" > last:
                    yield from self._scan_directory(directory, last)

    def _scan_directory(self, directory: str, after: str) -> Iterator[Stored]:
        try:
            for found in self._list(directory, after):
                yield from self._stored(found)
        except InvalidPathError as error:
            self._raise(error)

    def _list(self, path: str, after: str) -> Iterator[Any]:
        """Every object below `path` whose name comes after `after`, in the order of names."""
        try:
            for page in obstore.list(self._store, path or None, offset=after or None, chunk_size=LIST_PAGE):
                yield from page
        except InvalidPathError:
            raise
        except (FileNotFoundError, BaseError) as error:
            self._raise(error)

    def _stored(self, found: Any) -> Iterator[Stored]:
        """Found, if it is an object of ours in its place; else nothing."""
        directory, _, name = str(found["path"]).rpartition("/")
        key = self._key_in_header(found["path"]) if is_digest_name(name) else key_of_name(name)
        if key is not None and self._path(key) == f"{directory}/{name}":
            yield Stored(key, int(found["size"]), found["last_modified"].timestamp())

    def _key_in_header(self, path: str) -> ObjectKey | None:
        header = bytearray(HEADER_BYTES)
        try:
            found = obstore.get(self._store, path)
            if int(found.meta["size"]) < HEADER_BYTES:
                return None
            _copy(found.stream(min_chunk_size=HEADER_BYTES), [memoryview(header)])
        except FileNotFoundError:
            return None
        except BaseError as error:
            self._raise(error)
        return key_of(memoryview(header))

    def capacity_bytes(self) -> int | None:
        return self._config.max_bytes or None

    @property
    def _place(self) -> str:
        return f"s3://{self._config.bucket}/{self._prefix}"

    def describe(self) -> dict[str, object]:
        config = self._config
        return {
            "bucket": config.bucket,
            "prefix": self._prefix,
            "endpoint": _without_password(config.endpoint),
            "region": config.region,
            "virtual_hosted_style": config.virtual_hosted_style,
            "unsigned_payload": config.unsigned_payload,
        }

    def close(self) -> None:
        del self._store

    def _raise(self, error: Exception) -> NoReturn:
        """Raises what the table above says. The library's error, which keeps request and buffers, is let go."""
        text, words = str(error), f"{self._place}: {_words(error)}"
        status, code = _STATUS.search(text), _CODE.search(text)
        answered = int(status[1]) if status else 0
        if answered == 507 or (code and code[1] in _FULL_CODES):
            raise StorageFull(words) from None
        if answered == 429 or answered >= 500 or (not answered and _is_from_the_wire(text)):
            raise ConnectionFault(words) from None
        raise OSError(words) from None


def _open_store(config: S3Config) -> S3Store:
    """The client; nothing is connected yet. Raises OSError."""
    given: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("region", "access_key_id", "secret_access_key", "session_token")
        if getattr(config, name)
    }
    if config.endpoint:
        given["endpoint"] = _endpoint(config)
    options: ClientConfig = {
        "allow_http": config.allow_http,
        "connect_timeout": timedelta(seconds=config.connect_timeout_s),
        "timeout": timedelta(seconds=config.request_timeout_s),
    }
    if config.ca_file:
        with open(config.ca_file, "rb") as file:
            options["root_certificate"] = file.read()
    try:
        return S3Store(
            config.bucket,
            virtual_hosted_style_request=config.virtual_hosted_style,
            unsigned_payload=config.unsigned_payload,
            disable_bulk_delete=True,
            client_options=options,
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=min(RETRY_WINDOW_S, config.request_timeout_s / 2)),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=50),
                    "max_backoff": timedelta(milliseconds=200),
                    "base": 2,
                },
            },
            **given,
        )
    except (BaseError, ValueError) as error:
        raise OSError(f"s3://{config.bucket}: {_words(error)}") from None


def _endpoint(config: S3Config) -> str:
    """The endpoint as the library wants it: with the bucket in front of the host for virtual-hosted requests."""
    parts = urlsplit(config.endpoint)
    if not config.virtual_hosted_style or parts.netloc.startswith(f"{config.bucket}."):
        return config.endpoint.rstrip("/")
    return urlunsplit(parts._replace(netloc=f"{config.bucket}.{parts.netloc}")).rstrip("/")


def _copy(pieces: Iterator[Any], into: Buffers) -> int:
    """Fills `into` one buffer after the other, and returns how many bytes there were for it."""
    done, number, at = 0, 0, 0
    for piece in pieces:
        left = memoryview(piece)
        while len(left) and number < len(into):
            count = min(len(left), len(into[number]) - at)
            into[number][at : at + count] = left[:count]
            left, at, done = left[count:], at + count, done + count
            if at == len(into[number]):
                number, at = number + 1, 0
        if number == len(into):
            break
    return done


def _is_from_the_wire(text: str) -> bool:
    """Whether an error without a status is one of the connection, not of a setting.

    A body that breaks off is asked for again from there; what does not know ranges answers without Content-Range.
    """
    is_setting = "BadScheme" in text or "InvalidCertificate" in text
    return "Content-Range" in text or ("HTTP error" in text and not is_setting)


def _words(error: Exception) -> str:
    """On one line what S3 answered, else what the library says: without its dump, but with the causes in it."""
    text = _USER_INFO.sub("//", str(error))
    status, code, message = (found.search(text) for found in (_STATUS, _CODE, _MESSAGE))
    if status:
        return " ".join(part[1] for part in (status, code, message) if part)[:MAX_WORDS]
    head, _, dump = text.partition("Debug source:")
    causes = dict.fromkeys(_CAUSE.findall(dump.partition("HttpError")[2]))
    return " ".join(head.split())[:MAX_WORDS] + (f" ({', '.join(causes)})" if causes else "")


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)
