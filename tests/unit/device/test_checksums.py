"""Checksums of registered blocks against numpy and hashlib, and what /status tells about the tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from itertools import permutations

import numpy as np
import pytest

from engine.device.tensors import KVTensors, open_kv_tensors
from engine.errors import BadRequest
from engine.kv_layout import KVGroup
from tests.unit.device.kv_model import Layer, Registration, Segment


@contextmanager
def opened(layers: list[Layer], groups: list[KVGroup], hint: str = "NHD") -> Iterator[KVTensors]:
    registration = Registration(layers, groups, {"kv_layout": hint})
    registration.open()
    registration.fill(5)
    tensors = open_kv_tensors(registration.descriptors(), groups, registration.hints, 16)
    yield tensors
    tensors.close()
    registration.close()


def expected(layer: Layer, ids: list[int]) -> bytes:
    """The blocks in the tensor's own axes, C order, bfloat16 as float32."""
    blocks = np.ascontiguousarray(layer.blocks(ids))
    if layer.dtype == "bfloat16":
        blocks = blocks.astype(np.uint32) << 16
    return blocks.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
@pytest.mark.parametrize("shape", [(2, 6, 4, 2, 3), (6, 2, 4, 2, 3), (6, 4, 2, 6), (6, 4, 5), (6, 1, 1)])
def test_digests_follow_the_layer_axes_whatever_the_memory_order(shape: tuple[int, ...], dtype: str) -> None:
    for order in list(permutations(range(len(shape))))[::5]:
        segment = Segment()
        layers = [Layer(shape, dtype, order, segment) for _ in range(2)]
        ids = [5, 0, 3, 3, 1]
        with opened(layers, []) as tensors:
            whole = tensors.checksums(ids, 2, layerwise=False)
            by_layer = tensors.checksums(ids, 2, layerwise=True)

            chunks = [ids[0:2], ids[2:4], ids[4:5]]
            assert whole == {
                "num_chunks": 3,
                "chunk_checksums": [
                    md5(b"".join(expected(layer, chunk) for layer in layers)).hexdigest() for chunk in chunks
                ],
            }
            assert by_layer == {
                "num_chunks": 3,
                "chunk_checksums": {
                    f"layer_{number}": [md5(expected(layer, chunk)).hexdigest() for chunk in chunks]
                    for number, layer in enumerate(layers)
                },
            }


def test_ids_out_of_range_of_any_layer_and_bad_sizes_are_refused() -> None:
    segment = Segment()
    layers = [Layer((6, 4, 5), "uint8", (0, 1, 2), segment), Layer((4, 4, 5), "uint8", (0, 1, 2), segment)]
    with opened(layers, []) as tensors:
        assert tensors.checksums([], 1, layerwise=False) == {"chunk_checksums": [], "num_chunks": 0}
        for ids in ([4], [-1], [0, 1 << 70]):
            with pytest.raises(BadRequest, match="block"):
                tensors.checksums(ids, 1, layerwise=False)
        with pytest.raises(BadRequest, match="chunk_size"):
            tensors.checksums([1], 0, layerwise=False)
        with pytest.raises(BadRequest, match="at most"):
            tensors.checksums([1] * 70000, 1, layerwise=False)


def test_layers_that_no_group_names_are_hashed_too() -> None:
    segment = Segment()
    layers = [Layer((6, 4, 5), "uint8", (0, 1, 2), segment) for _ in range(2)]
    with opened(layers, [KVGroup(0, (1,), 4)]) as tensors:
        digests = tensors.checksums([2], 1, layerwise=True)["chunk_checksums"]

        assert isinstance(digests, dict)
        assert list(digests) == ["layer_0", "layer_1"]


def test_the_description_has_what_status_promises() -> None:
    segment = Segment()
    layers = [Layer((2, 6, 4, 2, 3), "bfloat16", (0, 1, 2, 3, 4), segment) for _ in range(2)]
    layers.append(Layer((9, 8, 5), "uint8", (0, 1, 2), segment))
    with opened(layers, [KVGroup(0, (0, 1), 4), KVGroup(3, (2,), 16)]) as tensors:
        description = tensors.describe()

    groups = description.pop("kernel_groups")
    assert isinstance(groups, list)
    assert description == {"num_layers": 3, "num_blocks": 6, "cache_size_per_token": 2 * 2 * 2 * 3 * 2 + 8 * 5 // 16}
    attention = {
        "kernel_group_idx": 0,
        "engine_group_idx": 0,
        "object_group_idx": 0,
        "kv_group_idx": 0,
        "num_layers": 2,
        "layer_indices": [0, 1],
        "tokens_per_block": 4,
        "slots_per_block": 4,
        "dtype": "torch.bfloat16",
        "engine_kv_concrete_shape": "2 x [2, 6, 4, 2, 3]",
        "is_mla": False,
        "engine_kv_format": "NL_X_TWO_NB_BS_NH_HS",
        "engine_kv_shape": "NL x [2, NB, BS, NH, HS]",
        "attention_backend": "unknown",
    }
    assert groups[0] == attention
    assert (groups[1]["engine_group_idx"], groups[1]["is_mla"], groups[1]["slots_per_block"]) == (3, True, 8)
    assert sum(group["num_layers"] for group in groups) == 3
