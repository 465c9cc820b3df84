"""Each operation over a real socket: its answer, the engine verb it means, and the safe answer of every failure."""

import logging
from types import SimpleNamespace

import msgspec
import pytest

from engine.dataplane.counters import FAILURES
from engine.errors import BadRequest, ClientMemoryError, UnknownInstance
from tests.unit.dataplane.raw_client import encode, key

SLOT = {"offset": 64, "length": 32, "shape": [2, 4], "dtype": "float32"}
REGISTRATION = {
    "instance_id": 5,
    "model_name": "m",
    "world_size": 1,
    "block_size": 4,
    "num_layers": 2,
    "hidden_dim_size": 8,
    "dtype_str": "float32",
    "use_mla": False,
    "num_physical_slots": 16,
}
RECORDS = [{"req_id": "r", "new_block_ids": [1, 2], "new_token_ids": [3]}]

#: name, number, parameters, answer, verb called (None: none)
GOOD = [
    ("get_chunk_size", 21, [], 16, None),
    ("get_experimental", 32, [], [], None),
    ("noop", 24, [], "OK", None),
    ("ping", 22, [None], True, "ping"),
    ("ping", 22, [1 << 62], True, "ping"),
    ("clear", 20, [True], None, "clear"),
    ("clear", 20, [], None, "clear"),
    ("report_block_allocation", 23, [9, "m", RECORDS], None, "report_block_allocation"),
    ("subscribe_kv_events", "subscribe_kv_events", [1, "m", 0, 16], None, None),
    (
        "register_kv_cache_engine_driven_context",
        14,
        [REGISTRATION],
        {"shm_name": "pool", "pool_size": 4096},
        "register_engine_driven",
    ),
    ("unregister_kv_cache_engine_driven_context", 15, [5], None, "unregister_engine_driven"),
    ("unregister_kv_cache", 2, [5], None, "unregister_kv_cache"),
    ("lookup", 8, [key(worker_id=None), 1], None, "lookup"),
    ("free_lookup_locks", 12, [key(worker_id=None, end=17), 1], None, "free_lookup_locks"),
    ("query_prefetch_status", 9, ["req-1"], 3, "take_lookup_result"),
    ("wait_prefetch_status", 10, ["req-1", 1.5], 3, "take_lookup_result"),
    ("wait_prefetch_status", 10, ["req-1", 2], 3, "take_lookup_result"),
    ("end_session", 13, ["req-1"], None, "end_session"),
    ("prepare_store", 16, [key(), 5], {"context": {"slots": [SLOT], "chunk_indices": [1]}}, "prepare_store"),
    ("commit_store", 17, [key(), 5, b""], True, "commit_store"),
    ("commit_store", 17, [key(), 5, b"tensors"], True, "commit_store"),
    (
        "prepare_retrieve",
        18,
        [key(), 5],
        {"success": True, "data": b"", "context": {"slots": [{**SLOT, "offset": 0}]}},
        "prepare_retrieve",
    ),
    ("commit_retrieve", 19, [key(), 5], True, "commit_retrieve"),
    ("store", 6, [key(), 5, [[1, 2], [3]], b"stub_ipc_handle"], [b"", True], "store"),
    ("retrieve", 7, [key(), 5, [[1, 2], [3]], b"stub_ipc_handle", 4], [b"", True], "retrieve"),
]

#: operation -> the safe answer of its failures; "refused" where the client is told at once.
SAFE = {
    "ping": "refused",
    "clear": None,
    "report_block_allocation": None,
    "register_kv_cache_engine_driven_context": "refused",
    "unregister_kv_cache_engine_driven_context": None,
    "unregister_kv_cache": None,
    "lookup": None,
    "free_lookup_locks": None,
    "query_prefetch_status": 0,
    "wait_prefetch_status": 0,
    "end_session": None,
    "prepare_store": {"context": {"slots": [], "chunk_indices": []}},
    "commit_store": False,
    "prepare_retrieve": {"success": False, "data": b"", "context": {}},
    "commit_retrieve": False,
    "store": [b"", False],
    "retrieve": [b"", False],
}


def answer_of(client, operation, *parameters):
    name, *values = client.reply(client.submit(operation, *parameters))
    if msgspec.msgpack.decode(name) == "error":
        return "refused"
    assert name == encode(operation)
    return msgspec.msgpack.decode(values[0]) if values else None


@pytest.mark.parametrize(("name", "number", "parameters", "answer", "verb"), GOOD, ids=lambda value: str(value)[:40])
def test_an_operation_is_answered_under_its_number_and_its_name(serve, name, number, parameters, answer, verb):
    engine, client = serve()

    assert client.call(number, *parameters) == answer
    assert client.call(name, *parameters) == answer
    assert engine.verbs() == ([verb, verb] if verb else [])


CALLS = {name: (parameters, verb) for name, _, parameters, _, verb in reversed(GOOD) if verb}


