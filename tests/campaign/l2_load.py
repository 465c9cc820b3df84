"""Runs clients of l2_client.py against one server, and what must hold when L2 fails meanwhile and comes back.

with L2Load(site.port, directory, prompts=60) as load:
    drill = run_drill(site, load, fault, calm_s=1, fault_s=3)      # asserts what holds for every fault
drill.counted("larder_l2_calls_total", outcome="fault") > 0        # what is the fault's own
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from prometheus_client.parser import text_string_to_metric_families

from engine.engine import Engine
from tests.campaign.campaign import holds_left
from tests.campaign.l2_client import CHUNKS, FRESH, PromptClient, Round
from tests.stack import ROOT, Larder, Part
from tests.waiting import wait_for

#: A lookup is answered so long after its deadline at the latest.
GRACE_S = 0.5
#: A store that copies a hundred KiB takes no longer, whatever L2 does.
LONGEST_STORE_S = 1.0
START_TIMEOUT_S = 30.0
RECOVERY_TIMEOUT_S = 30.0
QUIET_TIMEOUT_S = 40.0


class Site(Protocol):
    """A running server, in this process or not."""

    port: int
    deadline_s: float

    def metrics(self) -> str: ...

    def status(self) -> dict[str, Any]: ...

    def check(self) -> None: ...


class EngineSite:
    """An engine in this process: its tables can be checked while it works."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine, self.port = engine, port
        self.deadline_s = engine.config.l2_lookup_deadline_seconds

    def metrics(self) -> str:
        return self.engine.metrics_text()

    def status(self) -> dict[str, Any]:
        return self.engine.status()

    def check(self) -> None:
        self.engine.check()


class StackSite:
    """The whole product, asked over HTTP."""

    def __init__(self, larder: Larder, deadline_s: float) -> None:
        self._larder, self.port, self.deadline_s = larder, larder.port, deadline_s

    def metrics(self) -> str:
        return self._ask("/metrics").body.decode()

    def status(self) -> dict[str, Any]:
        return dict(self._ask("/status").json())

    def check(self) -> None:
        assert self._larder.http("GET", "/healthcheck").status == 200

    def _ask(self, path: str) -> Any:
        answer = self._larder.http("GET", path)
        assert answer.status == 200, answer.body
        return answer


