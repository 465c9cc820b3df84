"""The parts of GET /status and GET /conf. Shapes follow LMCache 0.5.0 where it has the field."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine.config import EngineConfig
from engine.registrations import Registration

#: What the HTTP contract calls this kind of server.
ENGINE_TYPE = "MPCacheServer"


def worker_report(config: EngineConfig, registrations: Sequence[Registration]) -> dict[str, Any]:
    """Registered workers of both kinds, and how their liveness is judged."""
    server_driven = [worker for worker in registrations if worker.tensors is not None]
    engine_driven = [worker for worker in registrations if worker.client is not None]
    return {
        "registered_gpu_ids": [worker.instance_id for worker in server_driven],
        "cache_context_meta": {str(worker.instance_id): _context(worker) for worker in server_driven},
        "registered_non_cuda_instance_ids": [worker.instance_id for worker in engine_driven],
        "non_cuda_context_meta": {str(worker.instance_id): _client_context(worker) for worker in engine_driven},
        "worker_liveness": {
            "enabled": bool(config.worker_reap_timeout_seconds),
            "reap_timeout_seconds": config.worker_reap_timeout_seconds,
            "registration_grace_seconds": config.worker_registration_grace_seconds,
            "tracked_instances": len(registrations),
        },
    }


def _context(worker: Registration) -> dict[str, Any]:
    assert worker.tensors is not None
    return {
        "model_name": worker.scope[0],
        "world_size": worker.scope[1],
        "kv_cache_layout": worker.tensors.describe(),
        "bytes_per_object": worker.layout.object_bytes,
        "layout_fingerprint": worker.layout.fingerprint.hex(),
    }


def _client_context(worker: Registration) -> dict[str, Any]:
    assert worker.client is not None
    return {
        "model_name": worker.scope[0],
        "world_size": worker.scope[1],
        "block_size": worker.client.block_size,
        "use_mla": worker.client.use_mla,
        "uses_shared_memory": worker.uses_shared_memory,
        "bytes_per_object": worker.layout.object_bytes,
        "layout_fingerprint": worker.layout.fingerprint.hex(),
    }


def l1_report(config: EngineConfig, counts: Mapping[str, int], threads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`l1_manager` and `l1_eviction_controller` of the storage manager's report."""
    alive = {thread["name"]: thread["is_active"] for thread in threads}
    total = counts["memory_total_bytes"]
    return {
        "l1_manager": {
            "is_healthy": alive.get("l1-expiry", False),
            **counts,
            "memory_usage_ratio": counts["memory_used_bytes"] / total if total else 0.0,
            "temporary_count": 0,
            "write_ttl_seconds": config.l1_write_ttl_seconds,
            "read_ttl_seconds": config.l1_read_ttl_seconds,
        },
        "l1_eviction_controller": {
            "is_healthy": alive.get("l1-eviction", False),
            "thread_alive": alive.get("l1-eviction", False),
            "eviction_policy": config.eviction_policy,
            "trigger_watermark": config.eviction_trigger_watermark,
            "eviction_ratio": config.eviction_ratio,
        },
    }


def configuration(config: EngineConfig, shm_name: str) -> dict[str, Any]:
    """The engine's configuration objects, by name. The adapters' may hold secrets."""
    engine = asdict(config)
    names = (
        "host", "port", "chunk_size", "hash_algorithm", "supported_transfer_mode", "instance_id",
        "worker_reap_timeout_seconds", "worker_registration_grace_seconds", "session_ttl_seconds",
    )  # fmt: skip
    return {
        "mp": {"engine_type": "default", "shm_name": config.shm_name, **{name: engine[name] for name in names}},
        "storage_manager": {
            "l1_manager_config": {
                "memory_config": {"size_in_bytes": config.l1_size_bytes, "align_bytes": 4096, "shm_name": shm_name},
                "write_ttl_seconds": config.l1_write_ttl_seconds,
                "read_ttl_seconds": config.l1_read_ttl_seconds,
            },
            "eviction_config": {
                "eviction_policy": config.eviction_policy,
                "trigger_watermark": config.eviction_trigger_watermark,
                "eviction_ratio": config.eviction_ratio,
            },
            "l2_adapter_config": {"adapters": list(engine["l2_adapter"])},
            "store_policy": config.l2_store_policy,
            "write_back_max_bytes": config.write_back_max_bytes,
            "write_back_drain_seconds": config.write_back_drain_seconds,
            "l2_lookup_deadline_seconds": config.l2_lookup_deadline_seconds,
        },
        "observability": {"enabled": True, "metrics_enabled": True, "logging_enabled": True, "tracing_enabled": False},
    }
