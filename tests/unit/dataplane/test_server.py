"""Order, bounds, waiting and stopping of the data-plane server, with an engine that does as it is told."""

import logging
import socket
from types import SimpleNamespace

import psutil
import pytest

from engine.dataplane.limits import DataPlaneLimits
from engine.dataplane.server import DataPlaneServer
from engine.errors import StartError
from tests.unit.dataplane.fake_engine import FakeEngine, Gate
from tests.unit.dataplane.raw_client import RawClient, encode, key
from tests.waiting import wait_for

STORE = ("store", key(), 5, [[1]], b"")
NOT_COPIED = [b"", False]
COPIED = [b"", True]


def value(client, request_id):
    _operation, *values = client.reply(request_id)
    return values[0] if values else None


def test_operations_of_one_client_keep_their_order_behind_a_copy(serve):
    engine, client = serve()
    engine.results["store"] = gate = Gate(True)

    first = client.submit(*STORE)
    assert gate.entered.wait(20)
    behind = [
        client.submit("prepare_store", key(), 5),
        client.submit("commit_store", key(), 5, b""),
        client.submit("retrieve", key(), 5, [[1]], b"", 0),
        client.submit("unregister_kv_cache", 5),
        client.submit("lookup", key(worker_id=None), 1),
        client.submit("query_prefetch_status", "req-1"),
        client.submit("end_session", "req-1"),
    ]
    assert client.call("noop") == "OK"
    assert engine.verbs() == ["store"]
    gate.opened.set()

    assert [client.receive_next()[0] for _ in range(8)] == [first, *behind]
    assert engine.verbs() == [
        "store",
        "prepare_store",
        "commit_store",
        "retrieve",
        "unregister_kv_cache",
        "lookup",
        "take_lookup_result",
        "end_session",
    ]


def test_a_copy_of_one_client_holds_up_nobody_else(serve):
    engine, client = serve()
    engine.results["store"] = gate = Gate(True)
    waiting = client.submit(*STORE)
    assert gate.entered.wait(20)

    with RawClient(engine.server.port) as other:
        assert other.call("retrieve", key(), 6, [[1]], b"", 0) == COPIED
        assert other.call("prepare_store", key(), 6)["context"]["chunk_indices"] == [1]
    assert client.call("ping", 5) is True
    assert client.call("get_chunk_size") == 16
    gate.opened.set()

    assert value(client, waiting) == encode(COPIED)


def test_many_tokens_are_decoded_and_hashed_off_the_socket_thread(serve):
    engine, client = serve()
    engine.results["lookup"] = gate = Gate(None)
    tokens = [100_000 + number for number in range(20_000)]

    looking = client.submit("lookup", key(worker_id=None, token_ids=tokens, end=len(tokens)), 1)
    assert gate.entered.wait(20)
    assert client.call("ping", None) is True
    asked = client.submit("query_prefetch_status", "req-1")
    assert client.call("noop") == "OK"
    assert "take_lookup_result" not in engine.verbs()
    gate.opened.set()

    assert value(client, looking) is None
    assert value(client, asked) == encode(3)


def test_transfers_beyond_the_bound_are_refused_and_the_others_done(serve):
    engine, client = serve(DataPlaneLimits(max_queued_transfers=2, max_queued_short=1))
    engine.results["store"] = gate = Gate(True)
    first = client.submit(*STORE)
    assert gate.entered.wait(20)
    queued = [client.submit(*STORE) for _ in range(2)]

    too_many = [client.submit(*STORE) for _ in range(3)]
    for request_id in too_many:
        assert value(client, request_id) == encode(NOT_COPIED)
    short = client.submit("commit_retrieve", key(), 5)
    short_too_many = client.submit("commit_retrieve", key(), 5)
    assert value(client, short_too_many) == encode(False)
    gate.opened.set()

    assert [value(client, request_id) for request_id in (first, *queued)] == [encode(COPIED)] * 3
    assert value(client, short) == encode(True)
    assert 'larder_dataplane_failures_total{operation="store",reason="busy"} 3.0' in engine.stats.text()


