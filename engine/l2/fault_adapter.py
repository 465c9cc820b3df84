"""An adapter that fails on purpose: wraps any other and spoils calls by rate and seed. For tests, drills and demos.

fault         verbs                what the caller sees
-----------   ------------------   ---------------------------------------------------------------------
latency       all                  the call takes `latency_s` longer
error         all                  ConnectionFault; half of the time after the effect, as when an answer is lost
short_read    read                 fewer bytes than are stored, the rest of the buffers zero
flipped_bit   read                 one bit of the buffers is wrong
full          write                StorageFull, nothing is written

Each verb has a stream of draws of its own, and every call draws the same number of times: with one seed, the n-th read
meets the same fate in every run, whatever other verbs do and whichever rates of other faults are changed meanwhile.
"""

import dataclasses
import json
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from engine.l2.base import Buffers, ConnectionFault, L2Adapter, StorageFull, Stored, total_bytes
from engine.l2.reconfigure import Reconfigured, ReconfigureError
from engine.object_key import ObjectKey

MAX_LATENCY_S = 3600.0
_VERBS = ("exists", "read", "write", "delete", "scan", "used")


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong: rates from 0 (never) to 1 (always). Raises ValueError for others."""

    latency_rate: float = 0.0
    latency_s: float = 0.0
    error_rate: float = 0.0
    short_read_rate: float = 0.0
    flipped_bit_rate: float = 0.0
    full_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            limit = MAX_LATENCY_S if name == "latency_s" else 1.0
            if not 0 <= value <= limit:
                raise ValueError(f"{name} is {value}, allowed is 0 to {limit:g}")


@dataclass(frozen=True)
class FaultConfig(Faults):
    """`inner` is the wrapped adapter's configuration with its `type`; the registry opens it."""

    inner: dict[str, object] = field(default_factory=dict, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (entry.name for entry in dataclasses.fields(Faults)):
            Faults(**{name: getattr(self, name)})
        if not isinstance(self.inner.get("type"), str):
            raise ValueError('inner must be an object with a "type"')

    def faults(self) -> Faults:
        """The rates alone."""
        return Faults(**{entry.name: getattr(self, entry.name) for entry in dataclasses.fields(Faults)})


class _Fate(NamedTuple):
    """What one call meets. `where` (0 to 1) is the place of a cut or a flipped bit."""

    delay_s: float
    error: bool
    error_after: bool
    short_read: bool
    flipped_bit: bool
    full: bool
    where: float


class FaultAdapter(L2Adapter):
    """The lock guards the rates, the streams and the counters; the inner verbs run outside it."""

    type_name: ClassVar[str] = "fault"
    config_class = FaultConfig
    #: What `reconfigure` takes, and `status`.
    supported_operations: ClassVar[tuple[str, ...]] = ("status", "set")

    def __init__(self, config: FaultConfig, inner: L2Adapter) -> None:
        """Owns `inner` from now on."""
        self.inner = inner
        self.keeps_order_of_use = inner.keeps_order_of_use  # type: ignore[misc]  # the wrapped adapter's, not a class's
        self._lock = threading.Lock()
        self._faults = config.faults()
        self._streams = {verb: random.Random(f"{config.seed}/{verb}") for verb in _VERBS}
        self._injected = dict.fromkeys(("latency", "error", "short_read", "flipped_bit", "full"), 0)
        self._changed = threading.Event()

    def set_faults(self, faults: Faults) -> None:
        """From the next call on these rates hold; calls that are being delayed go on at once."""
        with self._lock:
            self._faults = faults
            self._wake()

    def faults(self) -> Faults:
        """The rates that hold now."""
        with self._lock:
            return self._faults

    def injected(self) -> dict[str, int]:
        """How many of each fault callers have met so far."""
        with self._lock:
            return dict(self._injected)

    def exists(self, key: ObjectKey) -> bool:
        fate = self._begin("exists")
        found = self.inner.exists(key)
        self._end("exists", fate)
        return found

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        fate = self._begin("read")
        size = self.inner.read(key, into)
        self._end("read", fate)
        if not size:
            return size
        if fate.flipped_bit and size == total_bytes(into):
            self._count("flipped_bit")
            _flip(into, int(fate.where * size * 8))
        if fate.short_read:
            self._count("short_read")
            size = int(fate.where * size)
            _blank(into, size)
        return size

    def write(self, key: ObjectKey, data: Buffers) -> None:
        fate = self._begin("write")
        if fate.full:
            self._count("full")
            raise StorageFull(f"injected: no room for {total_bytes(data)} bytes")
        self.inner.write(key, data)
        self._end("write", fate)

    def delete(self, key: ObjectKey) -> bool:
        fate = self._begin("delete")
        removed = self.inner.delete(key)
        self._end("delete", fate)
        return removed

    def scan(self) -> Iterator[Stored]:
        fate = self._begin("scan")
        for stored in self.inner.scan():
            yield stored
            self._end("scan", fate)

    def used(self, key: ObjectKey) -> None:
        fate = self._begin("used")
        self.inner.used(key)
        self._end("used", fate)

    def capacity_bytes(self) -> int | None:
        return self.inner.capacity_bytes()

    def describe(self) -> dict[str, object]:
        return {
            "faults": dataclasses.asdict(self.faults()),
            "injected": self.injected(),
            "inner": {"type": self.inner.type_name, **self.inner.describe()},
        }

    def status(self) -> dict[str, object]:
        """The `status` of this adapter's entry in GET /reconfigure/fault/status."""
        return {
            "faults": dataclasses.asdict(self.faults()),
            "injected": self.injected(),
            "inner": self.inner.type_name,
        }

    @staticmethod
    def check_operation(operation: str, fields: Mapping[str, object]) -> None:
        """What can be said of an operation without an adapter. Raises ReconfigureError."""
        if operation != "set":
            raise ReconfigureError("bad_request", f"unsupported fault reconfigure operation: {operation}")
        _changed(Faults(), fields)

    def reconfigure(self, operation: str, fields: Mapping[str, object]) -> Reconfigured:
        """`set` changes the faults that it names. Raises ReconfigureError."""
        self.check_operation(operation, fields)
        with self._lock:
            self._faults = faults = _changed(self._faults, fields)
            self._wake()
        return Reconfigured({"status": "ok", "operation": "set", "faults": dataclasses.asdict(faults)})

    def close(self) -> None:
        self.set_faults(Faults())
        self.inner.close()

    def _begin(self, verb: str) -> _Fate:
        """Draws what this call meets, and lets it meet what comes before the effect."""
        with self._lock:
            fate = self._draw(verb)
            changed = self._changed
            self._injected["latency"] += fate.delay_s > 0
        if fate.delay_s:
            changed.wait(fate.delay_s)
        if fate.error and not fate.error_after:
            self._fail(verb)
        return fate

    def _end(self, verb: str, fate: _Fate) -> None:
        if fate.error and fate.error_after:
            self._fail(verb)

    def _draw(self, verb: str) -> _Fate:
        stream, faults = self._streams[verb], self._faults
        draws = [stream.random() for _ in range(7)]
        return _Fate(
            delay_s=faults.latency_s if draws[0] < faults.latency_rate else 0.0,
            error=draws[1] < faults.error_rate,
            error_after=draws[2] < 0.5,
            short_read=draws[3] < faults.short_read_rate,
            flipped_bit=draws[4] < faults.flipped_bit_rate,
            full=draws[5] < faults.full_rate,
            where=draws[6],
        )

    def _fail(self, verb: str) -> None:
        self._count("error")
        raise ConnectionFault(f"injected: {verb} was not answered")

    def _count(self, fault: str) -> None:
        with self._lock:
            self._injected[fault] += 1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = threading.Event()


def _changed(faults: Faults, fields: Mapping[str, object]) -> Faults:
    """`faults` with these others. Raises ReconfigureError."""
    known = sorted(entry.name for entry in dataclasses.fields(Faults))
    if not fields:
        raise ReconfigureError("bad_request", f"set names none of {', '.join(known)}")
    values: dict[str, float] = {}
    for name, value in fields.items():
        if name not in known:
            raise ReconfigureError("bad_request", f"unknown field {name[:64]!r}; known are {', '.join(known)}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ReconfigureError("bad_request", f"{name} is {json.dumps(value)[:80]}, allowed is a number")
        values[name] = value
    try:
        changed = dataclasses.replace(faults, **values)
    except ValueError as error:
        raise ReconfigureError("bad_request", str(error)[:300]) from error
    return Faults(**{name: float(value) for name, value in dataclasses.asdict(changed).items()})


def _flip(buffers: Buffers, bit: int) -> None:
    at = bit // 8
    for buffer in buffers:
        if at < len(buffer):
            buffer[at] ^= 1 << bit % 8
            return
        at -= len(buffer)


def _blank(buffers: Buffers, start: int) -> None:
    for buffer in buffers:
        from_here = min(start, len(buffer))
        buffer[from_here:] = bytes(len(buffer) - from_here)
        start -= from_here
