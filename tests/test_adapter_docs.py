"""docs/configuration.md knows every adapter and codec: each field with its default, and a full example of each."""

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.l2.registry import ADAPTERS, read_config
from engine.l2.serde.registry import CODECS
from engine.l2.spec import OWN_FIELDS, EvictionSpec, read_spec

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text()
SECTION = PAGE[PAGE.index("## L2 adapters") :]
EXAMPLES: list[dict[str, Any]] = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)]


def config_class(place: str) -> type:
    module_name, _, class_name = place.partition(":")
    return getattr(importlib.import_module(module_name), class_name).config_class


def tables() -> list[dict[str, str]]:
    """The tables of the section: field -> default."""
    found: list[dict[str, str]] = []
    for block in re.findall(r"\| field \| default \| meaning \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", SECTION):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append({row[0].strip("`"): row[1] for row in rows})
    return found


def default_of(field: "dataclasses.Field[Any]") -> str:
    if field.name == "inner" or (field.default is field.default_factory is dataclasses.MISSING):
        return "required"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return f"`{json.dumps(value)}`"


CONFIGS = {
    **{name: config_class(place) for name, place in ADAPTERS.items()},
    **{name: config_class(place) for name, place in CODECS.items()},
    "eviction": EvictionSpec,
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_table_has_the_fields_and_their_defaults(name: str) -> None:
    expected = {field.name: default_of(field) for field in dataclasses.fields(CONFIGS[name])}

    assert expected in tables(), f"docs/configuration.md has no table for {name} with {expected}"


def test_the_engines_own_fields_have_a_table() -> None:
    assert set(OWN_FIELDS) in [set(table) for table in tables()]


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_an_example_of_each_adapter_is_taken(name: str) -> None:
    examples = [example for example in EXAMPLES if example["type"] == name]
    mentioned: set[str] = set()

    for example in examples:
        fields = read_spec(example).fields
        read_config(name, CONFIGS[name], fields)
        mentioned |= set(fields)

    optional = {"url"} if name == "redis" else set()
    assert mentioned | optional == {field.name for field in dataclasses.fields(CONFIGS[name])}


@pytest.mark.parametrize("name", list(CODECS))
def test_an_example_of_each_codec_is_taken(name: str) -> None:
    (example,) = [example for example in EXAMPLES if example["type"] == name]

    config = read_config(name, CONFIGS[name], {key: value for key, value in example.items() if key != "type"})

    assert set(dataclasses.asdict(config)) == set(example) - {"type"}