def test_bytes_in_messages_are_bounded_and_given_back(serve):
    engine, client = serve(DataPlaneLimits(max_message_mode_bytes=250_000), shm_name="off")
    engine.results["commit_store"] = gate = Gate(True)
    first = client.submit("commit_store", key(), 5, b"x" * 200_000)
    assert gate.entered.wait(20)

    with RawClient(engine.server.port) as other:
        assert other.call("commit_store", key(), 6, b"x" * 200_000) is False
        gate.opened.set()
        assert value(client, first) == encode(True)
        assert other.call("commit_store", key(), 6, b"x" * 200_000) is True
    assert "larder_dataplane_message_mode_bytes 0.0" in engine.stats.text()


MIB = 1 << 20


@pytest.mark.parametrize(
    ("operation", "parameters", "answer"),
    [
        ("store", [key(token_ids=[1 << 20] * 32), 5, [[1]], b"e" * (16 * MIB)], NOT_COPIED),
        ("lookup", [key(worker_id=None, request_configs=b"c" * (16 * MIB)), 1], None),
        ("prepare_store", [key(request_configs=b"c" * (16 * MIB)), 5], {"context": {"slots": [], "chunk_indices": []}}),
        ("commit_store", [key(request_configs=b"c" * (16 * MIB)), 5, b"data"], False),
        ("report_block_allocation", [9, "m", [{"new_block_ids": [1] * 64, "new_token_ids": [2] * MIB}]], None),
        ("end_session", ["r" * MIB], None),
        ("query_prefetch_status", ["r" * MIB], 0),
        ("clear", [b"x" * MIB], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frames_that_are_no_kv_bytes_are_bounded(serve, operation, parameters, answer):
    engine, client = serve()

    assert client.call(operation, *parameters) == answer

    assert engine.verbs() == []
    failed = f'larder_dataplane_failures_total{{operation="{operation}",reason="bad_request"}} 1.0'
    assert failed in engine.stats.text()
    assert client.call("noop") == "OK"


def test_kv_bytes_and_the_tokens_of_a_very_long_request_are_taken(serve):
    engine, client = serve()
    tokens = [1 << 20] * 1_000_000

    assert client.call("commit_store", key(token_ids=tokens, end=len(tokens)), 5, b"x" * (20 * MIB)) is True
    assert client.call("report_block_allocation", 9, "m", [{"new_block_ids": [1] * 200_000}]) is None
    assert engine.verbs() == ["commit_store", "report_block_allocation"]


def test_large_keys_that_are_queued_count_as_bytes_in_messages(serve):
    engine, client = serve(DataPlaneLimits(max_message_mode_bytes=250_000))
    engine.results["store"] = gate = Gate(True)
    large = key(token_ids=[1 << 20] * 20_000)
    first = client.submit("store", large, 5, [[1]], b"")
    assert gate.entered.wait(20)

    second, third = (client.submit("commit_retrieve", large, 5) for _ in range(2))
    assert value(client, third) == encode(False)
    small = client.submit("commit_retrieve", key(), 5)
    gate.opened.set()

    assert [value(client, request_id) for request_id in (first, second, small)] == [
        encode(COPIED),
        encode(True),
        encode(True),
    ]
    assert "larder_dataplane_message_mode_bytes 0.0" in engine.stats.text()


def test_the_end_of_a_long_session_is_worked_out_off_the_socket_thread(serve):
    engine, client = serve()
    engine.session_sizes["long"], engine.session_sizes["short"] = 16 * 1000, 16 * 2
    engine.results["end_session"] = gate = Gate(None)

    ending = client.submit("end_session", "long")
    assert gate.entered.wait(20)
    assert client.call("ping", None) is True
    gate.opened.set()
    assert value(client, ending) is None
    assert client.call("end_session", "short") is None


def test_many_tokens_of_one_byte_are_many_tokens(serve):
    engine, client = serve()
    engine.results["lookup"] = gate = Gate(None)

    looking = client.submit("lookup", key(worker_id=None, token_ids=[7] * 20_000, end=20_000), 1)
    assert gate.entered.wait(20)
    assert client.call("ping", None) is True
    gate.opened.set()

    assert value(client, looking) is None


def test_a_retrieve_through_shared_memory_needs_no_room_for_messages(serve):
    engine, client = serve(DataPlaneLimits(max_message_mode_bytes=200_000))
    engine.results["commit_store"] = gate = Gate(True)
    storing = client.submit("commit_store", key(), 5, b"x" * 199_995)
    assert gate.entered.wait(20)
    assert "larder_dataplane_message_mode_bytes 200000.0" in engine.stats.text()

    with RawClient(engine.server.port) as other:
        assert other.call("prepare_retrieve", key(), 6)["success"]
    gate.opened.set()
    assert value(client, storing) == encode(True)


def test_an_answer_that_would_not_fit_into_the_budget_is_a_miss_and_is_never_made(serve):
    engine, client = serve(DataPlaneLimits(max_message_mode_bytes=250_000), shm_name="off")
    engine.message_sizes[5], engine.message_sizes[6] = 200_000, 251_000
    engine.results["prepare_retrieve"] = gate = Gate(SimpleNamespace(success=True, slots=[], data=b"d" * 200_000))
    first = client.submit("prepare_retrieve", key(), 5)
    assert gate.entered.wait(20)
    assert "larder_dataplane_message_mode_bytes 200000.0" in engine.stats.text()

    with RawClient(engine.server.port) as other:
        assert other.call("prepare_retrieve", key(), 5)["success"] is False
        gate.opened.set()
        assert len(value(client, first)) > 200_000
        wait_for(lambda: other.call("prepare_retrieve", key(), 5)["success"], 20, "the room is given back")
        assert other.call("prepare_retrieve", key(), 6)["success"] is False
    assert engine.verbs() == ["prepare_retrieve", "prepare_retrieve"]
    engine.results["prepare_retrieve"] = SimpleNamespace(success=False, slots=[], data=b"")
    wait_for(
        lambda: (
            client.call("prepare_retrieve", key(), 5)["success"] is False
            and "larder_dataplane_message_mode_bytes 0.0" in engine.stats.text()
        ),
        20,
        "all room is given back, also that of a miss",
    )


def test_a_client_that_stopped_taking_part_does_not_keep_the_bytes_of_its_answers(serve):
    """Its connection stays open, as that of a frozen process does, but nothing is read from it any more."""
    limits = DataPlaneLimits(max_message_mode_bytes=64 << 20, heartbeat_interval_s=0.2, heartbeat_timeout_s=0.6)
    engine, client = serve(limits, shm_name="off")
    engine.message_sizes[5], engine.message_sizes[6] = 8 << 20, 60 << 20
    engine.results["prepare_retrieve"] = SimpleNamespace(success=True, slots=[], data=b"d" * (8 << 20))
    with RawClient(engine.server.port, unread_messages=1) as frozen:
        for _ in range(40):
            frozen.submit("prepare_retrieve", key(), 5)
        busy = 'larder_dataplane_failures_total{operation="prepare_retrieve",reason="busy"} 0.0'
        wait_for(lambda: busy not in engine.stats.text(), 20, "the budget is used up by unread replies")

        wait_for(lambda: client.call("prepare_retrieve", key(), 6)["success"], 20, "nearly all of it comes back")


def test_a_client_that_does_not_read_loses_replies_and_no_more_bytes_are_made_for_it(serve):
    limits = DataPlaneLimits(max_message_mode_bytes=64 << 20, high_water_mark=1000)
    engine, client = serve(limits, shm_name="off")
    engine.message_sizes[5] = 8 << 20
    engine.results["prepare_retrieve"] = SimpleNamespace(success=True, slots=[], data=b"d" * (8 << 20))
    with RawClient(engine.server.port, unread_messages=1) as deaf:
        for _ in range(40):
            deaf.submit("prepare_retrieve", key(), 5)
        busy = 'larder_dataplane_failures_total{operation="prepare_retrieve",reason="busy"} 0.0'
        wait_for(lambda: busy not in engine.stats.text(), 20, "the budget is used up by unread replies")

        assert client.call("ping", None) is True
        made = engine.verbs().count("prepare_retrieve")
        assert made < 40
    wait_for(lambda: client.call("prepare_retrieve", key(), 5)["success"], 20, "the budget comes back")


def test_replies_beyond_the_high_water_mark_are_dropped_and_counted(serve):
    engine, client = serve(DataPlaneLimits(high_water_mark=5))
    engine.results["end_session"] = None
    with RawClient(engine.server.port, unread_messages=1) as deaf:
        name = "n" * 1000
        for _ in range(3000):
            deaf.submit_frames(encode("get_chunk_size"), encode(name), encode(name))
            deaf.submit_frames(encode(name * 8))
        wait_for(
            lambda: (
                client.call("noop") == "OK"
                and "larder_dataplane_undeliverable_replies_total 0.0" not in engine.stats.text()
            ),
            30,
            "replies are dropped",
        )


def test_replies_to_a_client_that_is_gone_are_dropped_and_counted(serve):
    engine, client = serve()
    engine.results["store"] = gate = Gate(True)
    with RawClient(engine.server.port) as leaving:
        leaving.submit(*STORE)
        assert gate.entered.wait(20)
    wait_for(lambda: client.call("noop") == "OK" and not_connected(engine, 1), 20, "the connection is closed")
    gate.opened.set()

    wait_for(
        lambda: "larder_dataplane_undeliverable_replies_total 1.0" in engine.stats.text(), 20, "the reply is dropped"
    )


def not_connected(engine, others):
    """Whether the server's port has at most `others` established connections."""
    found = [
        connection
        for connection in psutil.Process().net_connections("tcp")
        if connection.laddr.port == engine.server.port and connection.status == psutil.CONN_ESTABLISHED
    ]
    return len(found) <= others


def test_a_waiting_client_is_answered_when_its_lookup_finishes(serve):
    engine, client = serve()
    engine.results["take_lookup_result"] = None
    waiting = client.submit("wait_prefetch_status", "req-1", 30.0)
    assert client.call("noop") == "OK"

    engine.results["take_lookup_result"] = 4
    engine.server.lookups_changed()

    assert value(client, waiting) == encode(4)


def test_a_waiting_client_is_told_to_ask_again_at_its_deadline(serve):
    engine, client = serve()
    engine.results["take_lookup_result"] = None

    assert client.call("wait_prefetch_status", "req-1", 0.05) is None


def test_waits_are_bounded_in_number_and_length(serve):
    engine, client = serve(DataPlaneLimits(max_parked=1, max_wait_s=0.3))
    engine.results["take_lookup_result"] = None

    first = client.submit("wait_prefetch_status", "req-1", 1e30)
    assert client.call("wait_prefetch_status", "req-2", 30.0) == 0
    assert value(client, first) is None


def test_stopping_answers_everybody(serve):
    engine, client = serve()
    engine.results["store"] = gate = Gate(True)
    engine.results["take_lookup_result"] = None
    with RawClient(engine.server.port) as other:
        waiting = other.submit("wait_prefetch_status", "req-1", 30.0)
        running, queued = client.submit(*STORE), client.submit(*STORE)
        assert gate.entered.wait(20)
        assert client.call("noop") == "OK"
        gate.opened.set()
        engine.server.stop()

        assert value(other, waiting) is None
        assert value(client, running) == encode(COPIED)
        assert value(client, queued) in (encode(COPIED), encode(NOT_COPIED))


def test_the_loop_survives_a_handler_that_breaks(serve, caplog):
    caplog.set_level(logging.CRITICAL)
    engine, client = serve()
    engine.results["end_session"] = ZeroDivisionError()

    assert client.call("end_session", "req-1") is None
    assert client.call("ping", 1) is True
    assert engine.server.turn_age_s() < 10


def test_an_idle_loop_keeps_turning_and_is_listed_as_critical(serve):
    engine, _ = serve()
    record = engine.threads.describe()[0]
    assert (record["name"], record["level"]) == ("data-plane", "critical")

    wait_for(lambda: engine.threads.describe()[0]["total_runs"] >= 2, 20, "the loop turned without a request")

    assert engine.threads.unhealthy() == []


def test_an_address_in_use_stops_the_start():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(StartError, match=str(port)):
            DataPlaneServer(FakeEngine(), "127.0.0.1", port).start()


def test_a_host_that_is_not_ours_stops_the_start():
    with pytest.raises(StartError, match=r"203\.0\.113\.1"):
        DataPlaneServer(FakeEngine(), "203.0.113.1", 0).start()
