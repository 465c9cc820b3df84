"""Half or a quarter of the bytes for a bounded error: numbers as float8 (e4m3) with a scale per block of 128.

offset  bytes         field
------  ------------  -------------------------------------------------------------------------
0       1             1 = float8, 0 = the payload follows as it is (odd length, or NaN or infinity in it)
1       4 per block   scale, float32
...     1 per number  float8; the last block is filled up with zeros

Of a number x in a block whose largest magnitude is m, what comes back differs by at most
|x| / 16 + m * 2**-18, and a rounding of its own type.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from engine.l2.serde.codec import Codec, Undecodable
from engine.object_key import ObjectKey

BLOCK = 128
_LARGEST = 448.0
_SMALLEST_SCALE = 2.0**-126
_WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}
_PLAIN, _FLOAT8 = b"\0", b"\1"


@dataclass(frozen=True)
class Fp8Config:
    """`dtype`: type of the numbers in the stored tensors. Raises ValueError."""

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in _WIDTHS:
            raise ValueError(f"dtype is {self.dtype!r}, allowed is {', '.join(_WIDTHS)}")


class Fp8Codec(Codec):
    """Lossy. Uses one thread of its caller's."""

    name: ClassVar[str] = "fp8"
    lossless: bool = False
    config_class = Fp8Config

    def __init__(self, config: Fp8Config) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch: Any = torch
        self._dtype = getattr(torch, config.dtype)
        self._width = _WIDTHS[config.dtype]
        self._tag = f"fp8 e4m3 {BLOCK} {config.dtype}".encode()

    def tag(self) -> bytes:
        return self._tag

    def encode(self, payload: memoryview, key: ObjectKey) -> bytes:
        torch = self._torch
        if not len(payload) or len(payload) % self._width:
            return _PLAIN + bytes(payload)
        numbers = torch.frombuffer(bytearray(payload), dtype=self._dtype).float()
        blocks = torch.nn.functional.pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        if not bool(torch.isfinite(largest).all()):
            return _PLAIN + bytes(payload)
        scales = (largest / _LARGEST).clamp_(min=_SMALLEST_SCALE)
        coarse = (blocks / scales).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).flatten()[: len(numbers)]
        return b"".join((_FLOAT8, scales.numpy().tobytes(), coarse.view(torch.uint8).numpy().tobytes()))

    def decode(self, data: memoryview, key: ObjectKey, max_bytes: int) -> bytes:
        kind, rest = bytes(data[:1]), data[1:]
        if kind == _PLAIN and len(rest) <= max_bytes:
            return bytes(rest)
        count = self._count(len(rest))
        if kind != _FLOAT8 or not count or count * self._width > max_bytes:
            raise Undecodable(f"{len(data)} bytes are no float8 form of at most {max_bytes}")
        torch, scale_bytes = self._torch, len(rest) - count
        scales = torch.frombuffer(bytearray(rest[:scale_bytes]), dtype=torch.float32).view(-1, 1)
        coarse = torch.frombuffer(bytearray(rest[scale_bytes:]), dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        blocks = torch.nn.functional.pad(coarse, (0, -count % BLOCK)).view(-1, BLOCK) * scales
        limits = torch.finfo(self._dtype)
        numbers = blocks.flatten()[:count].clamp_(limits.min, limits.max).to(self._dtype)
        return bytes(numbers.view(torch.uint8).numpy().tobytes())

    def _count(self, length: int) -> int:
        """How many numbers make `length` bytes of scales and float8; 0 when none do."""
        count = length * BLOCK // (BLOCK + 4)
        for candidate in range(max(0, count - 4), count + 1):
            if candidate + -(-candidate // BLOCK) * 4 == length:
                return candidate
        return 0
