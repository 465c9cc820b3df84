"""The commands the web tier may give the engine: one frozen dataclass each.

op               slow  repeatable  shows in snapshots  reply
---------------  ----  ----------  ------------------  --------------------------------------------------------
engine.ping      no    yes         no                  {"boot_id"}
engine.threads   no    yes         no                  {"process", "pid", "blocks"}
engine.loggers   no    yes         no                  {"levels"}
engine.settings  no    yes         yes                 {"updated", "errors"}
engine.switch    no    yes         yes                 {"was", "name"}
engine.chunks    no    yes         no                  {}
metrics.publish  no    yes         yes                 {}
script.run       yes   no          no                  {"text"} or {"error"}
cache.clear      no    yes         yes                 {"removed", "kept", "doomed"}
l1.delete        yes   no          yes                 {"deleted", "skipped"}
l1.find          yes   yes         no                  {"entries", "has_more"}
quota.set        no    yes         yes                 {"cache_salt", "limit_bytes"}
quota.delete     no    no          yes                 {"removed"}
kvcache.check    yes   yes         no                  {"chunk_checksums", "num_chunks"}
kvcache.slots    yes   yes         no                  {"chunk_checksums", "num_chunks"}
kvcache.mock     yes   yes         yes                 {"num_tokens"[, "num_retrieved"]}
prefetch.start   yes   yes         no                  {"status", "chunks"}
prefetch.cancel  yes   yes         no                  {"status"}
l2.delete        yes   yes         yes                 {"adapter", "ok"[, "error"]}
l2.list          yes   yes         no                  {"adapter", "shared", "entries", "next_page_token"}
l2.scrub         yes   yes         no                  the scrub's state, with "started" or "stopped"
l2.reconfigure   yes   no          yes                 {"body"}, or {"refused", "message", "fields"}

slow: runs on threads beside the loop. repeatable: running it twice does what running it once does. shows in
snapshots: answered after a publication that began after its effect. The prefetch commands carry the id of a record
(prefetch_jobs.py) whose state decides: a second delivery finds the job started, or over, and answers from the record.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from contract.command_fields import (
    FIELD_RULES,
    MAX_FOUND,
    MAX_HASH_DIGITS,
    MAX_INTEGER,
    MAX_KEYS,
    MAX_PAGE_SIZE,
    MAX_SALT_CHARACTERS,
    MAX_SCRIPT_BYTES,
    MIN_HASH_DIGITS,
    is_hash_prefix,
)
from contract.errors import BadCommand
from contract.object_keys import EncodedKey

#: Beside the commands: the bounds on their fields that those who make commands need.
__all__ = [
    "MAX_FOUND", "MAX_HASH_DIGITS", "MAX_INTEGER", "MAX_KEYS", "MAX_PAGE_SIZE", "MAX_SALT_CHARACTERS",
    "MAX_SCRIPT_BYTES", "MIN_HASH_DIGITS", "is_hash_prefix",
]  # fmt: skip


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
class ChangeSettings(Command):
    """Changes settings until the engine's next start, each for itself."""

    op: ClassVar[str] = "engine.settings"
    changes_snapshots: ClassVar[bool] = True
    values: dict[str, Any]


@dataclass(frozen=True)
class SetSwitch(Command):
    """Turns one of the engine's switches on or off; `name` is the adapter for `bypass`, else empty."""

    op: ClassVar[str] = "engine.switch"
    changes_snapshots: ClassVar[bool] = True
    switch: str
    name: str
    on: bool


@dataclass(frozen=True)
class CountChunks(Command):
    """Starts, stops or resets the statistics of looked-up chunks."""

    op: ClassVar[str] = "engine.chunks"
    step: str


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
class DeleteL1Keys(Command):
    """Deletes objects from L1; what is leased, in use or unwritten only with `force`. A second run counts anew."""

    op: ClassVar[str] = "l1.delete"
    repeatable: ClassVar[bool] = False
    slow: ClassVar[bool] = True
    changes_snapshots: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 30.0
    keys: tuple[EncodedKey, ...]
    force: bool


@dataclass(frozen=True)
class FindL1Objects(Command):
    """The objects of L1 whose chunk hash begins with these lower-case hexadecimal digits, MAX_FOUND at most."""

    op: ClassVar[str] = "l1.find"
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 10.0
    hash_prefix: str


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
class ChecksumSlots(Command):
    """MD5 over single token slots of a registered worker's KV tensors, for None that which registered first.

    Chunks are of so many slots; for None the slots are only checked.
    """

    op: ClassVar[str] = "kvcache.slots"
    slow: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 60.0
    worker: int | None
    slots: tuple[int, ...]
    slots_per_chunk: int | None
    layerwise: bool


@dataclass(frozen=True)
class MoveMockTokens(Command):
    """Stores the tokens from `start` to before `end` out of the KV memory of the worker that registered first, or looks
    up how many of them are stored."""

    op: ClassVar[str] = "kvcache.mock"
    slow: ClassVar[bool] = True
    changes_snapshots: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 30.0
    verb: str
    start: int
    end: int


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
        ChangeSettings,
        SetSwitch,
        CountChunks,
        PublishMetrics,
        RunScript,
        ClearCache,
        DeleteL1Keys,
        FindL1Objects,
        SetQuota,
        DeleteQuota,
        ChecksumBlocks,
        ChecksumSlots,
        MoveMockTokens,
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
        return FIELD_RULES[name](value)
    except ValueError as error:
        raise BadCommand(f"{op}: {name} must be {error}") from error
