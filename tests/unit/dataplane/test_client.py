"""Our client against a real engine behind a real socket: both transfer modes, misses, restarts, silence."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.dataplane.client import KVGroup, LarderClient, Miss, Refused, ServerAway, SharedKV
from engine.dataplane.server import DataPlaneServer
from engine.engine import Engine

CHUNK = 32
BLOCK = 8
BLOCKS = 24
SHAPE = (2, BLOCKS, BLOCK, 2, 4)
LAYERS = 3
TOKENS = list(range(100, 100 + 3 * CHUNK + 5))
STORED = [5, 4, 3, 2, 9, 10, 11, 12, 20, 7, 22, 1]
FETCHED = [13, 14, 15, 16, 17, 18, 19, 21, 23, 8, 6, 0]


@contextmanager
def larder(port: int = 0, **config: object) -> Iterator[DataPlaneServer]:
    """A server of its own pool; `port` 0 means a free one."""
    name = f"larder_client_test_{os.getpid()}_{time.monotonic_ns()}"
    defaults: dict[str, object] = {"shm_name": name, "l1_size_bytes": 8 << 20, "chunk_size": CHUNK}
    engine = Engine(EngineConfig(**{**defaults, **config}))  # type: ignore[arg-type]  # fields by name
    with ExitStack() as stack:
        engine.start()
        stack.callback(engine.stop)
        server = DataPlaneServer(engine, "127.0.0.1", port)
        server.start()
        stack.callback(server.stop)
        yield server


@contextmanager
def client_of(server: DataPlaneServer, **options: object) -> Iterator[LarderClient]:
    with LarderClient(f"tcp://127.0.0.1:{server.port}", "model", timeout_s=20, **options) as client:  # type: ignore[arg-type]
        yield client


def filled(kv: list[np.ndarray]) -> None:
    for number, layer in enumerate(kv):
        layer[:] = np.random.default_rng(number).integers(0, 100, layer.shape).astype(layer.dtype)


def blocks_of(layers: list[np.ndarray], ids: list[int]) -> list[bytes]:
    return [layer[:, ids].tobytes() for layer in layers]


def private_layers(dtype: str = "float16") -> list[np.ndarray]:
    layers = [np.zeros(SHAPE, dtype) for _ in range(LAYERS)]
    filled(layers)
    return layers


def test_the_server_copies_blocks_out_of_shared_memory_and_back() -> None:
    with larder() as server, SharedKV([SHAPE] * LAYERS) as kv, client_of(server) as client:
        filled(kv.layers)
        before = blocks_of(kv.layers, STORED)
        client.register_shared(kv)
        assert client.chunk_size == CHUNK

        client.store(TOKENS, STORED, "writer")
        hit = client.lookup([*TOKENS, 7, 8], "reader")
        for layer in kv.layers:
            layer[:] = 0
        client.retrieve(TOKENS, FETCHED, "reader", end=hit, skip_first_tokens=2 * BLOCK + 3)
        client.end_session("reader")

        assert hit == 3 * CHUNK
        assert blocks_of(kv.layers, FETCHED[2:]) == [
            np.frombuffer(blob, np.float16).reshape(2, 12, BLOCK, 2, 4)[:, 2:].tobytes() for blob in before
        ]
        assert not any(layer[:, FETCHED[:2]].any() for layer in kv.layers)


@pytest.mark.parametrize("shm_name", ["pool", "off"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_client_copies_through_the_pool_or_through_messages(shm_name: str, dtype: str) -> None:
    config = {"shm_name": "off"} if shm_name == "off" else {}
    layers = private_layers("uint16" if dtype == "bfloat16" else dtype)
    with larder(**config) as server, client_of(server) as client:
        client.register_arrays(layers, dtype=dtype)
        before = blocks_of(layers, STORED)

        client.store(TOKENS, STORED, "writer")
        client.store(TOKENS, STORED, "writer again")
        for layer in layers:
            layer[:] = 0
        client.retrieve(TOKENS, FETCHED, "reader", skip_first_tokens=BLOCK)

        assert client.lookup(TOKENS, "third") == 3 * CHUNK
        client.free(TOKENS, "third")
        assert blocks_of(layers, FETCHED[1:]) == [
            np.frombuffer(blob, layers[0].dtype).reshape(2, 12, BLOCK, 2, 4)[:, 1:].tobytes() for blob in before
        ]
        assert not any(layer[:, FETCHED[0]].any() for layer in layers)


@pytest.mark.parametrize(
    ("shape", "kv_layout"),
    [
        ((2, BLOCKS, 2, BLOCK, 4), "HND"),
        ((BLOCKS, 2, BLOCK, 2, 4), "NHD"),
        ((BLOCKS, 2, 2, BLOCK, 4), "HND"),
        ((BLOCKS, BLOCK, 2, 8), "NHD"),
        ((BLOCKS, 2, BLOCK, 8), "HND"),
        ((BLOCKS, BLOCK, 6), "NHD"),
    ],
)
def test_clients_with_other_layouts_of_the_same_cache_agree(shape: tuple[int, ...], kv_layout: str) -> None:
    axis = 1 if shape[0] == 2 else 0
    source = [np.random.default_rng(n).random(shape, np.float32) for n in range(LAYERS)]
    target = [np.zeros(shape, np.float32) for _ in range(LAYERS)]
    with larder() as server, client_of(server) as writer, client_of(server) as reader:
        writer.register_arrays(source, kv_layout=kv_layout)
        reader.register_arrays(target, kv_layout=kv_layout)

        writer.store(TOKENS, STORED, "w")
        reader.retrieve(TOKENS, FETCHED, "r")

        for old, new in zip(source, target, strict=True):
            assert np.array_equal(old.take(STORED, axis), new.take(FETCHED, axis))


def test_several_groups_with_their_own_blocks() -> None:
    shapes = [(2, 12, 8, 2, 4), (2, 6, 16, 1, 8), (12, 8, 4)]
    groups = [KVGroup(0, (0, 2), 8), KVGroup(1, (1,), 16)]
    with larder() as server, client_of(server) as client, SharedKV(shapes, ["float16", "float32", "uint8"]) as kv:
        filled(kv.layers)
        before = [
            kv.layers[0][:, [3, 2, 1, 4]].copy(),
            kv.layers[1][:, [5, 4]].copy(),
            kv.layers[2][[3, 2, 1, 4]].copy(),
        ]
        client.register_shared(kv, groups=groups)

        client.store(TOKENS, [[3, 2, 1, 4], [5, 4]], "w", end=CHUNK)
        client.retrieve(TOKENS, [[8, 9, 10, 11], [0, 1]], "r", end=CHUNK)

        assert np.array_equal(kv.layers[0][:, 8:12], before[0])
        assert np.array_equal(kv.layers[1][:, 0:2], before[1])
        assert np.array_equal(kv.layers[2][8:12], before[2])


def test_views_of_the_segment_may_be_interleaved() -> None:
    with larder() as server, client_of(server) as client, SharedKV([(BLOCKS, LAYERS, 2, BLOCK, 2, 4)]) as kv:
        filled(kv.layers)
        whole = kv.layers[0]
        kv.dtypes = ["float16"] * LAYERS
        client.register_shared(kv, [whole[:, layer] for layer in range(LAYERS)], hints={"kv_layout": "BLNHC"})
        before = whole[STORED].copy()

        client.store(TOKENS, STORED, "w")
        client.retrieve(TOKENS, FETCHED, "r")

        assert np.array_equal(whole[FETCHED], before)


def test_what_is_not_stored_is_a_miss_and_salts_keep_tenants_apart() -> None:
    with larder() as server, client_of(server) as client:
        client.register_arrays(private_layers())
        client.store(TOKENS, STORED, "w", end=2 * CHUNK, cache_salt="a")

        assert client.lookup(TOKENS, "r", cache_salt="a") == 2 * CHUNK
        assert client.lookup(TOKENS, "r", cache_salt="b") == 0
        client.retrieve(TOKENS, FETCHED, "r", end=2 * CHUNK, cache_salt="a")
        with pytest.raises(Miss, match="3 chunks"):
            client.retrieve(TOKENS, FETCHED, "r", cache_salt="a")
        client.clear(force=True)
        with pytest.raises(Miss):
            client.retrieve(TOKENS, FETCHED, "r", end=CHUNK, cache_salt="a")


@pytest.mark.parametrize("mode", ["shared", "arrays"])
def test_a_restarted_server_is_used_again_without_being_told(mode: str) -> None:
    with ExitStack() as stack:
        kv = stack.enter_context(SharedKV([SHAPE] * LAYERS))
        filled(kv.layers)
        with larder() as server:
            port = server.port
            client = stack.enter_context(client_of(server))
            client.register_shared(kv) if mode == "shared" else client.register_arrays(private_layers())
            client.store(TOKENS, STORED, "first")
            assert client.ping()

        with larder(port):
            if mode == "shared":
                client.store(TOKENS, STORED, "second")
            else:
                with pytest.raises(Miss):
                    client.retrieve(TOKENS, FETCHED, "second")
                client.store(TOKENS, STORED, "second")

            assert client.lookup(TOKENS, "third") == 3 * CHUNK
            client.retrieve(TOKENS, FETCHED, "third")
            client.close()


def test_a_forgotten_client_is_registered_by_its_own_ping() -> None:
    with larder() as server, client_of(server) as client:
        client.register_arrays(private_layers())
        client.call("unregister_kv_cache_engine_driven_context", client.instance_id)

        assert not client.ping()
        assert client.ping()
        client.store(TOKENS, STORED, "w")
        assert client.lookup(TOKENS, "r") == 3 * CHUNK


def test_a_server_that_is_away_is_named_with_the_time_waited() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        with (
            LarderClient(url, timeout_s=0.1) as client,
            pytest.raises(ServerAway, match=r"get_chunk_size within 0\.1 s"),
        ):
            assert client.chunk_size


def test_what_cannot_be_registered_is_refused_with_the_reason() -> None:
    with larder() as server, SharedKV([(4, 4)]) as kv, client_of(server) as client:
        with pytest.raises(Refused, match=r"shape \[4, 4\]"):
            client.register_shared(kv)
        with pytest.raises(Refused, match="no KV tensors"):
            client.store(TOKENS, STORED, "w")


def test_block_ids_are_checked_before_anything_is_copied() -> None:
    with larder() as server, client_of(server) as client:
        client.register_arrays(private_layers())
        with pytest.raises(ValueError, match="block ids"):
            client.store(TOKENS, STORED[:-1], "w")
        with pytest.raises(ValueError, match=f"there are {BLOCKS}"):
            client.store(TOKENS, [*STORED[:-1], BLOCKS], "w")
        with pytest.raises(ValueError, match="one KV group"):
            client.store(TOKENS, [STORED, STORED], "w")


def test_tensors_of_other_libraries_are_used_in_place() -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.zeros(SHAPE, dtype=torch.float32) for _ in range(LAYERS)]
    with larder() as server, client_of(server) as client:
        client.register_arrays(tensors)
        for number, tensor in enumerate(tensors):
            tensor += number + 1
        client.store(TOKENS, STORED, "w")
        for tensor in tensors:
            tensor.zero_()
        client.retrieve(TOKENS, STORED, "r")

        assert [float(tensor[:, STORED].mean()) for tensor in tensors] == [1.0, 2.0, 3.0]
        with pytest.raises(ValueError, match="integer view"):
            client.register_arrays([torch.zeros(SHAPE, dtype=torch.bfloat16)])


def test_a_closed_segment_leaves_the_arrays_of_its_user_alive() -> None:
    kv = SharedKV([(2, 3)])
    array = kv.layers[0]

    kv.close()
    kv.close()

    array[:] = 5
    assert array.sum() == 30
    assert not os.path.exists(f"/dev/shm{kv.name}")


def test_a_tensor_outside_the_segment_is_not_registered_as_part_of_it() -> None:
    with SharedKV([(2, 3)]) as kv:
        assert kv.place_of(kv.layers[0].T) == ((3, 2), (1, 3), 0)
        with pytest.raises(ValueError, match="does not lie"):
            kv.place_of(np.zeros((2, 3)))
        with pytest.raises(ValueError, match="rising order"):
            kv.place_of(kv.layers[0][::-1])
