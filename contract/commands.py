"""The commands the web tier may give the engine: one frozen dataclass each.

op               slow  repeatable  shows in snapshots  reply
---------------  ----  ----------  ------------------  --------------------------------------------------------
engine.ping      no    yes         no                  {"boot_id"}
engine.threads   no    yes         no                  {"process", "pid", "blocks"}
engine.loggers   no    yes         no                  {"levels"}
metrics.publish  no    yes         yes                 {}
script.run       yes   no          no                  {"text"} or {"error"}
cache.clear      no    yes         yes                 {"removed", "kept", "doomed"}
quota.set        no    yes         yes                 {"cache_salt", "limit_bytes"}
quota.delete     no    no          yes                 {"removed"}
kvcache.check    yes   yes         no                  {"chunk_checksums", "num_chunks"}
prefetch.start   yes   yes         no                  {"status", "chunks"}
prefetch.cancel  yes   yes         no                  {"status"}
l2.delete        yes   yes         yes                 {"adapter", "ok"[, "error"]}
l2.list          yes   yes         no                  {"adapter", "entries", "next_page_token"}
l2.scrub         yes   yes         no                  the scrub's state, with "started" or "stopped"
l2.reconfigure   yes   no          yes                 {"body"}, or {"refused", "message", "fields"}

slow: runs on a pool beside the loop. repeatable: running it twice does what running it once does. shows in
snapshots: answered after a publication that began after its effect. The prefetch commands carry the id of a record
(prefetch_jobs.py) whose state decides: a second delivery finds the job started, or over, and answers from the record.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from contract.errors import BadCommand
from contract.object_keys import EncodedKey
from contract.prefetch_jobs import is_request_id

MAX_SALT_CHARACTERS = 1024
MAX_BLOCK_IDS = 1_000_000
MAX_INTEGER = 2**63 - 1
MAX_KEYS = 10_000
MAX_PAGE_SIZE = 5000
MAX_TEXT = 16_384
MAX_SCRIPT_BYTES = 65_536
SCRUB_ACTIONS = ("start", "stop", "state")


class Command:
    """What all commands have. Subclasses are frozen dataclasses whose fields are the body."""

    op: ClassVar[str]
    repeatable: ClassVar[bool] = True
    slow: ClassVar[bool] = False
    changes_snapshots: ClassVar[bool] = False
    timeout_s: ClassVar[float] = 10.0

    def encode(self) -> str:
        """The body as JSON; the name travels beside it."""
        return json.dumps({name: getattr(self, name) for name in FIELDS[type(self)]}, separators=(",", ":"))


@dataclass(frozen=True)
class PingEngine(Command):
    """Asks whether the command loop turns."""

    op: ClassVar[str] = "engine.ping"


@dataclass(frozen=True)
class ShowThreads(Command):
    """What the engine's threads are doing: those with `name` in theirs, in any case, and of this id (None: any)."""

    op: ClassVar[str] = "engine.threads"
    timeout_s: ClassVar[float] = 3.0
    name: str
    thread_id: int | None


@dataclass(frozen=True)
class ShowLoggers(Command):
    """The effective levels of the engine's loggers."""

    op: ClassVar[str] = "engine.loggers"
    timeout_s: ClassVar[float] = 3.0


@dataclass(frozen=True)
class PublishMetrics(Command):
    """Answered once everything that was counted before it is published."""

    op: ClassVar[str] = "metrics.publish"
    changes_snapshots: ClassVar[bool] = True


@dataclass(frozen=True)
class RunScript(Command):
    """Runs Python source in the engine's process, where that is switched on."""

    op: ClassVar[str] = "script.run"
    repeatable: ClassVar[bool] = False
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 45.0
    script: str


@dataclass(frozen=True)
class ClearCache(Command):
    """Empties L1; `force` takes what is leased or in use too."""

    op: ClassVar[str] = "cache.clear"
    changes_snapshots: ClassVar[bool] = True
    force: bool


@dataclass(frozen=True)
class SetQuota(Command):
    """Registers or replaces a tenant's limit."""

    op: ClassVar[str] = "quota.set"
    changes_snapshots: ClassVar[bool] = True
    cache_salt: str
    limit_bytes: int


@dataclass(frozen=True)
class DeleteQuota(Command):
    """Removes a tenant's limit. Its reply tells whether there was one, so a second run would answer wrongly."""

    op: ClassVar[str] = "quota.delete"
    repeatable: ClassVar[bool] = False
    changes_snapshots: ClassVar[bool] = True
    cache_salt: str


@dataclass(frozen=True)
class ChecksumBlocks(Command):
    """MD5 over blocks of a registered client's KV tensors; `chunk_size` counts blocks."""

    op: ClassVar[str] = "kvcache.check"
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 60.0
    instance_id: int
    block_ids: tuple[int, ...]
    chunk_size: int
    layerwise: bool


@dataclass(frozen=True)
class StartPrefetch(Command):
    """Starts the prefetch job whose record is in Redis; for one that was started already, tells its state."""

    op: ClassVar[str] = "prefetch.start"
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 30.0
    request_id: str


@dataclass(frozen=True)
class CancelPrefetch(Command):
    """Ends a prefetch job; for one that was cancelled already, says so."""

    op: ClassVar[str] = "prefetch.cancel"
    slow: ClassVar[bool] = True
    request_id: str


