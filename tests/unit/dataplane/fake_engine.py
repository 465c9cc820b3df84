"""An engine that does what a test tells it, and writes down what it was asked."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from engine.cache_request import CacheRequest
from engine.config import EngineConfig
from engine.periodic import PeriodicThreads
from engine.stats import Stats
from engine.transfers import SlotView

VERBS = (
    "register_engine_driven",
    "unregister_engine_driven",
    "register_kv_cache",
    "unregister_kv_cache",
    "ping",
    "lookup",
    "take_lookup_result",
    "free_lookup_locks",
    "end_session",
    "prepare_store",
    "commit_store",
    "prepare_retrieve",
    "commit_retrieve",
    "store",
    "retrieve",
    "report_block_allocation",
    "clear",
)


class FakeEngine:
    """`results[verb]` is the verb's result, an exception it raises, or a function that is called with its arguments.

    `message_sizes[instance_id]` is what `message_bytes` says of that client where nothing has shared memory,
    `session_sizes[request_id]` what `session_tokens` says.
    """

    chunk_size = 16

    def __init__(self, **config: Any) -> None:
        self.config = EngineConfig(chunk_size=self.chunk_size, **config)
        self.stats = Stats()
        self.threads = PeriodicThreads()
        self.message_sizes: dict[int, int] = {}
        self.session_sizes: dict[str, int] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.results: dict[str, Any] = {
            "register_engine_driven": SimpleNamespace(shm_name="pool", pool_size=4096),
            "ping": True,
            "take_lookup_result": 3,
            "prepare_store": SimpleNamespace(
                shared_memory=True,
                slots=[SlotView(offset=64, length=32, shape=(2, 4), dtype="float32")],
                chunk_indices=[1],
            ),
            "commit_store": True,
            "prepare_retrieve": SimpleNamespace(
                success=True,
                slots=[SlotView(offset=0, length=32, shape=(2, 4), dtype="float32")],
                data=b"",
            ),
            "commit_retrieve": True,
            "store": True,
            "retrieve": True,
        }

    def answers_in_messages(self, instance_id: int) -> bool:
        return self.config.shm_name == "off"

    def message_bytes(self, request: CacheRequest, instance_id: int) -> int:
        return self.message_sizes.get(instance_id, 0)

    def session_tokens(self, request_id: str) -> int:
        return self.session_sizes.get(request_id, 0)

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if verb not in VERBS:
            raise AttributeError(verb)

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((verb, (*arguments, *named.values())))
            result = self.results.get(verb)
            if isinstance(result, BaseException):
                raise result
            return result(*arguments, **named) if callable(result) else result

        return call

    def verbs(self) -> list[str]:
        """Names of the verbs called so far, in order."""
        return [verb for verb, _ in self.calls]

    def last(self, verb: str) -> tuple[Any, ...]:
        """Arguments of the verb's last call."""
        return next(arguments for name, arguments in reversed(self.calls) if name == verb)


class Gate:
    """A verb result that blocks until the test opens it."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.entered.set()
        assert self.opened.wait(30), "the test never opened the gate"
        return self.result
