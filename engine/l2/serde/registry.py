"""Which codecs there are: name -> "module:Class", imported when asked for."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from engine.errors import StartError
from engine.l2.registry import read_config
from engine.l2.serde.codec import Chain, Codec

CODECS = {
    "zstd": "engine.l2.serde.zstd_codec:ZstdCodec",
    "fp8": "engine.l2.serde.fp8_codec:Fp8Codec",
    "aesgcm": "engine.l2.serde.aesgcm_codec:AesGcmCodec",
}


def open_codecs(steps: Sequence[Mapping[str, Any]], where: str = "") -> Codec | None:
    """The codec of an adapter's `serde`: `[{"type": "zstd", ...}, ...]` in the order of encoding; None for none.

    Raises StartError naming the codec, the field and what is allowed; it begins with `where`, the adapter.
    """
    try:
        return _open_all(steps)
    except StartError as error:
        raise StartError(f"{where}: {error}" if where else str(error)) from error


def _open_all(steps: Sequence[Mapping[str, Any]]) -> Codec | None:
    codecs = [_open(step) for step in steps]
    names = [codec.name for codec in codecs]
    if "aesgcm" in names[:-1]:
        raise StartError(f"serde: aesgcm must come last, since what follows it finds nothing to shorten: {names}")
    if len(set(names)) < len(names):
        raise StartError(f"serde: each codec at most once, not {names}")
    return None if not codecs else codecs[0] if len(codecs) == 1 else Chain(codecs)


def _open(step: Mapping[str, Any]) -> Codec:
    name = step.get("type")
    if name not in CODECS:
        raise StartError(f"serde: unknown type {name!r}; there are {', '.join(sorted(CODECS))}")
    module_name, _, class_name = CODECS[name].partition(":")
    codec_class = getattr(importlib.import_module(module_name), class_name)
    fields = {field: value for field, value in step.items() if field != "type"}
    try:
        return cast(Codec, codec_class(read_config(name, codec_class.config_class, fields, f"serde {name!r}")))
    except (OSError, ValueError) as error:
        raise StartError(f"serde {name!r}: {error}") from error
