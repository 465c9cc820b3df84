"""What each command does: one function per dataclass of contract/commands.py, found by @handles."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from contract.command_queue import BUSY
from contract.commands import (
    CancelPrefetch,
    ChangeSettings,
    ChecksumBlocks,
    ChecksumSlots,
    ClearCache,
    Command,
    ControlScrub,
    CountChunks,
    DeleteKeys,
    DeleteL1Keys,
    DeleteQuota,
    FindL1Objects,
    ListKeys,
    MoveMockTokens,
    PingEngine,
    PublishMetrics,
    Reconfigure,
    RunScript,
    SetQuota,
    SetSwitch,
    ShowLoggers,
    ShowThreads,
    StartPrefetch,
)
from contract.log_levels import all_levels
from contract.thread_stacks import process_name, thread_blocks
from engine.engine import Engine
from engine.errors import BadRequest, EngineError, NoKVMemory, NoLayout, TooBusy, UnknownInstance, Unsupported
from engine.l2.registry import ADAPTERS
from workers import by_hand, l1_handlers, l2_handlers, steering_handlers
from workers.errors import CommandRefused
from workers.live_settings import LiveSettings
from workers.prefetch_jobs import PrefetchJobs
from workers.script_runner import ScriptRunner
from workers.slow_commands import Lane
from workers.tenant_tables import TenantTables

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Command)


@dataclass(frozen=True)
class Worker:
    """What handlers work on."""

    engine: Engine
    tenants: TenantTables
    prefetch: PrefetchJobs
    #: None: scripts are switched off.
    scripts: ScriptRunner | None = None
    #: None: settings cannot be changed.
    live: LiveSettings | None = None


Handler = Callable[[Worker, Any], dict[str, Any]]
HANDLERS: dict[type[Command], Handler] = {}


def handles(
    command: type[C],
) -> Callable[[Callable[[Worker, C], dict[str, Any]]], Callable[[Worker, C], dict[str, Any]]]:
    """Registers the function for a command."""

    def register(handler: Callable[[Worker, C], dict[str, Any]]) -> Callable[[Worker, C], dict[str, Any]]:
        HANDLERS[command] = cast(Handler, handler)
        return handler

    return register


def failure_of(command: Command, error: Exception) -> tuple[str, str]:
    """The code (one of contract.errors.FAILURE_CODES, or BUSY) and the text with which a failed command is answered."""
    if isinstance(error, BadRequest):
        codes = {
            UnknownInstance: "not_found",
            NoKVMemory: "not_found",
            NoLayout: "conflict",
            Unsupported: "unsupported",
        }
        return next((code for kind, code in codes.items() if isinstance(error, kind)), "bad_request"), str(error)
    if isinstance(error, TooBusy):
        return BUSY, str(error)
    if isinstance(error, CommandRefused):
        return error.code, str(error)
    logger.error("command %s failed", command.op, exc_info=error)
    return "internal", str(error) if isinstance(error, EngineError) else type(error).__name__


def lane_of(worker: Worker, command: Command) -> Lane:
    """What a slow command shares its threads with: its kind, or the storage that it may hang in."""
    if isinstance(command, DeleteKeys | ListKeys):
        return l2_handlers.lane_of(worker.engine.l2, command.op, command.adapter)
    if isinstance(command, Reconfigure) and command.backend in ADAPTERS:
        return Lane(f"{command.op}-{command.backend}")
    return Lane(command.op)


def run(worker: Worker, command: Command) -> dict[str, Any]:
    """The command's result. Raises engine.errors.BadRequest and its kinds for what the caller did wrong."""
    return HANDLERS[type(command)](worker, command)


@handles(PingEngine)
def ping(worker: Worker, command: PingEngine) -> dict[str, Any]:
    return {"boot_id": worker.engine.boot_id}


@handles(ShowThreads)
def show_threads(worker: Worker, command: ShowThreads) -> dict[str, Any]:
    blocks = thread_blocks(command.name, command.thread_id)
    return {"process": process_name(), "pid": os.getpid(), "blocks": blocks}


@handles(ShowLoggers)
def show_loggers(worker: Worker, command: ShowLoggers) -> dict[str, Any]:
    if worker.live is not None:
        worker.live.follow_log_levels()
    return {"levels": all_levels()}


@handles(PublishMetrics)
def publish_metrics(worker: Worker, command: PublishMetrics) -> dict[str, Any]:
    """Nothing to do here: the reply waits for a publication, as that of each command that shows in snapshots."""
    return {}


