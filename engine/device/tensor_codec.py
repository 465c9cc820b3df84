"""Tensors inside messages: the pickles that clients without shared memory send and expect.

A message is the pickle of a list of torch tensors. Each is a call of the rebuild function of torch with a storage, an
offset, a size and a stride; the storage is a call with a file in the old format of torch: five small pickles (magic
number, protocol, byte order, what is stored, its key), the number of elements, the elements. Both levels are read by
engine/device/inert_pickle.py and written here by hand, so neither torch nor an unpickler is needed.

Dtypes that have no storage class in torch (the float8 ones, say) travel as bytes with the dtype beside them. torch 2.13
writes those in a form that it cannot read back; that form is read here, and the readable one is written.
"""

import struct
from collections.abc import Sequence
from math import prod

from engine.device.inert_pickle import Call, Global, Persistent, load
from engine.errors import BadRequest
from engine.kv_layout import MAX_RANK, dimensions, dtype_bytes

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STEPS_PER_TENSOR = 256
_STEPS_OF_A_STORAGE = 64

_REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_WITH_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")
_LOAD_STORAGE = Global("torch.storage", "_load_from_bytes")
_NO_HOOKS = Call(Global("collections", "OrderedDict"), ())
_UNTYPED = Global("torch.storage", "UntypedStorage")

#: Storage classes of dtypes in torch.
_STORAGE_CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_DTYPE_OF_STORAGE = {Global("torch", storage): dtype for dtype, storage in _STORAGE_CLASSES.items()}


def decode_tensors(data: bytes | memoryview, shape: Sequence[int], dtype_str: str, count: int) -> list[memoryview]:
    """The bytes of `count` tensors of exactly this shape and dtype, as views into `data`.

    Raises BadRequest for anything else: other objects, other numbers, strides that are not C order, cut-off data.
    """
    view = memoryview(data).cast("B") if not isinstance(data, memoryview) else data
    tensors, end = load(view, 0, max_steps=_STEPS_PER_TENSOR * (count + 1))
    if end != len(view):
        raise BadRequest(f"{len(view) - end} bytes follow the tensors")
    if not isinstance(tensors, list):
        raise BadRequest(f"a list of tensors is wanted, got {type(tensors).__name__}")
    if len(tensors) != count:
        raise BadRequest(f"{count} tensors are wanted, got {len(tensors)}")
    return [_tensor_bytes(tensor, tuple(shape), dtype_str) for tensor in tensors]


def encode_tensors(views: Sequence[memoryview], shape: Sequence[int], dtype_str: str) -> bytes:
    """A message that torch unpickles to a list of tensors, one for each view of a whole tensor's bytes."""
    itemsize = dtype_bytes(dtype_str)
    typed = dtype_str in _STORAGE_CLASSES
    storage_class = Global("torch", _STORAGE_CLASSES[dtype_str if typed else "uint8"])
    elements = prod(shape) if typed else prod(shape) * itemsize
    file_head = _file_head(storage_class, elements)
    head = _global(_REBUILD if typed else _REBUILD_WITH_DTYPE) + b"(" + _global(_LOAD_STORAGE) + b"\x8e"
    head += struct.pack("<Q", len(file_head) + prod(shape) * itemsize) + file_head
    tail = b"\x85R" + _integer(0) + _integers(shape) + _integers(_c_strides(shape)) + b"\x89"
    tail += _global(_NO_HOOKS.function) + b")R"
    if not typed:
        tail += _global(Global("torch", dtype_str))
    tail += b"tR"
    parts: list[bytes | memoryview] = [b"\x80\x04]("]
    for view in views:
        assert view.nbytes == prod(shape) * itemsize, f"{view.nbytes} bytes for {dimensions(shape)} {dtype_str}"
        parts += (head, view, tail)
    parts.append(b"e.")
    return b"".join(parts)


def _tensor_bytes(tensor: object, shape: tuple[int, ...], dtype: str) -> memoryview:
    if not isinstance(tensor, Call) or tensor.function not in (_REBUILD, _REBUILD_WITH_DTYPE):
        raise BadRequest("the message holds something that is no tensor")
    arguments = list(tensor.arguments)
    typed = tensor.function == _REBUILD
    named_dtype = None if typed or len(arguments) < 7 else arguments.pop(6)
    if len(arguments) == 7 and arguments[6] is None:
        arguments.pop()
    if len(arguments) != 6 or arguments[5] != _NO_HOOKS:
        raise BadRequest("a tensor with other parts than storage, offset, size and stride")
    storage, offset, size, stride = arguments[:4]
    if size != shape:
        raise BadRequest(f"a tensor of shape {_shown(size)}; {dimensions(shape)} is registered")
    if not _is_c_order(shape, stride):
        raise BadRequest(f"a tensor with stride {_shown(stride)} is not contiguous")
    raw, storage_dtype = _storage(storage)
    found = storage_dtype if typed else _dtype_of_bytes(storage_dtype, named_dtype)
    if found != dtype:
        raise BadRequest(f"a tensor of dtype {_shown(found)}; {dtype} is registered")
    itemsize = dtype_bytes(dtype)
    if type(offset) is not int or not 0 <= offset <= len(raw) // itemsize - prod(shape):
        raise BadRequest(f"a tensor reaches beyond its storage of {len(raw)} bytes")
    return raw[offset * itemsize : (offset + prod(shape)) * itemsize]


