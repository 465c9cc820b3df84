"""Any bytes at the live socket: every request is answered, the engine stays whole, and a proper client is served."""

import random
import struct
from collections.abc import Iterator

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.wire import OPERATION_IDS
from tests.e2e.served_engine import BLOCK, ClientTensors, ServedEngine, registration
from tests.unit.dataplane.raw_client import RawClient, encode, key
from tests.unit.dataplane.test_wire_fuzz import ANYTHING, mutated
from tests.waiting import wait_for

MAX_MESSAGE = 1 << 20
LIMITS = DataPlaneLimits(max_message_bytes=MAX_MESSAGE, max_wait_s=0.05)
KV_SHAPE = (2, 12, BLOCK, 2, 4)
NAMES = [*sorted(OPERATION_IDS.values()), "subscribe_kv_events", "no_such_operation"]
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def served() -> Iterator[ServedEngine]:
    with ServedEngine(limits=LIMITS) as engine:
        yield engine


@pytest.fixture(scope="module")
def tensors() -> Iterator[ClientTensors]:
    with ClientTensors([KV_SHAPE]) as made:
        yield made


@pytest.fixture(scope="module")
def valid(tensors) -> list[tuple[str, list[bytes]]]:
    """Requests that would be answered well, each as its parameter frames."""
    calls = [
        ("register_kv_cache_engine_driven_context", [registration(5)]),
        ("register_kv_cache", [9, tensors.descriptors(), "meta/llama", 1, "vllm", {"kv_layout": "NHD"}, []]),
        ("lookup", [key(worker_id=None), 1]),
        ("query_prefetch_status", ["req-1"]),
        ("wait_prefetch_status", ["req-1", 0.01]),
        ("free_lookup_locks", [key(worker_id=None), 1]),
        ("prepare_store", [key(), 5]),
        ("commit_store", [key(), 5, b""]),
        ("commit_store", [key(), 5, b"no pickle"]),
        ("prepare_retrieve", [key(), 5]),
        ("commit_retrieve", [key(), 5]),
        ("store", [key(), 9, [[1, 2, 3, 4, 5, 6, 7, 8]], b"stub_ipc_handle"]),
        ("retrieve", [key(), 9, [[8, 7, 6, 5, 4, 3, 2, 1]], b"stub_ipc_handle", 4]),
        ("end_session", ["req-1"]),
        ("report_block_allocation", [1, "m", [{"req_id": "r", "new_block_ids": [1], "new_token_ids": [1]}]]),
        ("ping", [5]),
        ("clear", [True]),
        ("unregister_kv_cache", [9]),
        ("unregister_kv_cache_engine_driven_context", [5]),
    ]
    return [(name, [encode(parameter) for parameter in parameters]) for name, parameters in calls]


@pytest.fixture(autouse=True)
def nobody_stays_registered(served) -> Iterator[None]:
    """Also not under an id that a damaged message made up; then nothing may be held."""
    yield
    with RawClient(served.port) as client:
        for known in served.engine.registrations.all():
            operation = "unregister_kv_cache" + ("_engine_driven_context" if known.tensors is None else "")
            client.call(operation, known.instance_id)
        client.call("clear", True)
    assert served.held() == {}
    assert served.engine.threads.unhealthy() == []


def answered_and_whole(served: ServedEngine, client: RawClient, request_id: bytes | None) -> None:
    """The request got its reply, pings are answered, the engine's invariants hold."""
    if request_id is not None:
        assert len(client.reply(request_id)) <= 2
    assert client.call("ping", None) is True
    served.engine.check()


@FUZZ
@given(st.sampled_from(NAMES) | st.integers(0, 40), st.lists(ANYTHING, max_size=8))
def test_any_parameters(served, operation, parameters):
    with RawClient(served.port) as client:
        answered_and_whole(served, client, client.submit(operation, *parameters))


@FUZZ
@given(st.integers(0, 10**6), st.integers(0, 2**32))
def test_damaged_requests(served, valid, pick, seed):
    chance = random.Random(seed)
    with RawClient(served.port) as client:
        for name, frames in valid[: chance.randrange(4)]:
            client.reply(client.submit_frames(encode(name), *frames))
        name, frames = valid[pick % len(valid)]
        damaged = list(frames)
        at = chance.randrange(len(damaged))
        damaged[at] = mutated(damaged[at], seed)
        answered_and_whole(served, client, client.submit_frames(encode(name), *damaged))


@FUZZ
@given(st.integers(0, 2**32))
def test_proper_requests_in_any_order(served, valid, seed):
    chance = random.Random(seed)
    with RawClient(served.port) as client:
        sent = [client.submit_frames(encode(name), *frames) for name, frames in chance.choices(valid, k=12)]
        for request_id in sent:
            assert len(client.reply(request_id)) <= 2
        answered_and_whole(served, client, None)


@FUZZ
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=40))
def test_any_frames(served, frames):
    with RawClient(served.port) as client:
        client.socket.send_multipart(frames)
        if not (len(frames) > 2 and frames[1] == b""):
            assert client.receive_next()[0] == frames[0]
        answered_and_whole(served, client, None)


@FUZZ
@given(st.binary(max_size=500), st.booleans())
def test_any_bytes_below_the_framing(served, data, greet):
    greeting = b"\xff" + struct.pack(">Q", 1) + b"\x7f\x03\x00NULL" + bytes(48) if greet else b""
    context = zmq.Context()
    try:
        stream = context.socket(zmq.STREAM)
        stream.setsockopt(zmq.LINGER, 0)
        stream.connect(f"tcp://127.0.0.1:{served.port}")
        identity = stream.recv_multipart()[0]
        stream.send_multipart([identity, greeting + data])
        stream.close()
    finally:
        context.term()
    with RawClient(served.port) as client:
        answered_and_whole(served, client, None)


def test_a_message_longer_than_allowed_costs_its_sender_the_connection_and_nobody_else_anything(served):
    with RawClient(served.port) as greedy, RawClient(served.port) as client:
        greedy.submit_frames(encode("commit_store"), encode(key()), encode(5), b"x" * (MAX_MESSAGE + 1))

        answered_and_whole(served, client, None)

        def greedy_is_served_again() -> bool:
            """What it sent before it noticed the closing went down with the old connection."""
            greedy.submit("noop")
            return bool(greedy.socket.poll(200))

        wait_for(greedy_is_served_again, 20, "its next connection is served")
