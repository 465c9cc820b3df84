"""What the engine process tells about itself over its internal API server: contract/process_facts.py."""

from collections.abc import Callable
from typing import Any

from contract.process_facts import INFERENCE, KV_LAYERS, LOOKUP, META, SETTINGS, STEERING
from engine.dataplane.server import DataPlaneServer
from engine.engine import Engine
from engine.errors import NoKVMemory
from engine.status import worker_report
from workers.command_handlers import Worker
from workers.script_app import EngineView

#: What this process is to an inference engine: neither its scheduler nor one of its workers.
ROLE = "server"


def engine_facts(worker: Worker, is_ready: Callable[[], bool]) -> dict[str, Callable[[], Any]]:
    """Name -> what stands under it, as of now."""
    engine, live = worker.engine, worker.live
    return {
        SETTINGS: lambda: None if live is None else live.shown(),
        META: lambda: _meta(engine) if is_ready() else None,
        INFERENCE: lambda: _inference(engine) if is_ready() else None,
        STEERING: lambda: _steering(engine) if is_ready() else None,
        LOOKUP: lambda: {"client": "None", "server": DataPlaneServer.__name__} if is_ready() else None,
        KV_LAYERS: lambda: _kv_layers(engine),
    }


def _meta(engine: Engine) -> dict[str, Any]:
    """Of the worker that registered first, as a script sees it."""
    metadata = EngineView(engine).metadata
    return {
        "model_name": metadata.model_name,
        "world_size": metadata.world_size,
        "worker_id": metadata.worker_id,
        "role": ROLE,
        "kv_shape": list(metadata.kv_shape),
        "chunk_size": engine.chunk_size,
        "hash_algorithm": engine.config.hash_algorithm,
        "instance_id": engine.config.instance_id,
        "boot_id": engine.boot_id,
        "started_at": engine.started_at,
        "is_first_rank": metadata.is_first_rank(),
        "vllm_version": None,
    }


def _inference(engine: Engine) -> dict[str, Any]:
    registrations = engine.registrations.all()
    return worker_report(engine.config, registrations) if registrations else {}


def _steering(engine: Engine) -> dict[str, Any]:
    steering = engine.steering
    return {
        "backends": steering.backends(),
        "bypassed": steering.bypassed(),
        "freeze": steering.switches.frozen,
        "hot_cache": steering.is_hot,
        "block_log": steering.switches.log_blocks,
        "chunk_statistics": engine.prefixes.chunk_statistics.describe(),
    }


def _kv_layers(engine: Engine) -> dict[str, Any] | None:
    try:
        return engine.kv_layers(None)
    except NoKVMemory:
        return None
