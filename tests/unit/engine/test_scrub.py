"""A scrub finds what is damaged, leaves alone what is not, and ends in bounded time whatever the storage does."""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from engine.l1.eviction import LRU
from engine.l2.base import Buffers, Stored
from engine.l2.catalog import Catalog, Form
from engine.l2.fault_adapter import FaultAdapter, FaultConfig, Faults
from engine.l2.fs_adapter import FsAdapter, FsConfig
from engine.l2.memory_adapter import MemoryAdapter, MemoryConfig
from engine.l2.metrics import TierMetrics
from engine.l2.record import HEADER_BYTES, make_header
from engine.l2.spec import read_spec
from engine.l2.tier import Outcome, Tier
from engine.movement import scrub as scrub_module
from engine.movement.scrub import Pace, Scrub
from engine.object_key import ObjectKey
from engine.periodic import PeriodicThreads
from tests.waiting import wait_for

FORM = Form(b"a layout, 16 b..", 0)
SIZE = 5000
FAST = Pace(pause_s=0.01, max_outage_s=60)


def key(number: int) -> ObjectKey:
    return ObjectKey(hashlib.sha256(str(number).encode()).digest(), "org/model", 0x01000100, 0, f"tenant{number % 3}")


def payload(number: int) -> bytes:
    return hashlib.shake_256(str(number).encode()).digest(SIZE)


def tier_over(adapter: Any, *, complete: bool = True, **fields: object) -> Tier:
    catalog = Catalog(LRU())
    if complete:
        catalog.take_scan([])
    type_name = "fs" if fields else "memory"
    counters = TierMetrics(CollectorRegistry()).of(type_name, 0)
    tier = Tier(0, read_spec({"type": type_name, **fields}), catalog, counters)
    tier.adapter, tier.codec = adapter, None
    return tier


def filled(tier: Tier, count: int) -> Tier:
    for number in range(count):
        tier.store(key(number), FORM, memoryview(payload(number)))
    return tier


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "l2"


@pytest.fixture
def on_disk(base: Path) -> Tier:
    return filled(tier_over(FsAdapter(FsConfig(str(base))), base_path=str(base)), 12)


def file_of(base: Path, number: int) -> Path:
    (path,) = base.rglob(f"*{key(number).chunk_hash.hex()}*")
    return path


def run_to_end(tier: Tier, pace: Pace = FAST) -> dict[str, Any]:
    scrub = Scrub(tier, PeriodicThreads(), pace)
    assert scrub.start()["started"] is True
    wait_for(lambda: scrub.state()["finished_at"], 20, "the scrub has ended")
    return scrub.stop()


def counts(state: dict[str, Any]) -> tuple[int, ...]:
    return tuple(state[f"{name}_objects"] for name in ("good", "corrupt", "gone", "failed"))


def test_a_sound_storage_is_all_good(on_disk: Tier) -> None:
    state = run_to_end(on_disk)

    assert (state["state"], state["error"]) == ("completed", "")
    assert counts(state) == (12, 0, 0, 0)
    assert (state["checked_objects"], state["total_objects"]) == (12, 12)
    assert state["checked_bytes"] == 12 * (HEADER_BYTES + SIZE)
    assert state["bytes_per_second"] > 0
    assert state["eta_seconds"] is None


def test_damage_of_every_kind_is_found_and_taken_out(on_disk: Tier, base: Path) -> None:
    def flip(path: Path, at: int) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    flip(file_of(base, 0), HEADER_BYTES + 77)
    flip(file_of(base, 1), 20)
    os.truncate(file_of(base, 2), 6000)
    os.truncate(file_of(base, 3), 100)
    os.truncate(file_of(base, 4), 0)
    file_of(base, 5).write_bytes(b"foreign bytes" * 1000)
    file_of(base, 6).write_bytes(file_of(base, 7).read_bytes())
    with file_of(base, 8).open("ab") as file:
        file.write(b"more")

    state = run_to_end(on_disk)

    damaged = {0, 1, 2, 3, 4, 5, 6, 8}
    assert counts(state) == (4, 8, 0, 0)
    left = {stored.key for stored in on_disk.adapter.scan()}
    assert left == {key(number) for number in range(12) if number not in damaged}
    assert {number for number in range(12) if on_disk.catalog.contains(key(number))} == set(range(12)) - damaged
    quarantined: Any = on_disk.describe()["quarantined"]
    assert len(quarantined) == 8
    assert all(entry["deleted"] and "scrub" in entry["reason"] for entry in quarantined)


