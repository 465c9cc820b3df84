"""The engine copies by itself: hybrid models, and workers that come back under their old id."""

from collections.abc import Iterator

import pytest

from engine.engine import Engine
from engine.errors import BadRequest
from engine.kv_layout import KVGroup
from tests.unit.device.kv_model import Layer, Registration, Segment
from tests.unit.device.test_block_copies import opened
from tests.unit.engine.engine_client import CONFIG, REGISTRATION, hit, request, started

HINT = {"kv_layout": "NHD"}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with started(CONFIG) as running:
        yield running


def memory(groups: list[KVGroup]) -> Registration:
    segment = Segment()
    layers = [Layer((2, 16, 4, 1, 2), "float16", (0, 1, 2, 3, 4), segment) for _ in groups or [None]]
    return Registration(layers, groups, HINT)


def fill(registration: Registration, seed: int) -> None:
    registration.layers[0].segment.fill(seed)


def test_a_hit_of_a_hybrid_model_never_ends_where_the_windows_data_is_missing(engine: Engine) -> None:
    groups = [KVGroup(0, (0,), 4), KVGroup(1, (1,), 4, sw_size_tokens=16)]
    ids = [list(range(1, 13)), [0] * 8 + [1, 2, 3, 4]]
    with opened(memory(groups)) as tensors:
        engine.register_kv_cache(1, tensors, "model", 1)

        assert engine.store(request(3), 1, ids)

        assert hit(engine, request(3, "long")) == 3
        assert hit(engine, request(2, "short")) == 0
        assert engine.retrieve(request(3, "long"), 1, ids, 0)
        assert not engine.retrieve(request(2, "short"), 1, [ids[0], [5, 6, 7, 8, 9, 10, 11, 12]], 0)


def test_a_worker_that_comes_back_under_its_id_is_served_from_its_new_memory(engine: Engine) -> None:
    first, second = memory([]), memory([])
    with opened(first) as former, opened(second) as latter:
        fill(first, 1)
        fill(second, 2)
        engine.register_kv_cache(1, former, "model", 1)
        engine.register_kv_cache(1, latter, "model", 1)

        assert engine.store(request(1), 1, [[1, 2, 3, 4]])

        pin = engine.l1.pin(list(engine.l1._index.entries), latter.layout.fingerprint, "engine", "reader")
        assert pin is not None
        view = engine.segment.view(pin.entries[0].offset, pin.entries[0].nbytes)
        stored = bytes(view)
        view.release()
        engine.l1.unpin(pin)
        expected = bytearray(len(stored))
        latter.gather(0, [[1, 2, 3, 4]], memoryview(expected))
        assert stored == bytes(expected)


def test_the_same_memory_registered_again_changes_nothing(engine: Engine) -> None:
    registration = memory([])
    with opened(registration) as tensors:
        engine.register_kv_cache(1, tensors, "model", 1)
        before = engine.registrations.find(1)
        assert before is not None

        assert before.agrees_with(before)
        engine.register_kv_cache(1, tensors, "model", 1)

        assert engine.registrations.find(1) is before


def test_an_id_cannot_change_its_transfer_mode_without_unregistering(engine: Engine) -> None:
    engine.register_engine_driven(REGISTRATION)
    with opened(memory([])) as tensors, pytest.raises(BadRequest, match="other transfer mode"):
        engine.register_kv_cache(1, tensors, "model", 1)
