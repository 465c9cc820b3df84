"""Sessions: hashes are remembered, never trusted, and never kept for ever."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import sessions as sessions_module
from engine.cache_request import CacheRequest, make_request
from engine.errors import BadRequest
from engine.object_key import pack_kv_rank
from engine.sessions import Sessions
from engine.token_hasher import TokenHasher

CHUNK = 4


def request(tokens: list[int], request_id: str = "r", **fields: object) -> CacheRequest:
    fields = {"worker_id": 0, "start": 0, "end": len(tokens)} | fields
    return make_request("model", 1, tokens=array("I", tokens), request_id=request_id, **fields)  # type: ignore[arg-type]


class CountingHasher(TokenHasher):
    """Counts the chunks it hashes."""

    def __init__(self) -> None:
        super().__init__("blake3", CHUNK)
        self.hashed = 0

    def extend(self, hashes: list[bytes], tokens: "array[int]", chunks: int) -> None:
        before = len(hashes)
        super().extend(hashes, tokens, chunks)
        self.hashed += len(hashes) - before


def fresh(tokens: list[int], chunks: int) -> list[bytes]:
    found: list[bytes] = []
    TokenHasher("blake3", CHUNK).extend(found, array("I", tokens), chunks)
    return found


@given(st.lists(st.lists(st.integers(0, 3), max_size=24), max_size=8))
def test_whatever_came_before_under_the_id_hashes_are_those_of_the_tokens_sent(histories: list[list[int]]) -> None:
    sessions = Sessions(TokenHasher("blake3", CHUNK), 60)

    for tokens in histories:
        chunks = len(tokens) // CHUNK
        assert sessions.hashes(request(tokens), chunks) == fresh(tokens, chunks)


def test_a_growing_request_hashes_each_chunk_once() -> None:
    hasher = CountingHasher()
    sessions = Sessions(hasher, 60)
    tokens = list(range(40))

    for length in (8, 20, 20, 40):
        sessions.hashes(request(tokens[:length]), length // CHUNK)
    sessions.hashes(request(tokens), 3)

    assert hasher.hashed == 10


def test_a_lookup_result_is_taken_once() -> None:
    sessions = Sessions(TokenHasher("blake3", CHUNK), 60)
    sessions.set_lookup_result("r", 7)

    assert [sessions.take_lookup_result("r"), sessions.take_lookup_result("r")] == [7, 0]
    assert sessions.take_lookup_result("never seen") == 0


def test_idle_sessions_are_dropped_and_used_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(sessions_module.time, "monotonic", lambda: now[0])
    sessions = Sessions(TokenHasher("blake3", CHUNK), ttl_s=10)
    for name in ("idle", "used"):
        sessions.hashes(request([1] * 4, name), 1)
    now[0] = 8.0
    sessions.hashes(request([1] * 4, "used"), 1)
    now[0] = 11.0

    assert sessions.expire() == 1
    assert len(sessions) == 1
    assert sessions.end("idle") is None
    assert sessions.end("used") is not None


def test_the_table_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MAX_SESSIONS", 3)
    monkeypatch.setattr(sessions_module, "MAX_REMEMBERED_TOKENS", 24)
    sessions = Sessions(TokenHasher("blake3", CHUNK), 60)

    for number in range(10):
        sessions.hashes(request([number] * 4, f"r{number}"), 1)
    assert len(sessions) == 3
    sessions.hashes(request(list(range(20)), "long"), 5)

    assert len(sessions) == 2
    assert sessions._tokens == 24


@pytest.mark.parametrize(
    "fields",
    [
        {"start": 5, "end": 4},
        {"end": 99},
        {"start": -4},
        {"worker_id": 1},
        {"worker_id": -1},
        {"num_kv_readers": 0},
        {"cache_salt": "a@b"},
        {"cache_salt": "x" * 129},
        {"cache_salt": "a\0"},
        {"request_id": "x" * 2000},
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        request([1, 2, 3, 4], **fields)  # type: ignore[arg-type]


def test_kv_ranks_pack_world_size_and_rank_twice() -> None:
    assert pack_kv_rank(1, 0) == 16777472
    assert pack_kv_rank(2, 1) == 2 << 24 | 1 << 16 | 2 << 8 | 1
    with pytest.raises(BadRequest):
        pack_kv_rank(256, 0)