def test_records_of_any_layout_and_codec_are_good(on_disk: Tier) -> None:
    other = memoryview(b"another layout, another size")
    on_disk.adapter.write(key(50), [memoryview(make_header(key(50), b"some other form.", other)), other])
    on_disk.catalog.add(key(50), HEADER_BYTES + len(other))

    assert counts(run_to_end(on_disk)) == (13, 0, 0, 0)


def test_a_size_that_the_catalog_has_wrong_is_no_damage(on_disk: Tier) -> None:
    for number, size in ((0, 1), (1, HEADER_BYTES + SIZE - 1), (2, HEADER_BYTES + SIZE + 1), (3, 10 * SIZE)):
        on_disk.catalog.add(key(number), size)

    assert counts(run_to_end(on_disk)) == (12, 0, 0, 0)


def test_what_is_gone_leaves_the_catalog(on_disk: Tier, base: Path) -> None:
    file_of(base, 3).unlink()
    file_of(base, 9).unlink()

    state = run_to_end(on_disk)

    assert counts(state) == (10, 0, 2, 0)
    assert len(on_disk.catalog) == 10
    assert not on_disk.catalog.contains(key(3))


@pytest.mark.parametrize(("complete", "shared"), [(False, False), (True, True)])
def test_what_the_catalog_does_not_know_is_found_by_a_scan(base: Path, complete: bool, shared: bool) -> None:
    filled(tier_over(FsAdapter(FsConfig(str(base))), base_path=str(base)), 5)
    fresh = tier_over(FsAdapter(FsConfig(str(base))), complete=complete, base_path=str(base), shared=shared)
    file_of(base, 2).write_bytes(b"")

    state = run_to_end(fresh)

    assert state["total_objects"] == 5
    assert counts(state) == (4, 1, 0, 0)


class ReplacedMeanwhile(MemoryAdapter):
    """The first read of each object gives nonsense, as if it were replaced during it."""

    def __init__(self) -> None:
        super().__init__(MemoryConfig())
        self.seen: set[ObjectKey] = set()

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        size = super().read(key, into)
        if key not in self.seen:
            self.seen.add(key)
            into[0][:10] = bytes(10)
        return size


def test_only_what_is_damaged_at_a_second_look_is_quarantined() -> None:
    tier = filled(tier_over(ReplacedMeanwhile()), 3)

    assert counts(run_to_end(tier)) == (3, 0, 0, 0)
    assert tier.load(key(1), FORM.fingerprint, memoryview(bytearray(SIZE))).outcome is Outcome.LOADED


def faulty(count: int, **rates: float) -> tuple[Tier, FaultAdapter]:
    adapter = FaultAdapter(FaultConfig(inner={"type": "memory"}), MemoryAdapter(MemoryConfig()))
    tier = filled(tier_over(adapter), count)
    adapter.set_faults(Faults(**rates))
    return tier, adapter


def test_it_waits_while_the_storage_is_away_and_goes_on_after() -> None:
    tier, adapter = faulty(6, error_rate=1.0)
    scrub = Scrub(tier, PeriodicThreads(), FAST)
    scrub.start()

    wait_for(lambda: scrub.state()["state"] == "waiting", 20, "the breaker has opened")
    adapter.set_faults(Faults())
    wait_for(lambda: scrub.state()["finished_at"], 20, "the scrub has ended")

    state = scrub.stop()
    assert state["state"] == "completed"
    assert state["good_objects"] >= 4
    assert state["good_objects"] + state["failed_objects"] == 6


def test_a_storage_that_stays_away_ends_it() -> None:
    tier, _ = faulty(50, error_rate=1.0)

    state = run_to_end(tier, Pace(pause_s=0.01, max_outage_s=0.3))

    assert state["state"] == "failed"
    assert "has not answered" in str(state["error"])
    assert state["good_objects"] == 0


class Refusing(MemoryAdapter):
    """Answers every read of an odd object with an error."""

    def __init__(self) -> None:
        super().__init__(MemoryConfig())
        self.refused: Sequence[ObjectKey] = ()

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        if key in self.refused:
            raise PermissionError("not this one")
        return super().read(key, into)