@handles(RunScript)
def run_script(worker: Worker, command: RunScript) -> dict[str, Any]:
    if worker.scripts is None:
        raise CommandRefused("not_found", "run_script is switched off in the engine (--run-script-enabled)")
    digest = hashlib.sha256(command.script.encode(errors="replace")).hexdigest()
    logger.warning("running a script of %d characters, sha256 %s", len(command.script), digest)
    return dict(worker.scripts.run(command.script))


@handles(ClearCache)
def clear_cache(worker: Worker, command: ClearCache) -> dict[str, Any]:
    result = worker.engine.clear(force=command.force)
    return {"removed": result.removed, "kept": result.kept, "doomed": result.doomed}


@handles(DeleteL1Keys)
def delete_l1_keys(worker: Worker, command: DeleteL1Keys) -> dict[str, Any]:
    keys = [l2_handlers.object_key(key) for key in command.keys]
    return dataclasses.asdict(worker.engine.l1.delete(keys, force=command.force))


@handles(FindL1Objects)
def find_l1_objects(worker: Worker, command: FindL1Objects) -> dict[str, Any]:
    return l1_handlers.find(worker.engine, command)


@handles(SetQuota)
def set_quota(worker: Worker, command: SetQuota) -> dict[str, Any]:
    worker.engine.set_quota(command.cache_salt, command.limit_bytes)
    worker.tenants.note_change(command.cache_salt)
    return {"cache_salt": command.cache_salt, "limit_bytes": command.limit_bytes}


@handles(DeleteQuota)
def delete_quota(worker: Worker, command: DeleteQuota) -> dict[str, Any]:
    removed = worker.engine.delete_quota(command.cache_salt)
    worker.tenants.note_change(command.cache_salt)
    return {"removed": removed}


@handles(ChecksumBlocks)
def checksum_blocks(worker: Worker, command: ChecksumBlocks) -> dict[str, Any]:
    return worker.engine.checksum_blocks(command.instance_id, command.block_ids, command.chunk_size, command.layerwise)


@handles(ChecksumSlots)
def checksum_slots(worker: Worker, command: ChecksumSlots) -> dict[str, Any]:
    return worker.engine.checksum_slots(command.worker, command.slots, command.slots_per_chunk, command.layerwise)


@handles(MoveMockTokens)
def move_mock_tokens(worker: Worker, command: MoveMockTokens) -> dict[str, Any]:
    if command.verb == "store":
        return {"num_tokens": by_hand.store(worker.engine, command.start, command.end)}
    found = by_hand.retrieve(worker.engine, command.start, command.end)
    return {"num_tokens": command.end - command.start, "num_retrieved": found}


@handles(ChangeSettings)
def change_settings(worker: Worker, command: ChangeSettings) -> dict[str, Any]:
    return steering_handlers.change_settings(worker.live, command)


@handles(SetSwitch)
def set_switch(worker: Worker, command: SetSwitch) -> dict[str, Any]:
    return steering_handlers.set_switch(worker.engine, command)


@handles(CountChunks)
def count_chunks(worker: Worker, command: CountChunks) -> dict[str, Any]:
    return steering_handlers.count_chunks(worker.engine, command)


@handles(DeleteKeys)
def delete_keys(worker: Worker, command: DeleteKeys) -> dict[str, Any]:
    return l2_handlers.delete_keys(worker.engine.l2, command)


@handles(ListKeys)
def list_keys(worker: Worker, command: ListKeys) -> dict[str, Any]:
    return l2_handlers.list_keys(worker.engine.l2, command)


@handles(ControlScrub)
def control_scrub(worker: Worker, command: ControlScrub) -> dict[str, Any]:
    return l2_handlers.control_scrub(worker.engine.l2, command)


@handles(Reconfigure)
def change_adapter(worker: Worker, command: Reconfigure) -> dict[str, Any]:
    return l2_handlers.change_adapter(worker.engine.l2, command)


@handles(StartPrefetch)
def start_prefetch(worker: Worker, command: StartPrefetch) -> dict[str, Any]:
    return worker.prefetch.begin(command.request_id)


@handles(CancelPrefetch)
def cancel_prefetch(worker: Worker, command: CancelPrefetch) -> dict[str, Any]:
    return worker.prefetch.cancel(command.request_id)
