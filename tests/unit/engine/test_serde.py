"""Codecs: what is encoded comes back, what was changed or belongs elsewhere does not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StartError
from engine.l2.record import HEADER_BYTES, Verdict, make_header, verify
from engine.l2.serde.aesgcm_codec import AesGcmCodec, AesGcmConfig
from engine.l2.serde.codec import Codec, Undecodable, stored_fingerprint
from engine.l2.serde.fp8_codec import Fp8Codec, Fp8Config
from engine.l2.serde.registry import open_codecs
from engine.l2.serde.zstd_codec import ZstdCodec, ZstdConfig
from engine.object_key import ObjectKey

KEY = ObjectKey(bytes(range(32)), "org/model", 0x01000100, 0, "alice")
LAYOUT = b"layout-of-a-test"
PAYLOADS = st.binary(max_size=3000) | st.integers(0, 5000).map(lambda size: bytes([1, 0x3F]) * size)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("keys") / "master"
    path.write_bytes(bytes(range(100, 132)))
    path.chmod(0o600)
    return str(path)


def there_and_back(codec: Codec, payload: bytes, key: ObjectKey = KEY) -> bytes:
    return codec.decode(memoryview(codec.encode(memoryview(payload), key)), key, len(payload))


def numbers(dtype: torch.dtype, count: int, seed: int = 1, spread: float = 3.0) -> bytes:
    torch.manual_seed(seed)
    values = (torch.randn(count) * torch.exp(torch.randn(count) * spread)).clamp(-6e4, 6e4).to(dtype)
    return values.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@given(payload=PAYLOADS)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_zstd_gives_back_every_byte(width: int, payload: bytes) -> None:
    assert there_and_back(ZstdCodec(ZstdConfig(element_bytes=width)), payload) == payload


def test_byte_planes_compress_what_plain_zstd_does_not() -> None:
    payload = numbers(torch.bfloat16, 200_000, spread=0.1)

    planes = len(ZstdCodec(ZstdConfig(element_bytes=2)).encode(memoryview(payload), KEY))
    plain = len(ZstdCodec(ZstdConfig(element_bytes=1)).encode(memoryview(payload), KEY))

    assert planes < 0.85 * len(payload)
    assert planes < 0.95 * plain


def test_a_frame_larger_than_expected_is_not_unpacked() -> None:
    codec = ZstdCodec(ZstdConfig())
    bomb = codec.encode(memoryview(bytes(1 << 24)), KEY)

    with pytest.raises(Undecodable, match="a frame of 16777216 bytes, at most 5000"):
        codec.decode(memoryview(bomb), KEY, 5000)


@given(damage=st.binary(max_size=200))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_zstd_refuses_or_decodes_but_never_breaks(damage: bytes) -> None:
    good = ZstdCodec(ZstdConfig()).encode(memoryview(bytes(range(200))), KEY)
    for data in (damage, good[:6] + damage, good + damage, good[: len(damage)]):
        try:
            size = len(ZstdCodec(ZstdConfig()).decode(memoryview(data), KEY, 200))
        except Undecodable:
            continue
        assert size <= 200


@pytest.mark.parametrize("name", DTYPES)
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 700), spread=st.floats(0, 6))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_fp8_stays_within_its_bound(name: str, seed: int, count: int, spread: float) -> None:
    payload = numbers(DTYPES[name], count, seed, spread)

    back = there_and_back(Fp8Codec(Fp8Config(name)), payload)

    assert len(back) == len(payload)
    before = torch.frombuffer(bytearray(payload), dtype=DTYPES[name]).double().numpy()
    after = torch.frombuffer(bytearray(back), dtype=DTYPES[name]).double().numpy()
    largest = np.array([np.abs(before[at // 128 * 128 :][:128]).max() for at in range(count)])
    eps = torch.finfo(DTYPES[name]).eps
    bound = np.abs(before) * (1 / 16 + 2 * eps) + largest * (2**-18 + 2**-22) + torch.finfo(DTYPES[name]).tiny
    assert (np.abs(after - before) <= bound).all()


@pytest.mark.parametrize("name", DTYPES)
def test_fp8_takes_half_or_a_quarter(name: str) -> None:
    count = 100_000
    encoded = Fp8Codec(Fp8Config(name)).encode(memoryview(numbers(DTYPES[name], count)), KEY)

    assert len(encoded) == 1 + count + -(-count // 128) * 4


@pytest.mark.parametrize("odd", [b"", b"\1", b"\1\2\3", bytes([0x80, 0x7F]) * 200, bytes([0xC0, 0x7F]) + bytes(254)])
def test_fp8_keeps_what_it_cannot_shorten_as_it_is(odd: bytes) -> None:
    assert there_and_back(Fp8Codec(Fp8Config()), odd) == odd


@pytest.mark.parametrize("data", [b"", b"\2", b"\1", b"\1" + bytes(4), b"\1" + bytes(8), b"\0" + bytes(11)])
def test_fp8_refuses_what_has_no_such_form(data: bytes) -> None:
    with pytest.raises(Undecodable):
        Fp8Codec(Fp8Config()).decode(memoryview(data), KEY, 6)


@given(payload=PAYLOADS)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_encryption_gives_back_every_byte_and_shows_none(key_file: str, payload: bytes) -> None:
    codec = AesGcmCodec(AesGcmConfig(key_file))

    first, second = (codec.encode(memoryview(payload), KEY) for _ in range(2))

    assert first != second
    assert len(first) == len(payload) + 28
    assert len(payload) < 16 or payload not in first
    assert codec.decode(memoryview(first), KEY, len(payload)) == payload


def test_an_object_is_bound_to_every_part_of_its_key(key_file: str) -> None:
    codec = AesGcmCodec(AesGcmConfig(key_file))
    data = memoryview(codec.encode(memoryview(b"secret" * 10), KEY))
    others = [
        KEY._replace(chunk_hash=bytes(32)),
        KEY._replace(model_name="org/mode"),
        KEY._replace(kv_rank=1),
        KEY._replace(object_group_id=1),
        KEY._replace(cache_salt="bob"),
        KEY._replace(cache_salt=""),
        KEY._replace(model_name="org/modelalice", cache_salt=""),
    ]

    for other in others:
        with pytest.raises(Undecodable, match="not encrypted for this object"):
            codec.decode(data, other, 60)


def test_any_changed_bit_is_found(key_file: str) -> None:
    codec = AesGcmCodec(AesGcmConfig(key_file))
    data = codec.encode(memoryview(b"secret" * 3), KEY)

    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Undecodable):
            codec.decode(memoryview(changed), KEY, 18)
    for cut in (data[:-1], data[1:], data + b"x", data[:27], b""):
        with pytest.raises(Undecodable):
            codec.decode(memoryview(cut), KEY, 18)


def test_another_master_key_opens_nothing_and_is_another_record(key_file: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o600)
    ours, other = AesGcmCodec(AesGcmConfig(key_file)), AesGcmCodec(AesGcmConfig(str(path)))

    assert stored_fingerprint(LAYOUT, ours) != stored_fingerprint(LAYOUT, other)
    with pytest.raises(Undecodable):
        other.decode(memoryview(ours.encode(memoryview(b"secret"), KEY)), KEY, 6)


def test_the_master_key_is_shown_nowhere(key_file: str) -> None:
    codec = AesGcmCodec(AesGcmConfig(key_file))
    secret = Path(key_file).read_bytes()

    shown = repr(codec) + str(codec.tag()) + repr(vars(codec))

    assert secret.hex() not in shown
    assert str(secret)[2:-1] not in shown


def test_a_chain_is_undone_in_reverse(key_file: str) -> None:
    codec = open_codecs([{"type": "zstd"}, {"type": "aesgcm", "key_file": key_file}])
    assert codec is not None

    for payload in (b"", os.urandom(5000), bytes(100_000), numbers(torch.bfloat16, 3000)):
        assert there_and_back(codec, payload) == payload
    assert len(codec.encode(memoryview(bytes(100_000)), KEY)) < 200


def test_a_chain_is_lossless_when_all_its_codecs_are(key_file: str) -> None:
    encrypted: dict[str, object] = {"type": "aesgcm", "key_file": key_file}

    chains = [open_codecs([first, encrypted]) for first in ({"type": "zstd"}, {"type": "fp8"})]

    assert [chain is not None and chain.lossless for chain in chains] == [True, False]


def test_a_record_remembers_its_codec(key_file: str) -> None:
    steps = [[], [{"type": "zstd"}], [{"type": "zstd", "element_bytes": 4}], [{"type": "fp8"}]]
    codecs = [open_codecs(chosen) for chosen in [*steps, [{"type": "aesgcm", "key_file": key_file}]]]
    fingerprints = [stored_fingerprint(LAYOUT, codec) for codec in codecs]
    data = memoryview(codecs[1].encode(memoryview(bytes(5000)), KEY))
    header = memoryview(make_header(KEY, fingerprints[1], data))

    verdicts = [verify(header, data, HEADER_BYTES + len(data), KEY, fingerprint) for fingerprint in fingerprints]

    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)
    assert verdicts == [Verdict.OTHER_LAYOUT, Verdict.GOOD, *[Verdict.OTHER_LAYOUT] * 3]
    assert fingerprints[0] == LAYOUT
    faster = open_codecs([{"type": "zstd", "level": 9}])
    assert stored_fingerprint(LAYOUT, faster) == fingerprints[1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"type": "rot13"}], "unknown type 'rot13'; there are aesgcm, fp8, zstd"),
        ([{"type": "zstd", "level": 99}], "level is 99, allowed is 1 to 19"),
        ([{"type": "zstd", "colour": 1}], "unknown field 'colour'"),
        ([{"type": "fp8", "dtype": "int8"}], "dtype is 'int8', allowed is bfloat16"),
        ([{"type": "aesgcm"}], "key_file is missing"),
        ([{"type": "aesgcm", "key_file": "/none"}], "No such file"),
        ([{"type": "zstd"}, {"type": "zstd"}], "each codec at most once"),
        ([{"type": "aesgcm", "key_file": "{key}"}, {"type": "zstd"}], "aesgcm must come last"),
    ],
)
def test_a_wrong_configuration_stops_the_start(steps: list[dict], message: str, key_file: str) -> None:
    filled = [{**step, "key_file": key_file} if step.get("key_file") == "{key}" else step for step in steps]

    with pytest.raises(StartError, match=message):
        open_codecs(filled)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(b"k" * 32, 0o640, "mode 0640"), (b"k" * 31, 0o600, "must hold"), (b"zz" * 32, 0o600, "must hold")],
)
def test_a_key_file_that_will_not_do_is_refused_without_its_content(
    tmp_path: Path, content: bytes, mode: int, message: str
) -> None:
    path = tmp_path / "master"
    path.write_bytes(content)
    path.chmod(mode)

    with pytest.raises(ValueError, match=message) as caught:
        AesGcmCodec(AesGcmConfig(str(path)))

    assert content.decode() not in str(caught.value)


@pytest.mark.parametrize("step", [{"type": "aesgcm"}, {"type": "zstd", "level": "high"}, {"type": "rot13"}])
def test_a_mistake_names_the_codec_and_the_adapter(step: dict[str, object]) -> None:
    with pytest.raises(StartError, match="^l2_adapter 's3': serde.*" + str(step["type"])) as mistake:
        open_codecs([step], "l2_adapter 's3'")
    assert str(mistake.value).count("l2_adapter") == 1
