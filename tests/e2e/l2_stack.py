"""A real stack with L2 adapters of several kinds: Redis, the engine, gunicorn with two workers.

place  type    what is special
-----  ------  -------------------------------------------------------------
0      fs      the primary
1      dax     one device that is a file; hotplug
2      memory  wrapped in zstd
3      dax     one device, no hotplug
4      redis   its server is not there; its url has a password: SECRET
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from engine.dataplane.client import LarderClient, SharedKV
from tests.conftest import start_redis
from tests.stack import EngineProcess, WebProcess
from tests.waiting import wait_for

SECRET = "hush4711"
#: Bytes of one object as it is stored: a header of one page, and 256 tokens of (2, 16, 1, 8) numbers of two bytes.
STORED_BYTES = 4096 + 8192
SLOT = STORED_BYTES + 4096
SLOTS = 16


class L2Stack:
    def __init__(self, directory: Path, engine: EngineProcess, web: WebProcess, redis: Any) -> None:
        self.directory, self.engine, self.web, self.redis = directory, engine, web, redis
        self.http = web.http

    def store(self, chunks: int, model: str, salt: str = "", first_token: int = 0) -> None:
        """Stores an object per chunk; they reach the adapters in their own time."""
        tokens = list(range(first_token, first_token + 256 * chunks))
        address = f"tcp://127.0.0.1:{self.engine.port}"
        with SharedKV([(2, 16 * chunks, 16, 1, 8)]) as memory, LarderClient(address, model) as client:
            client.register_shared(memory)
            client.store(tokens, [list(range(16 * chunks))], f"request-{model}-{salt}", cache_salt=salt)
            client.end_session(f"request-{model}-{salt}")

    def entries(self, query: str = "") -> list[dict[str, Any]]:
        """All of a listing in one page."""
        answer = self.http("GET", f"/l2/keys?page_size=5000&{query}")
        assert answer.status == 200, answer.body
        return list(answer.json()["entries"])

    def wait_for_objects(self, count: int, adapters: Sequence[str]) -> None:
        for name in adapters:
            wait_for(
                lambda name=name: len(self.entries(f"adapter={name}")) >= count, 20, f"{count} objects are in {name}"
            )

    def device(self, name: str, slots: int = SLOTS) -> Path:
        """A file to serve as a device, made when it is not there."""
        path = self.directory / name
        if not path.exists():
            path.write_bytes(bytes(slots * SLOT))
        return path

    def adapter_status(self, index: int) -> dict[str, Any]:
        return dict(self.http("GET", "/status").json()["storage_manager"]["l2_adapters"][index])


@contextmanager
def start_l2_stack(directory: Path, **more: object) -> Iterator[L2Stack]:
    """The adapters of the table above, empty. `more` settings are for the engine and the web tier."""
    with ExitStack() as parts:
        redis = parts.enter_context(start_redis("redis", directory / "redis"))
        for name in ("dax-a", "dax-fixed"):
            (directory / name).write_bytes(bytes(SLOTS * SLOT))
        dax = {"type": "dax", "slot_bytes": SLOT}
        adapters = [
            {"type": "fs", "base_path": str(directory / "objects")},
            {
                **dax,
                "devices": [{"device_path": str(directory / "dax-a"), "size": SLOTS * SLOT}],
                "hotplug_enabled": True,
            },
            {"type": "memory", "serde": {"type": "zstd", "level": 3}},
            {**dax, "devices": [{"device_path": str(directory / "dax-fixed"), "size": SLOTS * SLOT}]},
            {"type": "redis", "url": f"redis://:{SECRET}@127.0.0.1:1/0"},
        ]
        settings = {"l2_adapter": json.dumps(adapters), "write_back_drain_seconds": 0.1}
        engine = parts.enter_context(EngineProcess(directory / "larder", redis.url, **settings, **more))
        web = parts.enter_context(WebProcess(directory / "larder", redis.url, **more))
        yield L2Stack(directory, engine, web, redis)
