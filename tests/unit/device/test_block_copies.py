"""Gathering and scattering blocks of random registrations against numpy."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.device.tensors import KVTensors, open_kv_tensors
from engine.kv_layout import DTYPE_BYTES, KVGroup
from tests.unit.device.kv_model import Layer, Registration, Segment

CHUNK = 16
QUICK = settings(max_examples=120, deadline=None)


@contextmanager
def opened(registration: Registration, chunk_size: int = CHUNK) -> Iterator[KVTensors]:
    registration.open()
    try:
        tensors = open_kv_tensors(registration.descriptors(), registration.groups, registration.hints, chunk_size)
        try:
            yield tensors
        finally:
            tensors.close()
    finally:
        registration.close()


def layer_shapes(draw: st.DrawFn, order: str, slots: int) -> tuple[int, ...]:
    blocks, heads, head = draw(st.integers(3, 9)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    inner = (slots, heads) if order == "NHD" else (heads, slots)
    return draw(
        st.sampled_from(
            [
                (2, blocks, *inner, head),
                (blocks, 2, *inner, head),
                (blocks, *inner, 2 * head),
                (blocks, slots, head),
            ]
        )
    )


@st.composite
def registrations(draw: st.DrawFn) -> Registration:
    """Up to three groups, each of its own block size and dtype; layers in any order, shared or separate segments."""
    order = draw(st.sampled_from(["NHD", "HND"]))
    segments = [Segment() for _ in range(draw(st.integers(1, 3)))]
    layers: list[Layer] = []
    members: list[tuple[int, int]] = []
    plans = []
    for number in range(draw(st.integers(1, 3))):
        tokens = draw(st.sampled_from([4, 8, 16]))
        slots = draw(st.sampled_from([tokens, tokens // 2, tokens // 4]))
        plans.append((tokens, draw(st.sampled_from([-1, 0, 3, 6, 15, 16, 40]))))
        shape, dtype = layer_shapes(draw, order, slots), draw(st.sampled_from(sorted(DTYPE_BYTES)))
        axes = tuple(draw(st.permutations(range(len(shape)))))
        for _ in range(draw(st.integers(1, 3))):
            members.append((number, len(layers)))
            gap = draw(st.sampled_from([0, 0, 3]))
            layers.append(Layer(shape, dtype, axes, draw(st.sampled_from(segments)), gap))
    left_out = draw(st.sampled_from([None, None, *range(len(layers))]))
    groups = []
    for number, (tokens, window) in enumerate(plans):
        indices = tuple(index for group, index in members if group == number and index != left_out)
        if indices:
            groups.append(KVGroup(number, indices, tokens, window))
    if not groups:
        groups = [KVGroup(0, (0,), plans[0][0], plans[0][1])]
    return Registration(layers, groups, {"kv_layout": order})


def ids_for(draw: st.DrawFn, registration: Registration, chunks: int) -> list[list[int]]:
    """Per group enough block ids or a few more: rising, falling or scattered, some of them twice."""
    lists = []
    for group in registration.groups:
        layer = registration.layers[group.layer_indices[0]]
        wanted = chunks * (CHUNK // group.tokens_per_block)
        one = st.integers(0, layer.shape[layer.block_axis] - 1)
        ids = draw(st.lists(one, min_size=wanted, max_size=wanted + 2))
        lists.append(draw(st.sampled_from([sorted(ids), sorted(ids, reverse=True), ids])))
    return lists


def kept(group: KVGroup) -> range:
    """Positions of the chunk's blocks that an object keeps."""
    blocks = CHUNK // group.tokens_per_block
    if 0 < group.sw_size_tokens < CHUNK:
        return range(blocks - -(-group.sw_size_tokens // group.tokens_per_block), blocks)
    return range(blocks)


def chunk_ids(group: KVGroup, ids: list[int], chunk: int) -> list[int]:
    blocks = CHUNK // group.tokens_per_block
    return ids[chunk * blocks : (chunk + 1) * blocks]


def kept_ids(group: KVGroup, ids: list[int], chunk: int) -> list[int]:
    ids = chunk_ids(group, ids, chunk)
    return [ids[position] for position in kept(group)]


def targets_for(draw: st.DrawFn, registration: Registration) -> list[list[int]] | None:
    """Distinct blocks for one chunk per group, None when a tensor has too few; blocks not kept point nowhere."""
    targets = []
    for group in registration.groups:
        layer = registration.layers[group.layer_indices[0]]
        places = draw(st.permutations(range(layer.shape[layer.block_axis])))
        if len(places) < len(kept(group)):
            return None
        unused = CHUNK // group.tokens_per_block - len(kept(group))
        targets.append([-1] * unused + list(places[: len(kept(group))]))
    return targets


@QUICK
@given(data=st.data(), registration=registrations())
def test_what_is_gathered_comes_back_into_other_blocks(data: st.DataObject, registration: Registration) -> None:
    source = ids_for(data.draw, registration, 2)
    target = targets_for(data.draw, registration)
    assume(target is not None)
    assert target is not None
    chunk, skip = data.draw(st.integers(0, 1)), data.draw(st.integers(0, CHUNK))
    with opened(registration) as tensors:
        assert tensors.layout.object_bytes == registration.object_bytes(CHUNK)
        registration.fill(1)
        tensors.check_block_ids(source, 2)
        slot = memoryview(bytearray(tensors.layout.object_bytes))
        tensors.gather(chunk, source, slot)
        stored = [
            [registration.layers[index].blocks(kept_ids(group, ids, chunk)) for index in group.layer_indices]
            for group, ids in zip(registration.groups, source, strict=True)
        ]
        registration.fill(2)
        expected = [layer.view().copy() for layer in registration.layers]

        tensors.scatter(0, target, slot, skip_tokens=skip)

        for group, ids, blocks_of_layers in zip(registration.groups, target, stored, strict=True):
            for index, blocks in zip(group.layer_indices, blocks_of_layers, strict=True):
                axis = registration.layers[index].block_axis
                for number, position in enumerate(kept(group)):
                    if position >= skip // group.tokens_per_block:
                        np.moveaxis(expected[index], axis, 0)[ids[position]] = blocks.take(number, axis)
        for layer, wanted in zip(registration.layers, expected, strict=True):
            assert np.array_equal(layer.view(), wanted)


def dense(shape: tuple[int, ...], dtype: str = "float16", layers: int = 2) -> Registration:
    segment = Segment()
    axes = tuple(range(len(shape)))
    made = [Layer(shape, dtype, axes, segment) for _ in range(layers)]
    return Registration(made, [KVGroup(0, tuple(range(layers)), 4)], {"kv_layout": "NHD"})


def test_an_object_is_group_by_group_layer_by_layer_plane_by_plane_in_token_order() -> None:
    registration = dense((2, 8, 4, 2, 3))
    ids = [[6, 2, 3, 1]]
    with opened(registration) as tensors:
        registration.layers[0].segment.fill(1)
        slot = bytearray(tensors.layout.object_bytes)

        tensors.gather(0, ids, memoryview(slot))

        assert bytes(slot) == b"".join(
            layer.view()[plane, ids[0]].tobytes() for layer in registration.layers for plane in (0, 1)
        )


def test_a_block_named_twice_ends_with_the_later_content() -> None:
    registration = dense((2, 8, 4, 2, 3))
    with opened(registration) as tensors:
        slot = np.random.default_rng(1).integers(0, 256, tensors.layout.object_bytes, dtype=np.uint8)

        tensors.scatter(0, [[5, 1, 5, 2]], memoryview(slot), skip_tokens=0)

        blocks = slot.reshape(2, 2, 4, -1)
        assert registration.layers[0].view()[0, 5].tobytes() == blocks[0, 0, 2].tobytes()


def test_a_slot_may_be_any_part_of_the_pool_and_nothing_beside_it_is_touched() -> None:
    registration = dense((8, 4, 6))
    with opened(registration) as tensors:
        registration.layers[0].segment.fill(1)
        size = tensors.layout.object_bytes
        pool = bytearray(b"\xaa" * (size + 32))

        tensors.gather(0, [[3, 2, 1, 0]], memoryview(pool)[16 : 16 + size])

        assert pool[:16] == pool[-16:] == b"\xaa" * 16


def test_more_blocks_than_one_system_call_takes() -> None:
    """Falling ids make one run of memory with a buffer per block: more than the kernel accepts at once."""
    segment = Segment()
    layer = Layer((2500, 1, 3), "uint8", (0, 1, 2), segment)
    registration = Registration([layer], [KVGroup(0, (0,), 1)], {})
    with opened(registration, 2200) as tensors:
        segment.fill(3)
        ids = [list(range(2300, 100, -1))]
        slot = memoryview(bytearray(tensors.layout.object_bytes))

        tensors.gather(0, ids, slot)
        before = layer.blocks(ids[0])
        segment.fill(4)
        tensors.scatter(0, ids, slot, skip_tokens=0)

        assert bytes(slot) == before.tobytes()
        assert np.array_equal(layer.blocks(ids[0]), before)


def test_a_chunk_without_any_real_block_is_null() -> None:
    segment = Segment()
    layers = [
        Layer((2, 8, 4, 1, 2), "float16", (0, 1, 2, 3, 4), segment),
        Layer((8, 8, 2), "uint8", (0, 1, 2), segment),
    ]
    registration = Registration(layers, [KVGroup(0, (0,), 4), KVGroup(1, (1,), 8)], {"kv_layout": "NHD"})
    with opened(registration) as tensors:
        ids = [[0] * 4 + [0] * 4 + [0, 0, 0, 1], [0] * 2 + [3, 0] + [0, 0]]

        assert tensors.null_chunks(ids, 3) == {0}
        assert tensors.null_chunks(ids, 0) == set()


def test_a_windowed_group_is_missing_where_one_of_its_blocks_is_the_null_block() -> None:
    segment = Segment()
    layers = [Layer((2, 8, 4, 1, 2), "float16", (0, 1, 2, 3, 4), segment) for _ in range(3)]
    groups = [
        KVGroup(0, (0,), 4),
        KVGroup(1, (1,), 4, sw_size_tokens=20),
        KVGroup(2, (2,), 16, recurrent_state=True),
    ]
    registration = Registration(layers, groups, {"kv_layout": "NHD"})
    with opened(registration) as tensors:
        ids = [[1, 2, 3, 4, 5, 6, 7, 0], [0, 0, 0, 1, 2, 3, 4, 5], [0, 1]]

        assert tensors.layout.windows == (0, 2, 1)
        assert tensors.missing_groups(ids, 2) == [0b110, 0]


def test_without_windows_nothing_is_missing() -> None:
    segment = Segment()
    layers = [Layer((2, 8, 4, 1, 2), "float16", (0, 1, 2, 3, 4), segment)]
    with opened(Registration(layers, [], {"kv_layout": "NHD"})) as tensors:
        assert tensors.layout.windows == ()
        assert tensors.missing_groups([[0, 1, 2, 3]], 1) == [0]
