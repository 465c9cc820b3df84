"""The commands the web tier may give the engine: one frozen dataclass each.

op             slow  repeatable  shows in snapshots  reply
-------------  ----  ----------  ------------------  --------------------------------------------------------
engine.ping    no    yes         no                  {"boot_id"}
cache.clear    no    yes         yes                 {"removed", "kept", "doomed"}
quota.set      no    yes         yes                 {"cache_salt", "limit_bytes"}
quota.delete   no    no          yes                 {"removed"}
kvcache.check  yes   yes         no                  {"chunk_checksums", "num_chunks"}

slow: runs on a pool beside the loop. repeatable: running it twice does what running it once does. shows in
snapshots: answered after a publication that began after its effect.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from contract.errors import BadCommand

MAX_SALT_CHARACTERS = 1024
MAX_BLOCK_IDS = 1_000_000
MAX_INTEGER = 2**63 - 1


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


COMMANDS: dict[str, type[Command]] = {
    command.op: command for command in (PingEngine, ClearCache, SetQuota, DeleteQuota, ChecksumBlocks)
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


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_BLOCK_IDS:
        raise ValueError(f"a list of at most {MAX_BLOCK_IDS} integers")
    return tuple(_integer(item) for item in value)


_FIELDS: dict[str, Callable[[object], Any]] = {
    "force": _boolean,
    "cache_salt": _salt,
    "limit_bytes": _count,
    "instance_id": _integer,
    "block_ids": _integers,
    "chunk_size": _integer,
    "layerwise": _boolean,
}
