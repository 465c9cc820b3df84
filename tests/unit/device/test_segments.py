"""Client segments that are not what they should be, or stop being it; block ids that do not exist."""

import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from engine.device.descriptor_count import RESERVED_DESCRIPTORS, SEGMENT_DESCRIPTORS, DescriptorCount
from engine.device.tensors import open_kv_tensors
from engine.errors import BadRequest, ClientMemoryError, NotEnoughBlocks, Unsupported
from engine.kv_layout import KVGroup
from tests.unit.device.kv_model import Layer, Registration, Segment


@pytest.fixture
def client() -> Iterator[Registration]:
    segment = Segment()
    layers = [Layer((2, 8, 4, 2, 3), "float16", (0, 1, 2, 3, 4), segment) for _ in range(2)]
    registration = Registration(layers, [KVGroup(0, (0, 1), 4)], {"kv_layout": "NHD"})
    registration.open()
    registration.fill(1)
    yield registration
    registration.close()


def open_client(client: Registration, **changes: Any) -> Any:
    descriptors = [replace(descriptor, **changes) for descriptor in client.descriptors()]
    return open_kv_tensors(descriptors, client.groups, client.hints, 8)


@pytest.mark.parametrize(
    "name",
    ["", "/", "lmcache_kv_1_1", "/lmcache_kv_", "/lmcache_kv_1/../../etc/passwd", "//lmcache_kv_1_1", "/psm_1",
     "/lmcache_kv_1_1\n", "/lmcache_kv_1_1\x00", "/lmcache_kv_no_such_segment"],
)  # fmt: skip
def test_segment_names_outside_the_pattern_or_absent_are_refused(client: Registration, name: str) -> None:
    with pytest.raises(BadRequest, match="shared memory"):
        open_client(client, shm_name=name)


def test_other_kinds_of_memory_are_named_in_the_refusal(client: Registration) -> None:
    with pytest.raises(Unsupported, match="cuda_vmm"):
        open_client(client, kind="cuda_vmm")


def test_a_segment_smaller_than_registered_is_refused(client: Registration) -> None:
    with pytest.raises(BadRequest, match="bytes"):
        open_client(client, nbytes=client.layers[0].segment.nbytes + 1)


def test_the_memory_id_tells_whether_a_registration_names_the_same_memory(client: Registration) -> None:
    def memory_id(**changes: Any) -> tuple[object, ...]:
        tensors = open_client(client, **changes)
        tensors.close()
        return tuple(tensors.memory_id)

    segment = client.layers[0].segment
    before = memory_id()

    assert memory_id() == before
    assert memory_id(storage_offset=0) != before
    assert memory_id(shape=(2, 7, 4, 2, 3)) != before
    held = os.open("/dev/shm" + segment.name, os.O_RDONLY)  # so that the system cannot give its inode number anew
    try:
        segment.close()
        segment.open()
        assert memory_id() != before
    finally:
        os.close(held)