def _dtype_of_bytes(storage_dtype: str | None, named: object) -> str | None:
    """The dtype that a tensor over a storage of bytes names; None when it is no such tensor."""
    if storage_dtype in (None, "uint8") and isinstance(named, Global) and named.module == "torch":
        return named.name
    return None


def _storage(storage: object) -> tuple[memoryview, str | None]:
    """Bytes and dtype of a storage; None for untyped bytes."""
    if not isinstance(storage, Call) or storage.function != _LOAD_STORAGE or len(storage.arguments) != 1:
        raise BadRequest("a tensor without a storage")
    file = storage.arguments[0]
    if not isinstance(file, memoryview):
        raise BadRequest("a storage that is not bytes")
    values, at = [], 0
    for _ in range(5):
        value, at = load(file, at, max_steps=_STEPS_OF_A_STORAGE)
        values.append(value)
    magic, protocol, system, reference, keys = values
    little_endian = isinstance(system, dict) and system.get("little_endian") is True
    if magic != _MAGIC or protocol != _PROTOCOL or not little_endian:
        raise BadRequest("a storage that is not in torch's legacy format, little endian")
    dtype, key, elements = _reference(reference)
    itemsize = 1 if dtype is None else dtype_bytes(dtype)
    raw = file[at + 8 :]
    if keys != [key] or len(file) < at + 8 or struct.unpack("<q", file[at : at + 8])[0] != elements:
        raise BadRequest("a storage that contradicts itself")
    if len(raw) != elements * itemsize:
        raise BadRequest(f"a storage of {elements} elements with {len(raw)} bytes")
    return raw, dtype


def _reference(reference: object) -> tuple[str | None, str, int]:
    """(dtype, key, elements) of the stored object, which must be a storage itself and no view of one."""
    identity = reference.identity if isinstance(reference, Persistent) else None
    if not isinstance(identity, tuple) or len(identity) != 6 or identity[0] != "storage" or identity[5] is not None:
        raise BadRequest("a storage file that holds something else")
    _, storage_class, key, location, elements, _ = identity
    if location != "cpu" or not isinstance(key, str) or type(elements) is not int or elements < 0:
        raise BadRequest("a storage that is not plain CPU memory")
    if storage_class == _UNTYPED:
        return None, key, elements
    if not isinstance(storage_class, Global) or storage_class not in _DTYPE_OF_STORAGE:
        raise BadRequest("a storage of an unknown class")
    return _DTYPE_OF_STORAGE[storage_class], key, elements


def _is_c_order(shape: tuple[int, ...], stride: object) -> bool:
    """Whether the elements lie densely in C order; the stride of an axis of length 1 means nothing."""
    if not isinstance(stride, tuple) or len(stride) != len(shape):
        return False
    wanted = zip(shape, stride, _c_strides(shape), strict=True)
    return all(length == 1 or step == dense for length, step, dense in wanted)


def _c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _shown(value: object) -> str:
    """A value from the message for an error text; nested ones are not written out, they may stand for endless text."""
    if isinstance(value, tuple) and len(value) <= MAX_RANK and all(isinstance(item, int) for item in value):
        return dimensions(value)
    return repr(value[:64]) if isinstance(value, str) else type(value).__name__


def _file_head(storage_class: Global, elements: int) -> bytes:
    """A storage file up to its elements."""
    magic = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
    protocol = b"\x80\x02" + _integer(_PROTOCOL) + b"."
    sizes = b"}(" + b"".join(_text(name) + _integer(size) for name, size in (("short", 2), ("int", 4), ("long", 4)))
    system = b"\x80\x02}(" + _text("protocol_version") + _integer(_PROTOCOL) + _text("little_endian") + b"\x88"
    system += _text("type_sizes") + sizes + b"uu."
    count = struct.pack("<q", elements)
    identity = _text("storage") + _global(storage_class) + _text("0") + _text("cpu") + _integer(elements) + b"N"
    return b"".join(
        (magic, protocol, system, b"\x80\x02(" + identity + b"tQ.", b"\x80\x02]" + _text("0") + b"a.", count)
    )


def _global(name: Global) -> bytes:
    return b"c" + name.module.encode() + b"\n" + name.name.encode() + b"\n"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _integer(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _integers(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(_integer(number) for number in numbers) + b"t"
