"""Made-up tokens that are stored and looked up by hand."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from engine.dataplane.client import LarderClient, SharedKV
from engine.errors import BadRequest, NoKVMemory
from engine.l2.fault_adapter import FaultAdapter, Faults
from tests.e2e.served_engine import BLOCK, CHUNK, ServedEngine
from tests.waiting import wait_for
from workers import by_hand

SHAPE = (2, 32, BLOCK, 2, 8)
FIRST, LAST = 1000, 1000 + 4 * CHUNK + 3
WHOLE = 4 * CHUNK
TOKENS = list(range(FIRST, LAST))


@pytest.fixture
def served() -> Iterator[ServedEngine]:
    adapter = {"type": "fault", "inner": {"type": "memory"}}
    with ServedEngine(l2_adapter=(adapter,), l2_lookup_deadline_seconds=30.0) as served:
        yield served


@pytest.fixture
def client(served: ServedEngine) -> Iterator[LarderClient]:
    """A worker whose memory is full of different numbers."""
    with SharedKV([SHAPE] * 2) as kv, LarderClient(f"tcp://127.0.0.1:{served.port}", "model") as client:
        client.register_shared(kv)
        for number, layer in enumerate(kv.layers):
            layer[:] = np.random.default_rng(number).random(SHAPE)
        yield client


def wait_until_written(served: ServedEngine, count: int) -> None:
    wait_for(lambda: len(served.engine.l2.tiers[0].catalog) == count, 10, "all is in L2")


def test_blocks_of_the_first_worker_are_stored_from_the_second_on(served: ServedEngine, client: LarderClient) -> None:
    with SharedKV([SHAPE] * 2) as kv, LarderClient(client.url, "model") as reader:
        reader.register_shared(kv)

        assert by_hand.store(served.engine, FIRST, LAST) == LAST - FIRST

        assert reader.lookup(TOKENS, "reader") == WHOLE
        reader.retrieve(TOKENS, list(range(1, 17)), "reader", end=WHOLE)
        slots = list(range(BLOCK, 17 * BLOCK))
        sums = [
            served.engine.checksum_slots(one.instance_id, slots, 1, False)["chunk_checksums"]
            for one in (client, reader)
        ]
        assert sums[0] == sums[1]
        assert len(set(sums[0])) > WHOLE / 2, "the numbers differ"
    assert served.held() == {}


def test_what_l2_has_is_in_l1_after_a_retrieve(served: ServedEngine, client: LarderClient) -> None:
    assert by_hand.retrieve(served.engine, FIRST, LAST) == 0
    by_hand.store(served.engine, FIRST, LAST)
    wait_until_written(served, 4)
    served.engine.clear(force=True)

    assert by_hand.retrieve(served.engine, FIRST, LAST) == WHOLE

    assert served.engine.l1.report()["total_object_count"] == 4
    assert served.held() == {}
    assert by_hand.retrieve(served.engine, FIRST, FIRST + CHUNK - 1) == 0


def test_a_frozen_cache_is_not_stored_into(served: ServedEngine, client: LarderClient) -> None:
    served.engine.steering.set_frozen(True)
    by_hand.store(served.engine, FIRST, LAST)
    served.engine.steering.set_frozen(False)

    assert by_hand.retrieve(served.engine, FIRST, LAST) == 0


def test_a_storage_that_hangs_is_not_waited_for(
    served: ServedEngine, client: LarderClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "WAIT_S", 0.05)
    by_hand.store(served.engine, FIRST, LAST)
    wait_until_written(served, 4)
    served.engine.clear(force=True)
    adapter = served.engine.l2.tiers[0].adapter
    assert isinstance(adapter, FaultAdapter)
    adapter.set_faults(Faults(latency_rate=1.0, latency_s=5.0))
    found: list[int] = []

    asking = threading.Thread(target=lambda: found.append(by_hand.retrieve(served.engine, FIRST, LAST)))
    asking.start()
    wait_for(lambda: found, 20, "the answer")
    asking.join()
    adapter.set_faults(Faults())

    assert found == [0]
    wait_for(lambda: not served.held(), 20, "nothing is held")


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 5), (5, 4), (0, 2**32 + 1), (0, 1_000_001)])
def test_what_is_no_range_is_refused(served: ServedEngine, client: LarderClient, start: int, end: int) -> None:
    for verb in (by_hand.store, by_hand.retrieve):
        with pytest.raises(BadRequest, match="start before end"):
            verb(served.engine, start, end)


def test_a_worker_with_too_few_blocks_and_none_at_all(served: ServedEngine) -> None:
    for verb in (by_hand.store, by_hand.retrieve):
        with pytest.raises(NoKVMemory):
            verb(served.engine, 0, CHUNK)
    with SharedKV([SHAPE]) as kv, LarderClient(f"tcp://127.0.0.1:{served.port}", "model") as client:
        client.register_shared(kv)
        assert by_hand.store(served.engine, 0, 7 * CHUNK) == 7 * CHUNK
        with pytest.raises(BadRequest, match="8 chunks are 32 blocks, the worker has 31 to read"):
            by_hand.store(served.engine, 0, 8 * CHUNK)