def test_single_objects_that_cannot_be_read_are_counted_and_stay() -> None:
    adapter = Refusing()
    tier = filled(tier_over(adapter), 9)
    adapter.refused = [key(1), key(5)]

    state = run_to_end(tier)

    assert (state["state"], *counts(state)) == ("completed", 7, 0, 0, 2)
    assert len(tier.catalog) == 9


def test_a_storage_that_refuses_everything_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "MAX_FAILURES_IN_A_ROW", 4)
    adapter = Refusing()
    tier = filled(tier_over(adapter), 9)
    adapter.refused = [key(number) for number in range(9)]

    state = run_to_end(tier)

    assert (state["state"], state["failed_objects"]) == ("failed", 4)
    assert "not this one" in str(state["error"])


class Gated(MemoryAdapter):
    """Reads wait for the gate."""

    def __init__(self) -> None:
        super().__init__(MemoryConfig())
        self.gate, self.reading = threading.Event(), threading.Event()

    def read(self, key: ObjectKey, into: Buffers) -> int | None:
        self.reading.set()
        self.gate.wait(20)
        return super().read(key, into)


@pytest.fixture
def gated() -> Iterator[tuple[Tier, Gated]]:
    adapter = Gated()
    yield filled(tier_over(adapter), 10), adapter
    adapter.gate.set()


def test_there_is_one_at_a_time_and_it_is_listed(gated: tuple[Tier, Gated]) -> None:
    tier, adapter = gated
    threads = PeriodicThreads()
    scrub = Scrub(tier, threads, FAST)
    assert scrub.state()["state"] == "never"

    first, second = scrub.start(), scrub.start()

    assert (first["started"], second["started"]) == (True, False)
    wait_for(adapter.reading.is_set, 10, "it reads")
    assert [thread.name for thread in threading.enumerate()].count("l2-scrub-0-memory") == 1
    (entry,) = threads.describe()
    assert (entry["name"], entry["level"], entry["is_running"]) == ("l2-scrub-0-memory", "low", True)
    adapter.gate.set()
    wait_for(lambda: scrub.state()["finished_at"], 20, "the scrub has ended")
    assert scrub.start()["started"] is True
    wait_for(lambda: scrub.state()["finished_at"], 20, "the second scrub has ended")
    scrub.stop()


def test_a_stop_ends_it_with_the_object_at_hand(gated: tuple[Tier, Gated]) -> None:
    tier, adapter = gated
    scrub = Scrub(tier, PeriodicThreads(), FAST)
    scrub.start()
    wait_for(adapter.reading.is_set, 10, "it reads")

    told = scrub.stop(timeout_s=0)
    adapter.gate.set()
    state = scrub.stop()

    assert told["stopped"] is True
    assert (state["state"], state["good_objects"], state["total_objects"]) == ("stopped", 1, 10)
    assert scrub.stop()["stopped"] is False


def test_the_pace_is_kept_and_a_stop_does_not_wait_for_it() -> None:
    tier = filled(tier_over(MemoryAdapter(MemoryConfig())), 4)
    scrub = Scrub(tier, PeriodicThreads(), Pace(bytes_per_s=2 * (HEADER_BYTES + SIZE) // 1000))
    scrub.start()

    wait_for(lambda: scrub.state()["checked_objects"] == 1, 10, "the first object is read")
    state = scrub.stop()

    assert (state["state"], state["checked_objects"]) == ("stopped", 1)


def test_progress_says_how_long_it_will_take() -> None:
    tier = filled(tier_over(MemoryAdapter(MemoryConfig())), 4)
    scrub = Scrub(tier, PeriodicThreads(), Pace(bytes_per_s=1))
    scrub.start()

    wait_for(lambda: scrub.state()["checked_objects"] == 1, 10, "the first object is read")
    state: Any = scrub.state()
    scrub.stop()

    assert state["eta_seconds"] == pytest.approx(3 * state["elapsed_seconds"], abs=0.1)
    assert scrub.state()["eta_seconds"] is None


def test_what_claims_to_be_larger_than_any_object_is_not_read() -> None:
    class Boasting(MemoryAdapter):
        def scan(self) -> Iterator[Stored]:
            for stored in super().scan():
                yield stored._replace(size=1 << 40)

    tier = tier_over(Boasting(MemoryConfig()), complete=False)
    tier.adapter.write(key(1), [memoryview(b"tiny")])

    assert counts(run_to_end(tier)) == (0, 0, 0, 1)
