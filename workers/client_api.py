"""An internal API server inside an inference process that uses the cache through our client.

    with LarderClient(url, "model", worker_id=3) as client, internal_api_of(client):
        ...

Its index is 1 + worker id. It runs where the settings `internal_api_server_*` of the environment or the file named by
LARDER_CONFIG say so. What only the engine can do it answers with 501 and where to ask; it needs no Redis.
"""

import importlib.metadata
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest

from app.internal_server import InternalAPIConfig, InternalAPIServer, LoneBackend
from contract.commands import ChangeSettings, Command, CountChunks, PublishMetrics, ShowLoggers, ShowThreads
from contract.engine_record import EngineRecord
from contract.errors import CommandFailed
from contract.log_levels import all_levels
from contract.process_facts import INFERENCE, KV_LAYERS, LOOKUP, META, SETTINGS
from contract.settings import load_settings
from contract.snapshots import METRICS, PERIODIC_THREADS
from contract.thread_stacks import process_name, thread_blocks
from engine.dataplane.client import LarderClient
from workers.internal_settings import internal_api_config

ASK_THE_ENGINE = "this process has a cache client; ask the internal API server of the engine, index 0"
ROLE = "worker"
TIMEOUT = "timeout_s"
MAX_TIMEOUT_S = 3600.0
UNKNOWN, FIXED, FAILED = "Unknown config", "Config is not mutable at runtime", "Failed to set config value"


@contextmanager
def internal_api_of(
    client: LarderClient, config: InternalAPIConfig | None = None, *, index: int | None = None
) -> Iterator[InternalAPIServer]:
    """The server over this client, from here to the end of the block.

    `config` None: by the environment. `index` None: 1 + worker id. Raises SettingError, OSError.
    """
    server = InternalAPIServer(ClientManager(client, config or config_from_environment(), index))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def config_from_environment() -> InternalAPIConfig:
    """The settings `internal_api_server_*` of this process. Raises SettingError."""
    return internal_api_config(load_settings(None, os.environ))


class ClientManager:
    """What the server serves. The client stays its owner's."""

    def __init__(self, client: LarderClient, config: InternalAPIConfig, index: int | None = None) -> None:
        self.internal_api = config
        self.internal_api_index = 1 + client.worker_id if index is None else index
        self.backend = LoneBackend(ClientSide(client, config))


class ClientSide:
    """The process of a client. Only looks at the client's attributes, since its calls are for one thread."""

    def __init__(self, client: LarderClient, config: InternalAPIConfig) -> None:
        self._client, self._config = client, config
        self._started_at = time.time()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def record(self) -> EngineRecord:
        """`ready` as long as the server answers this client."""
        state, error = "ready", ""
        if not self._client.server_answers:
            state, error = "failed", f"{self._client.url} did not answer the last operation"
        name, now = f"client-{self._client.instance_id}", time.time()
        return EngineRecord(name, os.getpid(), socket.gethostname(), state, error, self._started_at, now, 0.0)

    def run(self, command: Command) -> dict[str, Any]:
        """The reply to a command about this process. Raises CommandFailed for all others."""
        if isinstance(command, ShowThreads):
            blocks = thread_blocks(command.name, command.thread_id)
            return {"process": process_name(), "pid": os.getpid(), "blocks": blocks}
        if isinstance(command, ShowLoggers):
            return {"levels": all_levels()}
        if isinstance(command, PublishMetrics):
            return {}
        if isinstance(command, ChangeSettings):
            return self._change(command.values)
        if isinstance(command, CountChunks):
            raise CommandFailed("bad_request", f"a cache client has no chunk statistics; {ASK_THE_ENGINE}")
        raise CommandFailed("unsupported", ASK_THE_ENGINE)

    def snapshot(self, name: str) -> Any:
        """A fact about this process, or one of the engine's snapshots that it has too. Raises CommandFailed."""
        facts: dict[str, Callable[[], Any]] = {
            SETTINGS: self._settings,
            META: self._meta,
            INFERENCE: self._inference,
            LOOKUP: lambda: {"client": type(self._client).__name__, "server": "None"},
            KV_LAYERS: self._kv_layers,
            METRICS: lambda: {"text": generate_latest(self._registry).decode()},
            PERIODIC_THREADS: list,
        }
        if name not in facts:
            raise CommandFailed("unsupported", ASK_THE_ENGINE)
        return facts[name]()

    def _settings(self) -> dict[str, Any]:
        client, config = self._client, self._config
        names = ("enabled", "host", "port_start", "include_index_list", "socket_path_prefix", "access_log", "log_level")
        own = {name: getattr(client, name) for name in ("url", "model_name", "world_size", "worker_id", "instance_id")}
        server = {f"internal_api_server_{name}": getattr(config, name) for name in names}
        return {**own, TIMEOUT: client.timeout_s, **server}

    def _change(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        updated: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for name, given in values.items():
            is_number = isinstance(given, int | float) and not isinstance(given, bool)
            if name != TIMEOUT:
                errors[name] = FIXED if name in self._settings() else UNKNOWN
            elif not is_number or not 0 < given <= MAX_TIMEOUT_S:
                errors[name] = f"{FAILED}: a number above 0 and at most {MAX_TIMEOUT_S:g} is allowed"
            else:
                self._client.timeout_s = updated[name] = float(given)
        return {"updated": updated, "errors": errors}

    def _meta(self) -> dict[str, Any]:
        client, layers = self._client, self._client.kv_layers
        shape: list[int] = []
        if layers and client.known_chunk_size:
            shape = [len(layers), layers[0].planes, client.known_chunk_size, *layers[0].heads]
        return {
            "model_name": client.model_name,
            "world_size": client.world_size,
            "worker_id": client.worker_id,
            "role": ROLE,
            "kv_shape": shape,
            "kv_dtype": f"torch.{layers[0].dtype}" if layers else None,
            "chunk_size": client.known_chunk_size,
            "instance_id": client.instance_id,
            "url": client.url,
            "server_answers": client.server_answers,
            "is_first_rank": client.worker_id == 0,
            "vllm_version": _version_of("vllm"),
        }

    def _inference(self) -> dict[str, Any]:
        layers = self._kv_layers()
        return {"num_layers": len(layers), "layers": layers} if layers else {}

    def _kv_layers(self) -> dict[str, Any] | None:
        layers = self._client.kv_layers
        return {
            f"layer_{number}": {"shape": list(layer.shape), "dtype": f"torch.{layer.dtype}", "device": "cpu"}
            for number, layer in enumerate(layers)
        } or None


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
