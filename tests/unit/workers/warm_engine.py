"""An engine that does nothing but prefetch jobs, and these as the test says."""

import threading
from array import array
from dataclasses import dataclass, field

from engine.errors import NoLayout, TooBusy

CHUNK = 4


@dataclass(frozen=True)
class Counts:
    found: int = 0
    resident: int = 0
    missing: int = 0
    failed: int = 0
    over_quota: int = 0


class Warm:
    """One job; the test calls count() and end()."""

    def __init__(self, model_name: str, tokens: "array[int]", world_size: int) -> None:
        self.model_name, self.tokens = model_name, list(tokens)
        self.chunks = len(tokens) // CHUNK
        self.total_keys = self.chunks * world_size
        self.error = ""
        self._outcome = ""
        self.was_cancelled = False
        self._counts = Counts()

    def done(self) -> bool:
        return bool(self._outcome)

    def outcome(self) -> str:
        return self._outcome

    def counts(self) -> Counts:
        return self._counts

    def count(self, **counts: int) -> None:
        self._counts = Counts(**counts)

    def end(self, outcome: str = "completed", error: str = "") -> None:
        self.error, self._outcome = error, outcome

    def cancel(self) -> None:
        self.was_cancelled = True
        self._outcome = self._outcome or "cancelled"


@dataclass
class WarmEngine:
    """`models` are registered; `jobs` are those started, in order."""

    boot_id: str = "boot-1"
    models: set[str] = field(default_factory=lambda: {"a/model"})
    is_busy: bool = False
    jobs: list[Warm] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)

    def start_warm(self, model_name: str, world_size: int, tokens: "array[int]", cache_salt: str) -> Warm | None:
        if model_name not in self.models:
            raise NoLayout(f"no worker is registered for {model_name!r}")
        if len(tokens) < CHUNK:
            return None
        if self.is_busy:
            raise TooBusy("64 jobs run")
        self.jobs.append(Warm(model_name, tokens, world_size))
        self.started.set()
        return self.jobs[-1]
