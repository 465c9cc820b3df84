"""KV through a real engine over a real socket: each way of copying, with the bytes compared."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from tests.e2e.served_engine import (
    BLOCK,
    CHUNK,
    ClientTensors,
    Pool,
    ServedEngine,
    contents,
    registration,
)
from tests.unit.dataplane.raw_client import RawClient, key

REGISTER, UNREGISTER = "register_kv_cache_engine_driven_context", "unregister_kv_cache_engine_driven_context"
SCHEDULER = {"worker_id": None}
BLOCKS_PER_CHUNK = CHUNK // BLOCK


@pytest.fixture
def served() -> Iterator[ServedEngine]:
    with ServedEngine() as engine:
        yield engine


@pytest.fixture
def client(served) -> Iterator[RawClient]:
    with RawClient(served.port) as connected:
        yield connected


def hits(client, **changes) -> int:
    """Chunks a lookup finds; its leases stay."""
    request = key(**SCHEDULER, **changes)
    client.call("lookup", request, 1)
    return client.call("query_prefetch_status", request["request_id"])


def store_through_pool(client, instance_id, chunks, **changes):
    answer = client.call(REGISTER, registration(instance_id, world_size=changes.get("world_size", 1)))
    pool = Pool(answer["shm_name"])
    context = client.call("prepare_store", key(**changes), instance_id)["context"]
    for slot, index in zip(context["slots"], context["chunk_indices"], strict=True):
        pool.write(slot, chunks[index])
    pool.close()
    if context["slots"]:
        assert client.call("commit_store", key(**changes), instance_id, b"") is True
    return context["chunk_indices"]


def retrieve_through_pool(client, instance_id, **changes):
    pool = Pool(client.call(REGISTER, registration(instance_id))["shm_name"])
    answer = client.call("prepare_retrieve", key(**changes), instance_id)
    found = [pool.read(slot).copy() for slot in answer["context"].get("slots", [])]
    pool.close()
    assert client.call("commit_retrieve", key(**changes), instance_id) is True
    return found if answer["success"] else None


def test_what_an_engine_driven_client_stores_comes_back_through_shared_memory(served, client):
    chunks = contents(1, 2)

    assert hits(client) == 0
    assert store_through_pool(client, 5, chunks) == [0, 1]
    assert hits(client) == 2
    found = retrieve_through_pool(client, 6)

    assert all(np.array_equal(got, put) for got, put in zip(found, chunks, strict=True))
    assert served.held() == {}


def test_only_what_is_not_there_is_asked_for(client):
    chunks = contents(2, 3)
    store_through_pool(client, 5, chunks, token_ids=list(range(48)), end=32)

    assert store_through_pool(client, 5, chunks, token_ids=list(range(48)), end=48) == [2]
    assert store_through_pool(client, 5, chunks, token_ids=list(range(48)), end=48) == []
    assert hits(client, token_ids=list(range(50)), end=50) == 3
    assert hits(client, token_ids=[*range(32), *range(90, 106)], end=48) == 2


def test_prepared_and_uncommitted_is_invisible_and_ends_with_the_registration(served, client):
    client.call(REGISTER, registration(5))

    assert client.call("prepare_store", key(), 5)["context"]["chunk_indices"] == [0, 1]
    assert hits(client) == 0
    assert client.call("prepare_store", key(request_id="other"), 5)["context"]["slots"] == []
    client.call(UNREGISTER, 5)

    assert served.held() == {}
    assert client.call("commit_store", key(), 5, b"") is False


def test_tenants_and_models_share_nothing(client):
    store_through_pool(client, 5, contents(3, 2), cache_salt="a")

    assert hits(client, cache_salt="a") == 2
    assert hits(client, cache_salt="b") == 0
    assert hits(client) == 0
    assert hits(client, model_name="other", cache_salt="a") == 0


def test_a_prefix_counts_when_every_rank_has_it(client):
    chunks = contents(4, 2)
    store_through_pool(client, 50, chunks, world_size=2, worker_id=0)

    assert hits(client, world_size=2) == 0
    store_through_pool(client, 51, chunks[:1], world_size=2, worker_id=1, end=16)
    assert hits(client, world_size=2) == 1


def test_freeing_leases_rounds_an_unaligned_end_down(served, client):
    store_through_pool(client, 5, contents(5, 2))
    assert hits(client) == 2

    client.call("free_lookup_locks", key(**SCHEDULER, start=0, end=20), 1)
    assert served.held() == {"leases": 1}
    assert retrieve_through_pool(client, 5, start=16, end=32) is not None
    assert served.held() == {}


def test_bytes_travel_in_messages_when_shared_memory_is_off():
    torch = pytest.importorskip("torch")
    chunks = contents(6, 2)
    data = pickle.dumps([torch.from_numpy(chunk.copy()) for chunk in chunks], protocol=4)

    with ServedEngine(shm_name="off") as served, RawClient(served.port) as client:
        assert client.call(REGISTER, registration(5)) == {"shm_name": "", "pool_size": 0}
        assert client.call("prepare_store", key(), 5) == {"context": {}}
        assert client.call("commit_store", key(), 5, data) is True
        assert hits(client) == 2
        answer = client.call("prepare_retrieve", key(), 5)
        assert client.call("commit_retrieve", key(), 5) is True

        assert answer["success"] is True
        assert answer["context"] == {}
        found = pickle.loads(answer["data"])
        assert all(np.array_equal(got.numpy(), put) for got, put in zip(found, chunks, strict=True))
        assert served.held() == {}


def test_a_pickle_that_is_no_list_of_tensors_is_refused_and_not_run(client, served, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    client.call(REGISTER, registration(5))
    for data in (pickle.dumps(Evil()), pickle.dumps([Evil()]), b"\x80\x04.", b"x" * 1000, pickle.dumps([])):
        assert client.call("commit_store", key(), 5, data) is False

    assert not (tmp_path / "pwned").exists()
    assert served.held() == {}


def test_a_client_that_fell_back_to_messages_stores_into_what_it_had_prepared(served, client):
    torch = pytest.importorskip("torch")
    chunks = contents(7, 2)
    client.call(REGISTER, registration(5))
    client.call("prepare_store", key(), 5)
    data = pickle.dumps([torch.from_numpy(chunk.copy()) for chunk in chunks], protocol=4)

    assert client.call("commit_store", key(), 5, data) is True
    answer = client.call("prepare_retrieve", key(), 5)

    found = pickle.loads(answer["data"])
    assert all(np.array_equal(got.numpy(), put) for got, put in zip(found, chunks, strict=True))
    assert served.held() == {}


KV_SHAPE = (2, 12, BLOCK, 2, 4)


def register_tensors(client, instance_id, tensors, groups=(), **changes):
    client.call(
        "register_kv_cache",
        instance_id,
        tensors.descriptors(),
        changes.get("model_name", "meta/llama"),
        changes.get("world_size", 1),
        "vllm",
        {"kv_layout": "NHD"},
        list(groups),
    )


def test_the_server_copies_between_block_tables_and_leaves_skipped_blocks_alone(served, client):
    with ClientTensors([KV_SHAPE] * 3) as tensors:
        tensors.fill(8)
        original = [layer.copy() for layer in tensors.layers]
        register_tensors(client, 9, tensors)
        source, target = [3, 2, 1, 7, 8, 9, 10, 11], [4, 5, 6, 1, 2, 3, 9, 8]

        assert client.call("store", key(), 9, [source], b"stub_ipc_handle")[1] is True
        assert hits(client) == 2
        tensors.erase()
        assert client.call("retrieve", key(), 9, [target], b"stub_ipc_handle", 2 * BLOCK + 1)[1] is True

        for layer, before in zip(tensors.layers, original, strict=True):
            assert np.array_equal(layer[:, target[2:]], before[:, source[2:]])
            untouched = sorted(set(range(12)) - set(target[2:]))
            assert (layer[:, untouched] == -1).all()
        assert served.held() == {}
        client.call("unregister_kv_cache", 9)


def test_groups_of_different_type_are_stored_as_one(client):
    groups = [
        {
            "engine_group_id": number,
            "layer_indices": [number],
            "tokens_per_block": BLOCK,
            "sw_size_tokens": -1,
            "extra_object_group_tag": 0,
            "recurrent_state": False,
        }
        for number in range(2)
    ]
    with ClientTensors([(12, BLOCK, 8), KV_SHAPE]) as tensors:
        tensors.fill(9)
        original = [layer.copy() for layer in tensors.layers]
        register_tensors(client, 9, tensors, groups)
        source, target = [[1, 2, 3, 4], [5, 6, 7, 8]], [[9, 10, 11, 1], [2, 3, 4, 5]]

        assert client.call("store", key(end=16), 9, source, b"")[1] is True
        tensors.erase()
        assert client.call("retrieve", key(end=16), 9, target, b"", 0)[1] is True

        assert np.array_equal(tensors.layers[0][target[0]], original[0][source[0]])
        assert np.array_equal(tensors.layers[1][:, target[1]], original[1][:, source[1]])
        client.call("unregister_kv_cache", 9)


def test_block_ids_that_do_not_fit_are_answered_false_and_change_nothing(served, client):
    with ClientTensors([KV_SHAPE]) as tensors:
        tensors.fill(10)
        register_tensors(client, 9, tensors)
        good = [1, 2, 3, 4, 5, 6, 7, 8]

        for ids in ([good[:7]], [[]], [], [good, good], [[*good[:7], 12]]):
            assert client.call("store", key(), 9, ids, b"") == [b"", False]
        assert client.call("store", key(), 10, [good], b"") == [b"", False]
        assert hits(client) == 0
        assert client.call("store", key(), 9, [[0] * 8], b"")[1] is True
        assert hits(client) == 0
        assert client.call("retrieve", key(), 9, [good], b"", 0) == [b"", False]
        assert served.held() == {}
        client.call("unregister_kv_cache", 9)


def test_memory_that_a_client_took_away_is_answered_false(served, client):
    with ClientTensors([KV_SHAPE]) as tensors:
        register_tensors(client, 9, tensors)
        with tensors.path.open("r+b") as segment:
            segment.truncate(0)

        assert client.call("store", key(), 9, [[1, 2, 3, 4, 5, 6, 7, 8]], b"") == [b"", False]

        assert client.call("ping", 9) is True
        assert served.held() == {}
        client.call("unregister_kv_cache", 9)


@pytest.mark.parametrize(
    "changes", [{"shm_name": "/etc"}, {"shm_name": "/lmcache_kv_0_0"}, {"nbytes": 1}, {"type": "cuda"}]
)
def test_memory_that_cannot_be_is_refused_at_registration(client, changes):
    with ClientTensors([KV_SHAPE]) as tensors:
        parameters = [9, tensors.descriptors(**changes), "m", 1, "vllm", {"kv_layout": "NHD"}, []]

        assert client.refusal("register_kv_cache", *parameters)


@pytest.mark.parametrize(("mode", "refused"), [("lmcache_driven", True), ("engine_driven", False)])
def test_only_the_supported_transfer_mode_may_register(mode, refused):
    with (
        ServedEngine(supported_transfer_mode=mode) as served,
        RawClient(served.port) as client,
        ClientTensors([KV_SHAPE]) as tensors,
    ):
        server_driven = [9, tensors.descriptors(), "m", 1, "vllm", {"kv_layout": "NHD"}, []]
        if refused:
            assert mode in client.refusal(REGISTER, registration(5))
            client.call("register_kv_cache", *server_driven)
            client.call("unregister_kv_cache", 9)
        else:
            assert mode in client.refusal("register_kv_cache", *server_driven)
            assert client.call(REGISTER, registration(5))["pool_size"] > 0


def test_after_a_restart_the_first_ping_fails_and_registering_again_goes_on(served, client):
    assert client.call("ping", None) is True
    client.call(REGISTER, registration(5))
    assert client.call("ping", 5) is True

    with ServedEngine() as next_boot, RawClient(next_boot.port) as reconnected:
        assert reconnected.call("ping", None) is True
        assert reconnected.call("prepare_store", key(), 5) == {"context": {"slots": [], "chunk_indices": []}}
        assert "5" in reconnected.refusal("ping", 5)
        assert reconnected.call("ping", 5) is True
        assert store_through_pool(reconnected, 5, contents(11, 2)) == [0, 1]


def test_clearing_spares_what_is_promised_unless_forced(served, client):
    store_through_pool(client, 5, contents(12, 2))
    assert hits(client) == 2

    client.call("clear", False)
    assert retrieve_through_pool(client, 5) is not None
    client.call("clear")
    assert hits(client) == 0
    store_through_pool(client, 5, contents(12, 2))
    hits(client)
    client.call("clear", True)

    assert retrieve_through_pool(client, 5) is None
    assert served.held() == {}
