"""The judge of answers itself: what it takes and what it does not."""

import re
from typing import Any

import pytest

from tests.http_page.exchange import OneOf, differences, fill, operation_at

TAKEN: list[tuple[Any, Any]] = [
    (1, 1),
    (int, 7),
    (float, 7.0),
    (None, None),
    ({"a": int, ...: ...}, {"a": 1, "b": 2}),
    ([int, ...], []),
    ([int, ...], [1, 2]),
    ([int, str], [1, "x"]),
    (OneOf(float, None), None),
    (re.compile("a+"), "aaa"),
]
REFUSED: list[tuple[Any, Any]] = [
    (1, 1.0),
    (1, True),
    (True, 1),
    (int, True),
    (int, 7.0),
    (float, 7),
    (None, False),
    ({"a": int}, {"a": 1, "b": 2}),
    ({"a": int, ...: ...}, {"b": 2}),
    ({"a": {"b": 1}}, {"a": {"b": 2}}),
    ([int, ...], [1, "x"]),
    ([int], [1, 2]),
    ([int, str], [1]),
    ({}, []),
    (OneOf(float, None), 1),
    (re.compile("a+"), "aab"),
    (re.compile("1"), 1),
]


@pytest.mark.parametrize(("expected", "got"), TAKEN, ids=str)
def test_taken(expected: Any, got: Any) -> None:
    assert differences(expected, got) == []


@pytest.mark.parametrize(("expected", "got"), REFUSED, ids=str)
def test_refused(expected: Any, got: Any) -> None:
    assert len(differences(expected, got)) == 1


def test_values_stand_for_names() -> None:
    assert fill({"<a>": ["<n>", "x<n>", "<other>"]}, {"a": "b", "n": 7}) == {"b": [7, "x7", "<other>"]}


def test_the_most_literal_path_is_meant() -> None:
    document = {"paths": {"/a/{b}": {"get": {"x": 1}}, "/a/c": {"get": {"x": 2}}, "/a/{b}/{c}": {"post": {"x": 3}}}}
    assert operation_at(document, "get", "/a/c") == {"x": 2}
    assert operation_at(document, "get", "/a/d") == {"x": 1}
    assert operation_at(document, "post", "/a/c") is None
    assert operation_at(document, "post", "/a/c/d") == {"x": 3}
