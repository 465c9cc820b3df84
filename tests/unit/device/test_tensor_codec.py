"""Tensors in messages: what torch writes is read, what is written torch reads, and nothing else gets through."""

import os
import pickle
import pickletools
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.device.inert_pickle import Call, Global, load
from engine.device.tensor_codec import decode_tensors, encode_tensors
from engine.errors import BadRequest
from engine.kv_layout import DTYPE_BYTES

SHAPE = (2, 3, 4, 5)
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def torch() -> Any:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def tensors_of(torch: Any, dtype: str, count: int) -> list[Any]:
    raw = np.random.default_rng(1).integers(0, 2, (count, *SHAPE, DTYPE_BYTES[dtype]), dtype=np.uint8)
    return list(torch.from_numpy(raw).view(getattr(torch, dtype)).reshape(count, *SHAPE).clone())


def raw(torch: Any, tensor: Any) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_what_torch_pickles_is_read_and_what_is_written_torch_unpickles(torch: Any, dtype: str) -> None:
    tensors = tensors_of(torch, dtype, 2)

    views = decode_tensors(pickle.dumps(tensors), SHAPE, dtype, 2)
    back = pickle.loads(encode_tensors(views, SHAPE, dtype))

    assert [bytes(view) for view in views] == [raw(torch, tensor) for tensor in tensors]
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in back] == [(getattr(torch, dtype), SHAPE)] * 2
    assert [raw(torch, tensor) for tensor in back] == [raw(torch, tensor) for tensor in tensors]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_that_has_bytes_is_read(torch: Any, protocol: int) -> None:
    tensors = tensors_of(torch, "float32", 3)

    views = decode_tensors(memoryview(pickle.dumps(tensors, protocol)), SHAPE, "float32", 3)

    assert [bytes(view) for view in views] == [raw(torch, tensor) for tensor in tensors]


def test_parts_of_one_storage_are_read_at_their_offset(torch: Any) -> None:
    whole = torch.arange(3 * 120, dtype=torch.int32).reshape(3, *SHAPE)

    views = decode_tensors(pickle.dumps([whole[2], whole[0]]), SHAPE, "int32", 2)

    assert [bytes(view) for view in views] == [raw(torch, whole[2]), raw(torch, whole[0])]


def test_large_tensors_are_views_of_the_message(torch: Any) -> None:
    message = pickle.dumps([torch.zeros(1 << 20, dtype=torch.uint8)])

    (view,) = decode_tensors(message, (1 << 20,), "uint8", 1)

    assert view.obj is message


def test_neither_reading_nor_writing_needs_torch() -> None:
    program = """
import sys
from engine.device.tensor_codec import decode_tensors, encode_tensors
message = encode_tensors([memoryview(b"12345678")], (2, 2), "float16")
assert bytes(decode_tensors(message, (2, 2), "float16", 1)[0]) == b"12345678"
assert "torch" not in sys.modules and "pickle" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda torch: [torch.zeros(2, 3, 4, 6)], "shape"),
        (lambda torch: [torch.zeros(2, 3, 4, 5, dtype=torch.float64)], "dtype float64|dtype 'float64'"),
        (lambda torch: [torch.zeros(5, 4, 3, 2).permute(3, 2, 1, 0)], "not contiguous"),
        (lambda torch: [torch.zeros(1).expand(2, 3, 4, 5)], "not contiguous"),
        (lambda torch: [torch.zeros(2, 3, 4, 5)] * 2, "1 tensors are wanted, got 2"),
        (lambda torch: [], "got 0"),
        (lambda torch: (torch.zeros(2, 3, 4, 5),), "list of tensors"),
        (lambda torch: {"a": torch.zeros(2, 3, 4, 5)}, "list of tensors"),
        (lambda torch: [[torch.zeros(2, 3, 4, 5)]], "no tensor"),
        (lambda torch: [None], "no tensor"),
        (lambda torch: [torch.nn.Parameter(torch.zeros(2, 3, 4, 5))], "no tensor"),
        (lambda torch: [torch.zeros(2, 3, 4, 5).to_sparse()], "pickle|tensor"),
        (lambda torch: [torch.zeros(2, 3, 4, 5, dtype=torch.complex64)], "storage|tensor"),
    ],
)
def test_other_objects_than_registered_are_refused(torch: Any, make: Any, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        decode_tensors(pickle.dumps(make(torch)), SHAPE, "float32", 1)


class Attack:
    """Pickles to a call of the caller's choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_message_is_not_run(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    attacks = [Attack(os.mkdir, str(witness)), Attack(eval, f"__import__('os').mkdir({str(witness)!r})")]

    for attack in attacks:
        with pytest.raises(BadRequest):
            decode_tensors(pickle.dumps([attack], protocol), SHAPE, "float32", 1)

    assert not witness.exists()


