"""The adapter that fails on purpose: transparent at rate zero, and as wrong as it was told to be."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StartError
from engine.l2.base import ConnectionFault, StorageFull
from engine.l2.fault_adapter import FaultAdapter, FaultConfig, Faults
from engine.l2.fs_adapter import FsAdapter, FsConfig
from engine.l2.memory_adapter import MemoryAdapter, MemoryConfig
from engine.l2.reconfigure import Reconfigurable, ReconfigureError
from engine.l2.record import HEADER_BYTES, Verdict, verify
from engine.l2.registry import open_adapter
from tests.conformance.l2_conformance import FINGERPRINT, KEY, L2Conformance, Raw, load, payload, store
from tests.conformance.test_fs_adapter import RawFiles
from tests.waiting import wait_for

INNER = {"type": "memory"}
NO_FAULTS = dataclasses.asdict(Faults())


class TestFaultless(L2Conformance):
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> FaultAdapter:
        return faulty(FsAdapter(FsConfig(str(tmp_path / "l2"))))

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Raw:
        return RawFiles(tmp_path / "l2")


def faulty(inner: object = None, seed: int = 0, **rates: float) -> FaultAdapter:
    return FaultAdapter(FaultConfig(inner=INNER, seed=seed, **rates), inner or MemoryAdapter(MemoryConfig()))


def fails(verb: Callable[[], object]) -> bool:
    try:
        verb()
    except ConnectionFault:
        return True
    return False


def pattern(adapter: FaultAdapter, calls: int = 200) -> list[bool]:
    return [fails(lambda: adapter.exists(KEY)) for _ in range(calls)]


def test_errors_come_at_their_rate_and_are_counted() -> None:
    adapter = faulty(error_rate=0.3)

    failed = sum(pattern(adapter, 1000))

    assert 240 < failed < 360
    assert adapter.injected() == {"latency": 0, "error": failed, "short_read": 0, "flipped_bit": 0, "full": 0}


def test_one_seed_gives_the_same_faults_again_and_another_gives_others() -> None:
    assert pattern(faulty(seed=7, error_rate=0.5)) == pattern(faulty(seed=7, error_rate=0.5))
    assert pattern(faulty(seed=7, error_rate=0.5)) != pattern(faulty(seed=8, error_rate=0.5))


def test_other_verbs_and_other_rates_do_not_move_a_fault() -> None:
    plain, busy = faulty(seed=3, error_rate=0.5), faulty(seed=3, error_rate=0.5, short_read_rate=1.0, full_rate=1.0)
    expected = pattern(plain)

    met = []
    for _ in range(200):
        fails(lambda: busy.delete(KEY))
        met.append(fails(lambda: busy.exists(KEY)))

    assert met == expected


def test_an_error_may_hide_an_effect_that_happened() -> None:
    adapter = faulty(error_rate=1.0)
    keys = [KEY._replace(chunk_hash=bytes([number]) * 32) for number in range(40)]

    for number, key in enumerate(keys):
        with pytest.raises(ConnectionFault, match="injected: write"):
            store(adapter, key, payload(number))

    assert 0 < sum(adapter.inner.exists(key) for key in keys) < 40


def test_a_short_read_never_passes_for_the_whole() -> None:
    adapter = faulty(short_read_rate=1.0)
    store(adapter, KEY, payload(1))

    for _ in range(50):
        size, header, data = load(adapter, KEY, 5000)
        assert size is not None
        assert size < HEADER_BYTES + 5000
        whole = header + data
        assert whole[size:] == bytes(len(whole) - size)
    assert adapter.injected()["short_read"] == 50


def test_a_flipped_bit_is_one_bit_and_the_record_finds_it() -> None:
    adapter = faulty(flipped_bit_rate=1.0)
    store(adapter, KEY, payload(1))
    right = b"".join(load(adapter.inner, KEY, 5000)[1:])

    for _ in range(50):
        size, header, data = load(adapter, KEY, 5000)
        changed = int.from_bytes(header + data) ^ int.from_bytes(right)
        assert changed.bit_count() == 1
        verdict = verify(memoryview(header), memoryview(data), size, KEY, FINGERPRINT)
        assert verdict is not Verdict.GOOD or data == payload(1), "a wrong payload passed"
    assert load(adapter.inner, KEY, 5000)[2] == payload(1)


def test_a_full_disk_writes_nothing_and_other_verbs_go_on() -> None:
    adapter = faulty(full_rate=1.0)

    with pytest.raises(StorageFull, match="injected: no room for 9096 bytes"):
        store(adapter, KEY, payload(1))

    assert adapter.exists(KEY) is False
    assert adapter.injected()["full"] == 1


def test_faults_are_switched_while_calls_run() -> None:
    adapter = faulty()
    store(adapter, KEY, payload(1))

    adapter.set_faults(Faults(error_rate=1.0))
    assert fails(lambda: adapter.exists(KEY))
    assert fails(lambda: list(adapter.scan()))

    adapter.set_faults(Faults())
    assert adapter.exists(KEY)
    assert adapter.faults() == Faults()


def test_a_delayed_call_takes_its_time() -> None:
    adapter = faulty(latency_rate=1.0, latency_s=0.2)

    started = time.monotonic()
    adapter.exists(KEY)

    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("release", [lambda adapter: adapter.set_faults(Faults()), lambda adapter: adapter.close()])
def test_delayed_calls_are_let_go_when_the_fault_ends(release: Callable[[FaultAdapter], None]) -> None:
    adapter = faulty(latency_rate=1.0, latency_s=600.0)
    caller = threading.Thread(target=adapter.exists, args=(KEY,), name="delayed")
    caller.start()
    wait_for(lambda: adapter.injected()["latency"] == 1, 10, "the call to be delayed")

    release(adapter)

    caller.join(10)
    assert not caller.is_alive()


def test_the_registry_opens_the_inner_adapter(tmp_path: Path) -> None:
    adapter = open_adapter("fault", {"inner": {"type": "fs", "base_path": str(tmp_path / "l2")}, "error_rate": 1})

    assert isinstance(adapter, FaultAdapter)
    assert isinstance(adapter.inner, FsAdapter)
    assert adapter.keeps_order_of_use is True
    assert adapter.capacity_bytes() == adapter.inner.capacity_bytes()
    assert adapter.describe()["inner"]["type"] == "fs"
    assert adapter.describe()["faults"]["error_rate"] == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "inner must be an object"),
        ({"inner": {"base_path": "x"}}, "inner must be an object"),
        ({"inner": {"type": "tape"}}, "unknown type 'tape'"),
        ({"inner": {"type": "memory", "colour": 1}}, "'memory': unknown field 'colour'"),
        ({"inner": INNER, "error_rate": 1.5}, "error_rate is 1.5, allowed is 0 to 1"),
        ({"inner": INNER, "full_rate": -0.1}, "full_rate is -0.1"),
        ({"inner": INNER, "latency_s": 1e9}, "latency_s is 1000000000.0, allowed is 0 to 3600"),
        ({"inner": INNER, "error_rate": "high"}, 'error_rate is "high", allowed is a number'),
    ],
)
def test_a_wrong_configuration_stops_the_start(fields: dict[str, object], message: str) -> None:
    with pytest.raises(StartError, match=message.replace("(", r"\(")):
        open_adapter("fault", fields)


def test_faults_are_switched_at_runtime_and_the_others_stay() -> None:
    adapter = faulty(error_rate=1.0, latency_rate=0.25)
    assert isinstance(adapter, Reconfigurable)
    assert fails(lambda: adapter.exists(KEY))

    answer = adapter.reconfigure("set", {"error_rate": 0, "full_rate": 1})

    faults = {**NO_FAULTS, "latency_rate": 0.25, "full_rate": 1.0}
    assert answer.body == {"status": "ok", "operation": "set", "faults": faults}
    assert adapter.status() == {"faults": faults, "injected": adapter.injected(), "inner": "memory"}
    assert adapter.injected()["error"] == 1
    assert not fails(lambda: adapter.exists(KEY))


@pytest.mark.parametrize(
    ("operation", "fields", "message"),
    [
        ("grow", {}, "unsupported fault reconfigure operation: grow"),
        ("set", {"colour": 1}, "unknown field 'colour'; known are error_rate"),
        ("set", {"seed": 1}, "unknown field 'seed'"),
        ("set", {"error_rate": 1.5}, "error_rate is 1.5, allowed is 0 to 1"),
        ("set", {"error_rate": True}, "error_rate is true, allowed is a number"),
        ("set", {"latency_s": "1"}, "latency_s is"),
        ("set", {"latency_s": float("nan")}, "latency_s is nan"),
        ("set", {}, "set names none of"),
    ],
)
def test_a_wrong_change_changes_nothing(operation: str, fields: dict[str, object], message: str) -> None:
    adapter = faulty(error_rate=0.5)

    with pytest.raises(ReconfigureError, match=message) as refusal:
        adapter.reconfigure(operation, fields)
    assert refusal.value.code == "bad_request"
    assert adapter.faults() == Faults(error_rate=0.5)