def counts_of(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Sample name and labels -> value, from Prometheus' text format."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@dataclass(frozen=True)
class Sum:
    """What clients saw in some span of time."""

    rounds: int
    hit_chunks: int
    wrong_chunks: int
    lost_chunks: int
    stored_chunks: int
    refused_chunks: int
    slowest_lookup_s: float
    slowest_store_s: float
    errors: tuple[str, ...]

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Self:
        """All these rounds together."""
        sums = {
            name: sum(getattr(seen, name) for seen in rounds)
            for name in ("hit_chunks", "wrong_chunks", "lost_chunks", "stored_chunks", "refused_chunks")
        }
        slowest = {
            f"slowest_{name}": max((getattr(seen, name) for seen in rounds), default=0.0)
            for name in ("lookup_s", "store_s")
        }
        return cls(len(rounds), errors=tuple(seen.error for seen in rounds if seen.error), **sums, **slowest)


class L2Load:
    """Client processes at work from when it is entered; killed ones leave their log behind."""

    def __init__(
        self, port: int, directory: Path, *, prompts: int, roles: Sequence[str] = ("reader", "reader", "storer")
    ) -> None:
        self._port, self._prompts, self._roles = port, prompts, roles
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            for number, role in enumerate(self._roles):
                self._start(number, role)
            everybody = range(len(self._roles))
            wait_for(lambda: all(self._lines(number) for number in everybody), START_TIMEOUT_S, "all clients work")
        except BaseException:
            self._end()
            raise
        return self

    def _start(self, number: int, role: str) -> None:
        log = str(self._directory / f"client-{number}.jsonl")
        arguments = {
            "port": self._port, "log": log, "number": number, "role": role, "prompts": self._prompts, "seed": 1,
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.campaign.l2_client", json.dumps(arguments)]
        with (self._directory / f"client-{number}.log").open("wb") as complaints:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=complaints)
        self.processes.append(process)

    def _lines(self, number: int) -> list[str]:
        path = self._directory / f"client-{number}.jsonl"
        if not path.exists():
            return []
        return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def complaints(self) -> str:
        """What the clients wrote to their standard error."""
        return "\n".join(path.read_text() for path in sorted(self._directory.glob("client-*.log")))

    def seen(self, since: float = 0.0, until: float = math.inf, *, role: str | None = None) -> Sum:
        """The rounds that began in a span of monotonic time, of all clients or those of a role."""
        numbers = [number for number, its in enumerate(self._roles) if role in (None, its)]
        lines = [line for number in numbers for line in self._lines(number) if line != "idle\n"]
        rounds = [Round(**json.loads(line)) for line in lines]
        return Sum.of([seen for seen in rounds if since <= seen.at < until])

    def idle(self) -> None:
        """Ends the rounds; clients that live stay registered."""
        alive = [number for number, process in enumerate(self.processes) if process.poll() is None]
        for number in alive:
            os.kill(self.processes[number].pid, signal.SIGTERM)
        wait_for(lambda: all(self._lines(n)[-1] == "idle\n" for n in alive), START_TIMEOUT_S, "all clients are idle")

    def kill(self, number: int) -> None:
        """kill -9 for one client; its KV memory, which nobody else may remove, goes too."""
        process = self.processes[number]
        process.kill()
        process.wait()
        for segment in Path("/dev/shm").glob(f"lmcache_kv_{process.pid}_*"):
            segment.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Drill:
    """One fault from before to after: what clients saw, and how far the counters went."""

    calm: Sum
    during: Sum
    after: Sum
    storers: Sum
    #: Every state of the breaker seen while the fault lasted.
    states: set[str] = field(default_factory=set)
    times_opened: int = 0
    _before: dict[Any, float] = field(default_factory=dict)
    _after: dict[Any, float] = field(default_factory=dict)

    def counted(self, name: str, **labels: str) -> float:
        """By how much the series of this name with these labels grew from the fault's begin until all was quiet."""
        return sum(
            value - self._before.get(sample, 0.0)
            for sample, value in self._after.items()
            if sample[0] == name and labels.items() <= dict(sample[1]).items()
        )


def breaker_of(site: Site) -> dict[str, Any]:
    return dict(site.status()["storage_manager"]["l2_adapters"][0]["breaker"])


def pass_time(seconds: float, meanwhile: Callable[[], None]) -> None:
    """Lets clients work for so long."""
    end = time.monotonic() + seconds

    def is_over() -> bool:
        meanwhile()
        return time.monotonic() >= end

    wait_for(is_over, seconds + 30, "time passes", every_s=0.05)


def run_drill(site: Site, load: L2Load, fault: AbstractContextManager[Any], *, calm_s: float, fault_s: float) -> Drill:
    """Calm, fault, calm again; asserts what must hold whatever the fault is. The load is idle afterwards."""
    began = time.monotonic()
    pass_time(calm_s, site.check)
    wait_for(lambda: load.seen(role="reader").hit_chunks > 0, START_TIMEOUT_S, "something is found again")
    before, opened_before, states = counts_of(site.metrics()), breaker_of(site)["times_opened"], set[str]()

    def look() -> None:
        site.check()
        states.add(breaker_of(site)["state"])

    fault_at = time.monotonic()
    with fault:
        pass_time(fault_s, look)
    over_at = time.monotonic()
    wait_for(lambda: breaker_of(site)["state"] == "closed", RECOVERY_TIMEOUT_S, "the breaker closes")
    pass_time(calm_s, site.check)
    load.idle()
    wait_until_quiet(site)
    drill = Drill(
        load.seen(began, fault_at), load.seen(fault_at, over_at), load.seen(over_at),
        load.seen(fault_at, over_at, role="storer"), states, breaker_of(site)["times_opened"] - opened_before,
        before, counts_of(site.metrics()),
    )  # fmt: skip
    assert_kept_promises(drill, site, load)
    assert_l2_gives_back(site)
    return drill


def wait_until_quiet(site: Site) -> None:
    """Until nothing is held in L1 and nothing moves; AssertionError when that does not come."""

    def moving() -> dict[str, Any]:
        manager = site.status()["storage_manager"]
        moves = {name: manager["prefetch_controller"][name] for name in ("lookup_phase_count", "in_flight_bytes")}
        moves |= {f"{label} {name}": queue[name] for label, queue in manager["store_controller"]["queues"].items()
                  for name in ("queued_objects", "running_objects", "dirty_bytes")}  # fmt: skip
        left = {name: count for name, count in moves.items() if count}
        return holds_left(manager["l1_manager"]) | left

    def is_quiet() -> bool:
        last.clear()
        last.update(moving())
        return not last

    last: dict[str, Any] = {}
    try:
        wait_for(is_quiet, QUIET_TIMEOUT_S, "nothing is held and nothing moves", every_s=0.05)
    except AssertionError as error:
        raise AssertionError(f"{error}: {last}") from None
    site.check()


def assert_kept_promises(drill: Drill, site: Site, load: L2Load) -> None:
    """No wrong byte, nothing lost, lookups in time, stores that go on."""
    for name, span in (("calm", drill.calm), ("during", drill.during), ("after", drill.after)):
        assert not span.errors, (name, span.errors[:5], load.complaints())
        assert span.wrong_chunks == span.lost_chunks == 0, (name, span)
        assert span.slowest_lookup_s <= site.deadline_s + GRACE_S, (name, span)
        assert span.slowest_store_s <= LONGEST_STORE_S, (name, span)
        assert span.stored_chunks > 0, (name, span)
    assert drill.storers.stored_chunks > 0, drill.storers


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    found = counts_of(text).items()
    return sum(value for (its, given), value in found if its == name and labels.items() <= dict(given).items())


def assert_l2_gives_back(site: Site) -> None:
    """A prompt stored now is written, and comes back from L2 once L1 is empty."""

    def stored() -> float:
        return total(site.metrics(), "larder_l2_write_back_objects_total", outcome="stored")

    def reads() -> float:
        return total(site.metrics(), "larder_l2_calls_total", operation="read", outcome="ok")

    prompt, stored_before, reads_before = FRESH - 1, stored(), reads()
    with PromptClient(site.port, 0) as client:
        assert client.fresh_store(prompt).stored_chunks == CHUNKS
        wait_for(lambda: stored() >= stored_before + CHUNKS, RECOVERY_TIMEOUT_S, "the prompt is written to L2")
        client.wire.clear(force=True)
        seen = client.one_round(prompt)
        assert (seen.hit_chunks, seen.wrong_chunks, seen.lost_chunks) == (CHUNKS, 0, 0), seen
    wait_for(lambda: reads() >= reads_before + CHUNKS, RECOVERY_TIMEOUT_S, "what was read is counted")


@contextmanager
def killed(server: Part) -> Iterator[None]:
    """The server's process is gone; afterwards it is back on its port, with its data."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: Part) -> Iterator[None]:
    """The server takes connections and answers nothing."""
    server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send(signal.SIGCONT)
