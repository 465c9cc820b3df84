"""What a registration may say: layouts, groups, fingerprints, and everything hostile."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.device.geometry import kv_geometry
from engine.errors import BadRequest
from engine.kv_layout import (
    EngineDrivenRegistration,
    KVGroup,
    TensorDescriptor,
    engine_driven_layout,
    kv_group,
    tensor_descriptor,
)

GOOD: dict[str, Any] = {
    "kind": "cpu_shm",
    "shm_name": "/lmcache_kv_1_1",
    "nbytes": 2 * 8 * 4 * 2 * 3 * 2,
    "dtype": "float16",
    "shape": [2, 8, 4, 2, 3],
    "stride": [192, 24, 6, 3, 1],
    "storage_offset": 0,
}
NHD = {"kv_layout": "NHD"}


def good(**changes: Any) -> TensorDescriptor:
    return tensor_descriptor(**{**GOOD, **changes})


def dense(shape: list[int], dtype: str = "float16", **changes: Any) -> TensorDescriptor:
    stride = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        stride[axis] = stride[axis + 1] * shape[axis + 1]
    return good(shape=shape, stride=stride, dtype=dtype, nbytes=1 << 30, **changes)


@pytest.mark.parametrize(
    ("shape", "hint", "format_name", "block_axis", "slots"),
    [
        ([2, 10, 16, 4, 8], "NHD", "TWO_NB_BS_NH_HS", 1, 16),
        ([2, 10, 4, 16, 8], "HND", "TWO_NB_NH_BS_HS", 1, 16),
        ([10, 2, 16, 4, 8], "NHD", "NB_TWO_BS_NH_HS", 0, 16),
        ([10, 2, 4, 16, 8], "HND", "NB_TWO_NH_BS_HS", 0, 16),
        ([10, 2, 16, 4, 8], "BLNHC", "NB_TWO_BS_NH_HS", 0, 16),
        ([10, 2, 4, 16, 8], "BLHNC", "NB_TWO_NH_BS_HS", 0, 16),
        ([10, 16, 4, 16], "NHD", "NB_BS_NH_TWO_HS", 0, 16),
        ([10, 4, 16, 16], "HND", "NB_NH_BS_TWO_HS", 0, 16),
        ([10, 16, 576], "NHD", "NB_BS_HS", 0, 16),
        ([2, 2, 16, 4, 8], "NHD", "TWO_NB_BS_NH_HS", 1, 16),
        ([2, 10, 4, 16, 8], None, "TWO_NB_NH_BS_HS", 1, 16),
    ],
)
def test_each_row_of_the_layout_table(
    shape: list[int], hint: str | None, format_name: str, block_axis: int, slots: int
) -> None:
    hints = {} if hint is None else {"kv_layout": hint}

    geometry = kv_geometry([dense(shape)] * 3, [], hints, 256)

    (group,) = geometry.groups
    layer = group.layers[0]
    assert (layer.format_name, layer.block_axis, layer.slots) == (format_name, block_axis, slots)
    assert (group.blocks_per_chunk, group.num_blocks) == (256 // slots, shape[block_axis])


def test_without_a_hint_the_order_that_fits_the_block_size_is_taken() -> None:
    geometry = kv_geometry([dense([2, 10, 16, 5, 8])], [KVGroup(0, (0,), 16)], {}, 256)

    assert geometry.groups[0].layers[0].format_name == "TWO_NB_BS_NH_HS"


def test_no_groups_means_one_of_all_layers_and_unnamed_layers_stay_out() -> None:
    layers = [dense([2, 10, 16, 4, 8])] * 4

    everything = kv_geometry(layers, [], NHD, 256)
    some = kv_geometry(layers, [KVGroup(0, (1, 3), 16)], NHD, 256)

    assert [layer.index for layer in everything.groups[0].layers] == [0, 1, 2, 3]
    assert everything.layout.object_bytes == 4 * 2 * 256 * 4 * 8 * 2 == 2 * some.layout.object_bytes
    assert len(some.layers) == 4


def test_compressed_blocks_and_small_windows() -> None:
    groups = [KVGroup(0, (0,), 64), KVGroup(1, (1,), 16, sw_size_tokens=40)]

    geometry = kv_geometry([dense([10, 16, 6]), dense([10, 16, 6])], groups, {}, 256)

    assert [(group.blocks_per_chunk, group.kept_blocks) for group in geometry.groups] == [(4, 4), (16, 3)]
    assert geometry.layout.object_bytes == (4 + 3) * 16 * 6 * 2


def test_an_empty_tensor_takes_no_part() -> None:
    empty = good(shm_name="", nbytes=0, shape=[0], stride=[1])

    geometry = kv_geometry([dense([10, 16, 6]), empty], [], {}, 256)

    assert [layer.index for layer in geometry.groups[0].layers] == [0]
    with pytest.raises(BadRequest):
        kv_geometry([empty], [KVGroup(0, (0,), 16)], {}, 256)


BASE = [dense([2, 10, 16, 4, 8])] * 2
PERMUTED = good(shape=[2, 10, 16, 4, 8], stride=[5120, 512, 8, 128, 1], nbytes=1 << 30)


@pytest.mark.parametrize(
    ("layers", "groups", "hints", "chunk"),
    [
        (BASE[:1], [], NHD, 256),
        ([dense([2, 10, 16, 4, 8], "bfloat16")] * 2, [], NHD, 256),
        ([dense([10, 2, 16, 4, 8])] * 2, [], NHD, 256),
        ([dense([2, 10, 16, 8, 4])] * 2, [], NHD, 256),
        ([PERMUTED] * 2, [], NHD, 256),
        (BASE, [KVGroup(0, (0,), 32), KVGroup(1, (1,), 32)], NHD, 256),
        (BASE, [KVGroup(0, (1, 0), 16)], NHD, 256),
        (BASE, [KVGroup(0, (0, 1), 16, 64)], NHD, 256),
        (BASE, [KVGroup(0, (0, 1), 16, 4096)], NHD, 256),
        (BASE, [], NHD, 512),
        ([dense([2, 10, 16, 16, 8])] * 2, [], {"kv_layout": "HND"}, 256),
    ],
)
def test_what_makes_stored_bytes_different_changes_the_fingerprint(
    layers: list[TensorDescriptor], groups: list[KVGroup], hints: dict[str, object], chunk: int
) -> None:
    reference = kv_geometry(BASE, [], NHD, 256).layout.fingerprint

    assert kv_geometry(layers, groups, hints, chunk).layout.fingerprint != reference


def test_layouts_that_differ_in_their_windows_only_differ_in_their_fingerprints() -> None:
    """What may be served to one worker need not do for another then, so they must not share objects."""
    groups = [KVGroup(0, (0, 1), 16, tokens) for tokens in (-1, 257, 600, 1025)]
    layouts = [kv_geometry(BASE, [group], NHD, 256).layout for group in groups]

    assert [layout.windows for layout in layouts] == [(), (2,), (3,), (5,)]
    assert len({layout.fingerprint for layout in layouts}) == 4
    same = kv_geometry(BASE, [KVGroup(0, (0, 1), 16, 512)], NHD, 256).layout
    assert (same.windows, same.fingerprint) == ((2,), layouts[1].fingerprint)


def test_what_does_not_change_stored_bytes_keeps_the_fingerprint() -> None:
    reference = kv_geometry(BASE, [], NHD, 256).layout.fingerprint
    more_blocks = [dense([2, 99, 16, 4, 8], storage_offset=64)] * 2
    interleaved = good(shape=[2, 10, 16, 4, 8], stride=[512, 2048, 32, 8, 1], nbytes=1 << 30)

    assert kv_geometry(more_blocks, [KVGroup(7, (0, 1), 16)], NHD, 256).layout.fingerprint == reference
    assert kv_geometry([interleaved] * 2, [], {"kv_layout": "BLNHC"}, 256).layout.fingerprint == reference
    assert len(reference) == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "complex64"},
        {"dtype": "float16\x00"},
        {"dtype": 5},
        {"shape": [2, 8, 4, 2, 4]},
        {"shape": [2, 8, 4, 2, -3]},
        {"shape": [2, 8, 4, 2]},
        {"shape": "28423"},
        {"shape": [1] * 9, "stride": [1] * 9},
        {"stride": [192, 24, 6, 3, 2]},
        {"stride": [0, 0, 0, 0, 0], "shape": [2, 1 << 40, 1, 1, 1]},
        {"stride": [192, 24, 6, 3, True]},
        {"storage_offset": 1},
        {"storage_offset": -1},
        {"storage_offset": 1 << 60},
        {"nbytes": GOOD["nbytes"] - 1},
        {"nbytes": -1},
        {"nbytes": 1 << 62},
        {"shm_name": None},
        {"shm_name": "/" + "x" * 300},
        {"kind": "x" * 65},
    ],
)
def test_a_descriptor_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    good()
    with pytest.raises(BadRequest):
        good(**changes)


@pytest.mark.parametrize(
    "group",
    [
        {"layer_indices": []},
        {"layer_indices": [-1]},
        {"layer_indices": [1 << 40]},
        {"layer_indices": ["0"]},
        {"layer_indices": 0},
        {"tokens_per_block": -16},
        {"tokens_per_block": 1.5},
        {"sw_size_tokens": -2},
        {"recurrent_state": 1},
        {"engine_group_id": None},
    ],
)
def test_a_group_that_cannot_be_is_refused(group: dict[str, Any]) -> None:
    fields = {"engine_group_id": 0, "layer_indices": [0], "tokens_per_block": 16}
    kv_group(**fields)
    with pytest.raises(BadRequest):
        kv_group(**{**fields, **group})


@pytest.mark.parametrize(
    ("layers", "groups", "hints", "text"),
    [
        ([], [], NHD, "0 KV tensors"),
        ([dense([10, 16])], [], NHD, r"shape \[10, 16\]"),
        ([dense([3, 4, 5, 6, 7])], [], NHD, "not supported"),
        (BASE, [KVGroup(0, (2,), 16)], NHD, "out of range"),
        (BASE, [KVGroup(0, (0,), 16), KVGroup(1, (0,), 16)], NHD, "more than one"),
        (BASE, [KVGroup(0, (0, 1), 24)], NHD, "no multiple"),
        (BASE, [KVGroup(0, (0, 1), 8)], NHD, "no multiple"),
        (BASE, [], {"kv_layout": "NDH"}, "kv_layout"),
        (BASE, [], {"kv_layout": ["NHD"]}, "kv_layout"),
        (BASE, [], {"kv_layout": "NHD", "tokens_per_block": "16"}, "tokens_per_block"),
        ([dense([10, 16, 6]), dense([10, 32, 6])], [], NHD, "slots per block"),
        ([good(shape=[2, 300000, 1], stride=[300000, 1, 1], nbytes=1 << 30)], [KVGroup(0, (0,), 0)], {}, "multiple"),
        (
            [good(shape=[2, 16, 4097], stride=[200000, 12000, 2], nbytes=1 << 30)],
            [],
            {"kv_layout": "NHD"},
            "pieces",
        ),
    ],
)
def test_registrations_that_do_not_fit_together_are_refused(
    layers: list[TensorDescriptor], groups: list[KVGroup], hints: dict[str, object], text: str
) -> None:
    with pytest.raises(BadRequest, match=text):
        kv_geometry(layers, groups, hints, 256)


ENGINE_DRIVEN = EngineDrivenRegistration(1, "m", 1, 16, 2, 64, "bfloat16", False)


def test_the_object_of_a_client_that_copies() -> None:
    plain = engine_driven_layout(ENGINE_DRIVEN, 256)
    fused = engine_driven_layout(replace(ENGINE_DRIVEN, use_mla=True, num_physical_slots=64), 256)

    assert (plain.shape, plain.object_bytes, plain.dtype) == ((2, 2, 256, 64), 2 * 2 * 256 * 64 * 2, "bfloat16")
    assert (fused.shape, fused.object_bytes) == ((2, 64, 64), 2 * 64 * 64 * 2)
    others = [replace(ENGINE_DRIVEN, dtype_str="float16"), replace(ENGINE_DRIVEN, num_layers=4, hidden_dim_size=32)]
    prints = {plain.fingerprint, fused.fingerprint, *(engine_driven_layout(other, 256).fingerprint for other in others)}
    assert len(prints) == 4
    assert engine_driven_layout(replace(ENGINE_DRIVEN, instance_id=9, num_physical_slots=256), 256) == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 0},
        {"num_layers": 1 << 20},
        {"hidden_dim_size": -1},
        {"hidden_dim_size": 1 << 40},
        {"dtype_str": "float17"},
        {"num_physical_slots": 0},
        {"block_size": 0},
        {"world_size": 0},
        {"num_layers": 1000, "hidden_dim_size": 1 << 30},
    ],
)
def test_numbers_that_cannot_be_are_refused_from_a_client_that_copies(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        engine_driven_layout(replace(ENGINE_DRIVEN, **changes), 256)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_numbers_give_a_layout_or_a_refusal(data: st.DataObject) -> None:
    number = st.sampled_from([0, 1, 2, 3, 16, 17, 255, 1 << 20, 1 << 31, 1 << 40, -1])
    rank = data.draw(st.integers(0, 6))
    try:
        layers = [
            good(
                shape=data.draw(st.lists(number, min_size=rank, max_size=rank)),
                stride=data.draw(st.lists(number, min_size=rank, max_size=rank)),
                storage_offset=data.draw(number),
                nbytes=data.draw(st.sampled_from([0, 1000, 1 << 30, 1 << 46])),
            )
            for _ in range(data.draw(st.integers(0, 2)))
        ]
        group = kv_group(engine_group_id=0, layer_indices=[0], tokens_per_block=data.draw(number))
        geometry = kv_geometry(layers, data.draw(st.sampled_from([[], [group]])), NHD, 256)
    except BadRequest:
        return
    assert 0 < geometry.layout.object_bytes <= 1 << 36
