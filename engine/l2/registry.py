"""Which adapters there are: name -> "module:Class", imported when asked for."""

import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from engine.errors import StartError
from engine.l2.base import L2Adapter

ADAPTERS = {
    "memory": "engine.l2.memory_adapter:MemoryAdapter",
    "fs": "engine.l2.fs_adapter:FsAdapter",
    "dax": "engine.l2.dax_adapter:DaxAdapter",
    "redis": "engine.l2.redis_adapter:RedisAdapter",
    "s3": "engine.l2.s3_adapter:S3Adapter",
    "fault": "engine.l2.fault_adapter:FaultAdapter",
}


def open_adapter(type_name: str, fields: Mapping[str, Any]) -> L2Adapter:
    """A connected adapter. Raises StartError naming the type, the field and what is allowed.

    One whose configuration has a field `inner` wraps another: that one is opened first, and handed to it.
    """
    if type_name not in ADAPTERS:
        raise StartError(f"l2_adapter: unknown type {type_name!r}; there are {', '.join(sorted(ADAPTERS))}")
    opened = adapter_class(type_name)
    config = read_config(type_name, opened.config_class, fields)
    inner = getattr(config, "inner", None)
    wrapped = () if inner is None else (open_adapter(inner["type"], {k: v for k, v in inner.items() if k != "type"}),)
    try:
        return typing.cast(L2Adapter, opened(config, *wrapped))
    except OSError as error:
        raise StartError(f"l2_adapter {type_name!r} cannot be opened: {error}") from error


def adapter_class(type_name: str) -> Any:
    """The class of an adapter type, None for an unknown one."""
    if type_name not in ADAPTERS:
        return None
    module_name, _, class_name = ADAPTERS[type_name].partition(":")
    return getattr(importlib.import_module(module_name), class_name)


def read_config(type_name: str, config_class: type, fields: Mapping[str, Any], where: str = "") -> Any:
    """The configuration of an adapter, or of what `where` names.

    Raises StartError for an unknown, missing or wrongly typed field.
    """
    known = {field.name: field for field in dataclasses.fields(config_class)}
    where = where or f"l2_adapter {type_name!r}"
    for name in fields:
        if name not in known:
            raise StartError(f"{where}: unknown field {name!r}; known are {', '.join(sorted(known))}")
    hints = typing.get_type_hints(config_class)
    for name, value in fields.items():
        if not _fits(value, hints[name]):
            # What a configuration keeps out of its own representation is kept out of messages too.
            shown = json.dumps(value)[:80] if known[name].repr else "something that is not shown"
            raise StartError(f"{where}: {name} is {shown}, allowed is {_words(hints[name])}")
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in fields:
            raise StartError(f"{where}: {name} is missing")
    values = {name: float(value) if hints[name] is float else value for name, value in fields.items()}
    try:
        return config_class(**values)
    except ValueError as error:
        raise StartError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    origin = typing.get_origin(hint)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _words(hint: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    return names.get(typing.get_origin(hint) or hint, str(hint))