def test_code_in_the_inner_level_is_not_run(torch: Any, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    message = pickle.dumps([torch.zeros(SHAPE)])
    magic, protocol = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    inner = magic + protocol + pickle.dumps(Attack(os.mkdir, str(witness)), 2) * 3 + b"\0" * 500
    (blob,) = [argument for _, argument, _ in pickletools.genops(message) if isinstance(argument, bytes)]
    at = message.index(blob)
    assert message[at - 5 : at - 4] == b"B"

    with pytest.raises(BadRequest, match="storage"):
        decode_tensors(
            message[: at - 4] + struct.pack("<I", len(inner)) + inner + message[at + len(blob) :], SHAPE, "float32", 1
        )

    assert not witness.exists()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04].",
        b"\x80\x04]r\xff\xff\xff\x7f.",  # memo at 2**31: Python's own reader would allocate 32 GiB
        b"\x80\x04\x96" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b".",
        b"\x80\x04\x8dXXXXXXXX",
        b"X\xff\xff\xff\xffabc.",
        b"\x8a\xff" + b"\x01" * 255 + b".",
        b"\x8b\xff\xff\xff\x7f.",
        b"(" * 5000,
        b"]" * 5000 + b".",
        b"((((t.",
        b"e.",
        b"a.",
        b"]a.",
        b"}]]s.",
        b"}(K\x01u.",
        b"hz.",
        b"R.",
        b"K\x01)R.",
        b"cos\nsystem\n.",
        b"cos\nsystem",
        b"c\xff\n\xff\n.",
        b"\x8c\x01x\x93.",
        b"NN\x93.",
        b"P1\n.",
        b"ios\nsystem\n.",
        b"(cos\nsystem\no.",
        b"cos\nsystem\n)\x81.",
        b"\x82\x01.",
        b"]]b.",
        b"\x97.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff].",
    ],
)
def test_bytes_that_are_no_message_of_tensors_are_refused(message: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_tensors(message, SHAPE, "float32", 1)


def test_nested_copies_of_copies_do_not_fill_the_error_text() -> None:
    """Two to the sixtieth empty tuples, where the shape should be."""
    doubled = b"".join(b"h%ch%c\x86q%c" % (depth, depth, depth + 1) for depth in range(60))
    storage, size = b"]()q\x00" + doubled + b"e", b"h\x3c"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    message = b"\x80\x04](" + rebuild + b"(" + storage + b"K\x00" + size + b")\x89ccollections\nOrderedDict\n)RtRe."

    with pytest.raises(BadRequest, match="a tensor of shape tuple") as refusal:
        decode_tensors(message, SHAPE, "float32", 1)

    assert len(str(refusal.value)) < 300


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_message_is_refused_or_has_the_right_form(data: st.DataObject) -> None:
    message = bytearray(encode_tensors([memoryview(bytes(range(24)))] * 2, (2, 3), "float32"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(message), len(message) - 1, data.draw(st.integers(0, len(message)))]))
    try:
        views = decode_tensors(bytes(message[:end]), (2, 3), "float32", 2)
    except BadRequest:
        return
    assert [len(view) for view in views] == [24, 24]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        _, end = load(memoryview(data), 0, max_steps=100)
    except BadRequest:
        return
    assert data[end - 1 : end] == b"."


def test_calls_and_names_are_records_only() -> None:
    value, end = load(memoryview(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.rest"), 0, max_steps=10)

    assert value == Call(Global("os", "system"), ("ls",))
    assert end == 21
