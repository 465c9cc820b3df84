"""Redis, an engine with files as L2, and gunicorn, for tests of prefetch jobs; parts may be ended and started again."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from contract.keys import Keys
from contract.prefetch_jobs import PrefetchJob, PrefetchStore
from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.stack import Answer, EngineProcess, RedisServer, WebProcess
from tests.waiting import wait_for

MODEL = "prefetch/model"
CHUNK = 256
BLOCKS_PER_CHUNK = 16
KEYS = Keys("default")


class PrefetchStack:
    """`start` comes first, `stop` last. With `latency_s` each call of the storage takes that much longer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = directory / "objects"
        self.redis: RedisServer
        self.web: WebProcess
        self.engine: EngineProcess
        self.client: redis.Redis
        self.store: PrefetchStore
        self.tokens: list[int] = []
        self._parts = ExitStack()

    def start(self, **settings: object) -> None:
        self.redis = self._parts.enter_context(start_redis("redis", self.directory / "redis"))
        self.web = WebProcess(self.directory / "larder", self.redis.url, **settings)
        self._parts.enter_context(self.web)
        self.start_engine()
        self._parts.callback(lambda: self.engine.stop())
        self.client = self.redis.client()
        self._parts.callback(self.client.close)
        self.client.ping()
        self.store = PrefetchStore(self.client, KEYS)

    def start_engine(self, latency_s: float = 0.0) -> None:
        adapter: dict[str, Any] = {"type": "fs", "base_path": str(self.files)}
        if latency_s:
            adapter = {"type": "fault", "inner": adapter, "latency_rate": 1.0, "latency_s": latency_s}
        place = self.directory / "larder"
        self.engine = EngineProcess(place, self.redis.url, l2_adapter=json.dumps(adapter)).start()
        wait_for(self.is_scanned, 20, "the engine knows what is stored")

    def is_scanned(self) -> bool:
        answer = self.web.http("GET", "/status")
        adapters = answer.json()["storage_manager"]["l2_adapters"] if answer.status == 200 else []
        return bool(adapters) and adapters[0]["catalog"]["complete"]

    def stop(self) -> None:
        self._parts.close()

    @contextmanager
    def worker(self, chunks: int = 4) -> Iterator[LarderClient]:
        """A registered worker with memory for that many chunks."""
        address = f"tcp://127.0.0.1:{self.engine.port}"
        with SharedKV([(2, BLOCKS_PER_CHUNK * chunks, 16, 1, 8)]) as memory, LarderClient(address, MODEL) as client:
            client.register_shared(memory)
            yield client

    def fill(self, chunks: int, salt: str = "") -> list[int]:
        """Stores that many objects, waits until all are files, and empties L1; their token ids."""
        before = len(self.stored())
        tokens = list(range(CHUNK * chunks))
        with self.worker(chunks) as client:
            client.store(tokens, [list(range(BLOCKS_PER_CHUNK * chunks))], f"fill-{salt}", cache_salt=salt)
            client.end_session(f"fill-{salt}")
        wait_for(lambda: len(self.stored()) == before + chunks, 20, "what was stored is on disk")
        assert self.web.http("POST", "/clear-cache").status == 200
        return tokens

    def stored(self) -> list[Path]:
        return [path for path in self.files.glob("??/*") if not path.name.startswith(".")]

    def post(self, tokens: list[int], **members: Any) -> Answer:
        body = {"model_name": MODEL, "world_size": 1, "token_ids": tokens, **members}
        return self.web.http("POST", "/l2/prefetch", body)

    def submit(self, tokens: list[int], **members: Any) -> str:
        answer = self.post(tokens, **members)
        assert answer.status == 202, answer.body
        return str(answer.json()["request_id"])

    def poll(self, request_id: str, wait_s: int = 0) -> Answer:
        query = f"?wait={wait_s}" if wait_s else ""
        return self.web.http("GET", f"/l2/prefetch/{request_id}{query}", timeout_s=wait_s + 10)

    def record(self, request_id: str) -> PrefetchJob:
        job = self.store.load(request_id)
        assert job is not None
        return job
