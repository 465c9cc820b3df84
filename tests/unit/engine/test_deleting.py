"""Deleting many objects: all of them, together where it takes long, and no further than the first failure."""

import threading

import pytest

from engine.errors import BadRequest
from engine.l2.deleting import THREADS, delete_all
from engine.object_key import ObjectKey

KEYS = [ObjectKey(number.to_bytes(2), "m", 1) for number in range(500)]


def test_a_quick_storage_is_asked_by_the_caller_alone() -> None:
    callers = set()
    gone = []

    def delete(key: ObjectKey) -> bool:
        callers.add(threading.current_thread())
        gone.append(key)
        return key.chunk_hash[1] % 2 == 0

    assert delete_all(delete, KEYS, patience_s=60) == (250, "")
    assert gone == KEYS
    assert callers == {threading.current_thread()}


def test_a_slow_storage_is_asked_by_several_at_a_time() -> None:
    together = threading.Barrier(THREADS + 1)
    gone = []

    def delete(key: ObjectKey) -> bool:
        if key != KEYS[0]:
            together.wait(30)
        gone.append(key)
        return True

    count = 1 + 5 * (THREADS + 1)
    assert delete_all(delete, KEYS[:count], patience_s=0) == (count, "")
    assert sorted(gone) == KEYS[:count]


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
@pytest.mark.parametrize("failure", [OSError("no right"), BadRequest("no right")])
def test_nothing_is_begun_after_a_failure(patience_s: float, failure: Exception) -> None:
    begun = []

    def delete(key: ObjectKey) -> bool:
        begun.append(key)
        if key == KEYS[20]:
            raise failure
        return True

    deleted, error = delete_all(delete, KEYS, patience_s=patience_s)

    assert error == "no right"
    assert deleted == len(begun) - 1
    assert deleted == 20 if patience_s else deleted >= 20


def test_a_failure_without_words_is_one_too() -> None:
    def delete(key: ObjectKey) -> bool:
        raise OSError

    assert delete_all(delete, KEYS) == (0, "OSError")
    assert delete_all(delete, []) == (0, "")