@dataclass(frozen=True)
class DeleteKeys(Command):
    """Deletes objects from one L2 adapter, the primary for None; absent ones and those in use are passed over."""

    op: ClassVar[str] = "l2.delete"
    slow: ClassVar[bool] = True
    changes_snapshots: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 60.0
    adapter: str | None
    keys: tuple[EncodedKey, ...]


@dataclass(frozen=True)
class ListKeys(Command):
    """A page of the keys of one L2 adapter, of one model or all."""

    op: ClassVar[str] = "l2.list"
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 60.0
    adapter: str | None
    model_name: str | None
    page_size: int
    page_token: str | None


@dataclass(frozen=True)
class ControlScrub(Command):
    """Starts or stops the scrub of one L2 adapter, or tells its state."""

    op: ClassVar[str] = "l2.scrub"
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 30.0
    adapter: str | None
    action: str


@dataclass(frozen=True)
class Reconfigure(Command):
    """Changes an L2 adapter at runtime. `fields` are the backend's own; `adapter_index` counts that backend's."""

    op: ClassVar[str] = "l2.reconfigure"
    repeatable: ClassVar[bool] = False
    slow: ClassVar[bool] = True
    changes_snapshots: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 120.0
    backend: str
    operation: str
    adapter_index: int
    fields: dict[str, Any]


COMMANDS: dict[str, type[Command]] = {
    command.op: command
    for command in (
        PingEngine,
        ShowThreads,
        ShowLoggers,
        PublishMetrics,
        RunScript,
        ClearCache,
        SetQuota,
        DeleteQuota,
        ChecksumBlocks,
        StartPrefetch,
        CancelPrefetch,
        DeleteKeys,
        ListKeys,
        ControlScrub,
        Reconfigure,
    )
}
#: The names in a command's body.
FIELDS: dict[type[Command], tuple[str, ...]] = {
    command: tuple(field.name for field in dataclasses.fields(command))  # type: ignore[arg-type]  # all are dataclasses
    for command in COMMANDS.values()
}


def decode(op: str, body: str) -> Command:
    """The command named `op` with this JSON body. Raises BadCommand; nothing is guessed or converted."""
    command = COMMANDS.get(op)
    if command is None:
        raise BadCommand(f"unknown command {op[:64]!r}")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadCommand(f"{op}: the body is not JSON: {str(error)[:200]}") from error
    names = FIELDS[command]
    if not isinstance(values, dict) or set(values) != set(names):
        raise BadCommand(f"{op}: the body must be an object with exactly the fields {list(names)}")
    return command(**{name: _check(op, name, values[name]) for name in names})


def _check(op: str, name: str, value: object) -> Any:
    try:
        return _FIELDS[name](value)
    except ValueError as error:
        raise BadCommand(f"{op}: {name} must be {error}") from error


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("an integer of 64 bits")
    return value


def _count(value: object) -> int:
    number = _integer(value)
    if number < 0:
        raise ValueError("0 or more")
    return number


def _salt(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_SALT_CHARACTERS:
        raise ValueError(f"a text of at most {MAX_SALT_CHARACTERS} characters")
    return value


def _request_id(value: object) -> str:
    if not isinstance(value, str) or not is_request_id(value):
        raise ValueError("the id of a prefetch job")
    return value


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_BLOCK_IDS:
        raise ValueError(f"a list of at most {MAX_BLOCK_IDS} integers")
    return tuple(_integer(item) for item in value)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"a text of at most {MAX_TEXT} characters")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _script(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_SCRIPT_BYTES:
        raise ValueError(f"a text of at most {MAX_SCRIPT_BYTES} characters")
    return value


def _optional_integer(value: object) -> int | None:
    return None if value is None else _integer(value)


def _page_size(value: object) -> int:
    if not 1 <= _integer(value) <= MAX_PAGE_SIZE:
        raise ValueError(f"from 1 to {MAX_PAGE_SIZE}")
    return _integer(value)


def _action(value: object) -> str:
    if value not in SCRUB_ACTIONS:
        raise ValueError("one of " + ", ".join(SCRUB_ACTIONS))
    return str(value)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def _keys(value: object) -> tuple[EncodedKey, ...]:
    if not isinstance(value, list) or len(value) > MAX_KEYS:
        raise ValueError(f"a list of at most {MAX_KEYS} keys")
    return tuple(_key(item) for item in value)


def _key(value: object) -> EncodedKey:
    if not isinstance(value, list) or len(value) != len(EncodedKey._fields):
        raise ValueError(f"lists of {', '.join(EncodedKey._fields)}")
    digest, model, rank, group, salt = value
    return EncodedKey(_text(digest), _text(model), _integer(rank), _count(group), _text(salt))


_FIELDS: dict[str, Callable[[object], Any]] = {
    "force": _boolean,
    "name": _text,
    "thread_id": _optional_integer,
    "script": _script,
    "cache_salt": _salt,
    "limit_bytes": _count,
    "instance_id": _integer,
    "block_ids": _integers,
    "chunk_size": _integer,
    "layerwise": _boolean,
    "request_id": _request_id,
    "adapter": _optional_text,
    "model_name": _optional_text,
    "page_token": _optional_text,
    "page_size": _page_size,
    "action": _action,
    "backend": _text,
    "operation": _text,
    "adapter_index": _integer,
    "fields": _object,
    "keys": _keys,
}
