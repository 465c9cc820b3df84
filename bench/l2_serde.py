"""How fast do codecs encode and decode KV, beside one thread's memcpy, and how many bytes are left?

The KV is made up, but not of plain noise, which nothing compresses, nor of zeros: float16, 8 heads of 128 channels,
normally distributed. Each channel has a scale of its own (log-normal, sigma 0.8), one in 32 is an outlier eight times
as large, each has an offset of its own as keys have, and a fifth of each token is carried over from the one before.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import Row, interleave, seconds
from bench.storage import MIB, key
from engine.l2.serde.codec import Codec
from engine.l2.serde.registry import open_codecs

SIZE = 4 * MIB
HEADS, HEAD_DIM = 8, 128
ROUNDS = 9
#: How much of a token's values comes from the token before.
CARRIED = 0.2


def made_up_kv(nbytes: int) -> memoryview:
    """See the module's text. The same bytes in every run."""
    draw = np.random.default_rng(1)
    channels = HEADS * HEAD_DIM
    tokens = nbytes // (2 * channels)
    scales = draw.lognormal(0.0, 0.8, channels)
    scales[draw.random(channels) < 1 / 32] *= 8
    offsets = draw.normal(0.0, 1.0, channels) * scales
    values = draw.normal(0.0, 1.0, (tokens, channels))
    for number in range(1, tokens):
        values[number] = CARRIED * values[number - 1] + np.sqrt(1 - CARRIED**2) * values[number]
    return memoryview((values * scales + offsets).astype(np.float16).tobytes())


def rows_of(name: str, codec: Codec, payload: memoryview) -> list[Row]:
    """GB of KV a second each way, and the share of bytes that is stored."""
    whose, room = key(0), bytearray(len(payload))
    encoded = codec.encode(payload, whose)
    decoded = codec.decode(memoryview(encoded), whose, len(payload))
    assert len(decoded) == len(payload)
    assert decoded == payload or not codec.lossless

    def memcpy() -> None:
        memoryview(room)[:] = payload

    times = interleave(
        {
            "encode": lambda: seconds(lambda: codec.encode(payload, whose)),
            "decode": lambda: seconds(lambda: codec.decode(memoryview(encoded), whose, len(payload))),
            "memcpy": lambda: seconds(memcpy),
        },
        ROUNDS,
    )
    speeds = {verb: len(payload) / 1e9 / s for verb, s in times.items()}
    memcpy_speed = speeds.pop("memcpy")
    return [
        *(Row(f"{name} {verb}", speed, memcpy_speed, "GB/s", "memcpy", None) for verb, speed in speeds.items()),
        Row(f"{name} bytes stored", len(encoded) / MIB, len(payload) / MIB, "MiB", "bytes of KV", None),
    ]


def measure() -> list[Row]:
    payload = made_up_kv(SIZE)
    with tempfile.TemporaryDirectory() as directory:
        key_file = Path(directory, "key")
        key_file.touch(mode=0o600)
        key_file.write_bytes(os.urandom(32))
        zstd: Mapping[str, Any] = {"type": "zstd"}
        fp8: Mapping[str, Any] = {"type": "fp8", "dtype": "float16"}
        aesgcm: Mapping[str, Any] = {"type": "aesgcm", "key_file": str(key_file)}
        rows: list[Row] = []
        for steps in ([zstd], [fp8], [aesgcm], [fp8, zstd, aesgcm]):
            codec = open_codecs(steps)
            assert codec is not None
            rows += rows_of("+".join(str(step["type"]) for step in steps) + ", 4 MiB float16", codec, payload)
        return rows