def test_open_segments_are_counted_and_refused_near_the_limit(
    client: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SEGMENT_DESCRIPTORS.held
    monkeypatch.setattr(resource, "getrlimit", lambda _: (before + RESERVED_DESCRIPTORS + 1,) * 2)

    first = open_client(client)
    assert SEGMENT_DESCRIPTORS.held == before + 1
    with pytest.raises(BadRequest, match=f"{before + 1} segments are open"):
        open_client(client)
    first.close()
    first.close()
    assert SEGMENT_DESCRIPTORS.held == before
    with pytest.raises(BadRequest, match="cannot be opened"):
        open_client(client, shm_name="/lmcache_kv_no_such_segment")
    with pytest.raises(BadRequest, match="bytes"):
        open_client(client, nbytes=client.layers[0].segment.nbytes + 1)
    assert SEGMENT_DESCRIPTORS.held == before

    open_client(client).close()


def test_the_process_may_have_as_many_descriptors_as_the_system_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 9000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    descriptors = DescriptorCount()

    descriptors.take("/a")
    descriptors.take("/b")

    assert limits == [(1024, 9000), (9000, 9000)]
    assert descriptors.held == 2


@pytest.mark.parametrize("limit", [(resource.RLIM_INFINITY, resource.RLIM_INFINITY), (1024, resource.RLIM_INFINITY)])
def test_a_limit_that_is_none_or_cannot_be_raised_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, limit: tuple[int, int]
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors = DescriptorCount()

    descriptors.take("/a")

    assert descriptors.held == 1


def test_links_and_directories_are_no_segments(client: Registration) -> None:
    path = f"/dev/shm/lmcache_kv_{os.getpid()}_link"
    os.symlink("/dev/shm" + client.layers[0].segment.name, path)
    try:
        with pytest.raises(BadRequest, match="cannot be opened"):
            open_client(client, shm_name=path.removeprefix("/dev/shm"))
    finally:
        os.unlink(path)
    os.mkdir(path)
    try:
        with pytest.raises(BadRequest, match="cannot be opened"):
            open_client(client, shm_name=path.removeprefix("/dev/shm"))
    finally:
        os.rmdir(path)


def test_a_pipe_is_no_segment_and_does_not_block(client: Registration) -> None:
    path = f"/dev/shm/lmcache_kv_{os.getpid()}_pipe"
    os.mkfifo(path)
    try:
        with pytest.raises(BadRequest, match="regular segment"):
            open_client(client, shm_name=path.removeprefix("/dev/shm"))
    finally:
        os.unlink(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_segment_of_another_user_is_refused(client: Registration) -> None:
    os.chown("/dev/shm" + client.layers[0].segment.name, 12345, -1)

    with pytest.raises(BadRequest, match="of user 0"):
        open_client(client)


def test_a_segment_that_shrinks_later_fails_the_copy_and_only_that(client: Registration) -> None:
    tensors = open_client(client)
    slot = memoryview(bytearray(tensors.layout.object_bytes))
    segment = client.layers[0].segment
    try:
        segment.memory = None
        segment.truncate(segment.nbytes // 2)
        with pytest.raises(ClientMemoryError, match=r"could be read"):
            tensors.gather(0, [[6, 7]], slot)
        with pytest.raises(ClientMemoryError, match="shrank from"):
            tensors.scatter(0, [[6, 7]], slot, skip_tokens=0)
        with pytest.raises(ClientMemoryError):
            tensors.checksums([7], 1, layerwise=False)
        assert os.stat("/dev/shm" + segment.name).st_size == segment.nbytes // 2

        segment.truncate(segment.nbytes)
        tensors.gather(0, [[6, 7]], slot)
    finally:
        tensors.close()


def test_closed_tensors_copy_nothing(client: Registration) -> None:
    tensors = open_client(client)

    tensors.close()
    tensors.close()

    with pytest.raises(ClientMemoryError, match="unregistered"):
        tensors.gather(0, [[1, 2]], memoryview(bytearray(tensors.layout.object_bytes)))


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([], BadRequest),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], BadRequest),
        ([[1, 2, 3]], NotEnoughBlocks),
        ([[1, 2, 3, 8]], BadRequest),
        ([[1, 2, 3, -1]], BadRequest),
        ([[1, 2, 3, 1 << 80]], BadRequest),
        ([[1, 2, 3, 1 << 63]], BadRequest),
        ([[1, 2, 3, 1.0]], BadRequest),
        ([[1, 2, 3, "4"]], BadRequest),
        ([[True, False, True, True]], BadRequest),
        ([[1, 2, [3], 4]], BadRequest),
        ([[[1, 2], [3, 4], [1, 2], [1, 2]]], BadRequest),
    ],
)
def test_block_ids_are_checked(client: Registration, ids: Any, error: type[Exception]) -> None:
    tensors = open_client(client)
    try:
        tensors.check_block_ids([[7, 0, 3, 3, 99]], 2)
        with pytest.raises(error):
            tensors.check_block_ids(ids, 2)
    finally:
        tensors.close()
