"""Checksums of single token slots against numpy and hashlib."""

from hashlib import md5

import numpy as np
import pytest

from engine.errors import BadRequest
from tests.unit.device.kv_model import Layer, Segment
from tests.unit.device.test_checksums import opened

#: Hint, shape, token axis, whether planes come before blocks.
SHAPES = [
    ("NHD", (2, 6, 4, 2, 3), 2, True),
    ("HND", (2, 6, 3, 4, 2), 3, True),
    ("NHD", (6, 2, 4, 3, 2), 2, False),
    ("HND", (6, 2, 3, 4, 2), 3, False),
    ("NHD", (6, 4, 3, 6), 1, False),
    ("HND", (6, 3, 4, 6), 2, False),
    ("NHD", (6, 4, 5), 1, False),
    ("NHD", (6, 1, 5), 1, False),
]


def expected(layer: Layer, slots: list[int], axis: int, *, has_planes: bool) -> bytes:
    """One slot after the other, plane by plane, each in C order of the other axes."""
    whole = layer.blocks(list(range(6)))
    planes = list(whole) if has_planes else [whole]
    tokens, token_axis = whole.shape[axis], axis - has_planes
    rows = [np.take(plane[slot // tokens], slot % tokens, axis=token_axis - 1) for plane in planes for slot in slots]
    widened = [row.astype(np.uint32) << 16 if layer.dtype == "bfloat16" else row for row in rows]
    return b"".join(np.ascontiguousarray(row).tobytes() for row in widened)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("hint", "shape", "axis", "has_planes"), SHAPES)
def test_slots_are_taken_along_the_token_axis(
    hint: str, shape: tuple[int, ...], axis: int, has_planes: bool, dtype: str
) -> None:
    segment = Segment()
    layers = [Layer(shape, dtype, tuple(range(len(shape))), segment) for _ in range(2)]
    last = 6 * shape[axis] - 1
    slots = [last, 0, 1, 2, 2, last - 1, 5]
    with opened(layers, [], hint) as tensors:
        chunks = [slots[0:3], slots[3:6], slots[6:]]
        data = [[expected(layer, chunk, axis, has_planes=has_planes) for chunk in chunks] for layer in layers]
        by_layer = {
            f"layer_{number}": [md5(piece).hexdigest() for piece in pieces] for number, pieces in enumerate(data)
        }
        whole = [md5(first + second).hexdigest() for first, second in zip(*data, strict=True)]

        assert tensors.slot_checksums(slots, 3, layerwise=False) == {"num_chunks": 3, "chunk_checksums": whole}
        assert tensors.slot_checksums(slots, 3, layerwise=True) == {"num_chunks": 3, "chunk_checksums": by_layer}


def test_slots_that_do_not_exist_are_refused_and_no_size_makes_no_chunks() -> None:
    segment = Segment()
    with opened([Layer((2, 6, 4, 2, 3), "float16", (0, 1, 2, 3, 4), segment)], []) as tensors:
        assert tensors.slot_checksums([23], None, layerwise=False) == {"num_chunks": 0, "chunk_checksums": []}
        assert tensors.slot_checksums([0], None, layerwise=True) == {
            "num_chunks": 0,
            "chunk_checksums": {"layer_0": []},
        }
        for slots in ([24], [-1]):
            with pytest.raises(BadRequest, match="out of range"):
                tensors.slot_checksums(slots, None, layerwise=False)
        with pytest.raises(BadRequest, match="must be positive"):
            tensors.slot_checksums([0], 0, layerwise=False)
        with pytest.raises(BadRequest, match="at most 65536"):
            tensors.slot_checksums([0] * 65537, 1, layerwise=False)
        assert tensors.layers() == {"layer_0": {"shape": [2, 6, 4, 2, 3], "dtype": "torch.float16", "device": "cpu"}}