@pytest.mark.parametrize("operation", sorted(SAFE))
@pytest.mark.parametrize(
    "error", [BadRequest("no"), UnknownInstance(5), ClientMemoryError("gone"), RuntimeError("bug")]
)
def test_a_failing_verb_gets_the_safe_answer(serve, operation, error, caplog):
    caplog.set_level(logging.CRITICAL)
    engine, client = serve()
    parameters, verb = CALLS[operation]
    engine.results[verb] = error

    assert answer_of(client, operation, *parameters) == SAFE[operation]
    assert client.call("noop") == "OK"


@pytest.mark.parametrize("operation", sorted(SAFE))
def test_undecodable_missing_and_surplus_parameters_get_the_safe_answer(serve, operation):
    engine, client = serve()
    parameters, _ = CALLS[operation]
    frames = [encode(parameter) for parameter in parameters]
    variants = [[*frames, encode(1)], [*frames, *[b"\xc1"] * 40]]
    variants += [
        [*frames[:at], junk, *frames[at + 1 :]] for at in range(len(frames)) for junk in (b"\xc1", b"", encode({}))
    ]
    if operation != "clear":
        variants.append(frames[:-1])

    for variant in variants:
        name, *values = client.reply(client.submit_frames(encode(operation), *variant))

        answer = "refused" if name == encode("error") else msgspec.msgpack.decode(values[0]) if values else None
        assert answer == SAFE[operation], variant
    assert engine.calls == []


def test_the_engine_is_given_what_the_client_sent(serve):
    engine, client = serve()

    client.call("retrieve", key(start=16, end=32), 7, [[5, 6], []], b"", 3)
    client.call("commit_store", key(cache_salt="t"), 8, b"payload")
    client.call("report_block_allocation", 9, "m", RECORDS)
    client.call("clear", True)
    client.call("clear")

    request, instance_id, block_ids, skip = engine.last("retrieve")
    assert (request.start, request.end, instance_id, block_ids, skip) == (16, 32, 7, [[5, 6], []], 3)
    request, instance_id, data = engine.last("commit_store")
    assert (request.cache_salt, instance_id, bytes(data)) == ("t", 8, b"payload")
    assert engine.last("report_block_allocation") == ("m", 1, 2)
    assert [arguments for verb, arguments in engine.calls if verb == "clear"] == [(True,), (False,)]


def test_a_first_ping_that_the_engine_answers_no_is_refused(serve):
    engine, client = serve()
    engine.results["ping"] = False

    assert "77" in client.refusal("ping", 77)


def test_a_lookup_still_at_work_is_answered_with_void(serve):
    engine, client = serve()
    engine.results["take_lookup_result"] = None

    assert client.call("query_prefetch_status", "req-1") is None


def test_in_message_mode_prepare_store_offers_no_slots_and_bytes_come_back_in_the_answer(serve):
    engine, client = serve(shm_name="off")
    engine.results["prepare_store"] = SimpleNamespace(shared_memory=False, slots=[], chunk_indices=[])
    engine.results["prepare_retrieve"] = SimpleNamespace(success=True, slots=[], data=b"d" * 200_000)

    assert client.call("prepare_store", key(), 5) == {"context": {}}
    assert client.call("prepare_retrieve", key(), 5) == {"success": True, "data": b"d" * 200_000, "context": {}}


def test_a_miss_is_answered_as_such(serve):
    engine, client = serve()
    engine.results["prepare_retrieve"] = SimpleNamespace(success=False, slots=[], data=b"")

    assert client.call("prepare_retrieve", key(), 5) == SAFE["prepare_retrieve"]


@pytest.mark.parametrize(
    "operation",
    [0, 3, 4, 5, 11, 25, 33, 34, 1 << 40, "cb_reorder_plan", "server_module_call", "p2p_unlock_objects", "x"],
)
def test_an_operation_that_is_not_offered_is_refused_at_once(serve, operation):
    _, client = serve()

    assert "not offered" in client.refusal(operation, 1, 2)


def test_frames_that_name_no_operation_are_refused(serve):
    _, client = serve()

    for operation in (b"", b"\xc1", b"\x91" * 100, encode(None), b"x" * 10_000):
        assert client.reply(client.submit_frames(operation))[0] == encode("error")


def test_a_message_without_an_operation_is_refused(serve):
    _, client = serve()

    client.socket.send(b"\x07")

    assert client.receive_next()[:2] == [b"\x07", encode("error")]


def test_control_messages_of_a_stream_get_no_answer(serve):
    _, client = serve()

    client.submit_frames(b"", b"ack")
    client.submit_frames(b"", b"cancel")
    assert client.call("noop") == "OK"

    assert not client.has_reply()


def test_requests_and_failures_are_counted_by_operation(serve):
    engine, client = serve()
    engine.results["lookup"] = BadRequest("no")
    client.call("lookup", key(worker_id=None), 1)
    client.refusal("no_such_operation")

    text = engine.stats.text()

    assert 'larder_dataplane_requests_total{operation="lookup"} 1.0' in text
    assert 'larder_dataplane_failures_total{operation="lookup",reason="bad_request"} 1.0' in text
    assert 'larder_dataplane_failures_total{operation="unknown",reason="bad_request"} 1.0' in text
    for reason in FAILURES:
        assert f'larder_dataplane_failures_total{{operation="store",reason="{reason}"}} 0.0' in text
