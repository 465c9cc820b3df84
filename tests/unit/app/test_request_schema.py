"""What is taken for a number, a boolean, a list; what a 422 says."""

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.block_ids import MAX_BLOCKS, parse_block_ids, show_block_ids
from app.errors import Unprocessable
from app.request_schema import Boolean, Integer, IntegerList, LarderSchema, QueryInteger, Text, json_body, takes_query


class Query(LarderSchema):
    number = QueryInteger()
    flag = Boolean()


class Body(LarderSchema):
    number = Integer(required=True)
    flag = Boolean()
    text = Text()
    numbers = IntegerList()


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("-3", -3), ("007", 7), (" 5 ", 5)])
def test_a_query_integer_is_decimal_text(text: str, number: int) -> None:
    assert Query().load({"number": text}) == {"number": number}


@pytest.mark.parametrize("text", ["", "x", "1.0", "1e3", "0x10", "1_0", "٣", "9" * 20, "1 2", "--1", "true"])
def test_any_other_query_integer_is_refused(text: str) -> None:
    assert Query().validate({"number": text}) == {"number": ["not an integer: give decimal digits"]}


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "t", "y", "TRUE", "Yes"])
def test_words_for_true(word: str) -> None:
    assert Query().load({"flag": word}) == {"flag": True}


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "f", "n", "OFF"])
def test_words_for_false(word: str) -> None:
    assert Query().load({"flag": word}) == {"flag": False}


@pytest.mark.parametrize("word", ["", "2", "maybe", "truee", "-1"])
def test_other_words_are_no_boolean(word: str) -> None:
    assert "flag" in Query().validate({"flag": word})


@pytest.mark.parametrize(("value", "number"), [(1, 1), (1.0, 1), ("7", 7), (True, 1), (-2, -2)])
def test_a_body_integer(value: object, number: int) -> None:
    assert Body().load({"number": value}) == {"number": number}


@pytest.mark.parametrize("value", [1.5, "x", None, [], {}, "1.0", float("nan"), float("inf"), ""])
def test_no_body_integer(value: object) -> None:
    assert "number" in Body().validate({"number": value})


@pytest.mark.parametrize("value", [1, None, ["a"], {"a": 1}, True])
def test_a_body_text_is_a_string_only(value: object) -> None:
    assert "text" in Body().validate({"number": 1, "text": value})


@pytest.mark.parametrize("value", [1.5, None, [], 2, "perhaps"])
def test_no_body_boolean(value: object) -> None:
    assert "flag" in Body().validate({"number": 1, "flag": value})


@pytest.mark.parametrize("value", ["1,2", 1, None, {"0": 1}])
def test_a_list_is_a_list_only(value: object) -> None:
    assert "numbers" in Body().validate({"number": 1, "numbers": value})


def test_a_bad_member_is_named_by_its_index() -> None:
    assert Body().validate({"number": 1, "numbers": [1, "2", 3.0, "x"]}) == {
        "numbers": {3: ["not an integer: give decimal digits"]}
    }


def test_unknown_fields_are_ignored() -> None:
    assert Body().load({"number": 1, "block_size": "nonsense"}) == {"number": 1}


def test_of_a_repeated_parameter_the_last_counts() -> None:
    @takes_query(Query)
    def view(number: int) -> int:
        return number

    with Flask("test").test_request_context("/?number=x&number=2"):
        assert view() == 2


@pytest.mark.parametrize(
    ("body", "content_type", "problem"),
    [
        (b"", "application/json", "missing"),
        (b"{}", "text/plain", "missing"),
        (b"{}", "application/x-www-form-urlencoded", "missing"),
        (b"{", "application/json", "json_invalid"),
        (b"\xff", "application/json", "json_invalid"),
        (b"[" * 100_000, "application/json", "json_invalid"),
        (b"9" * 5000, "application/json", "json_invalid"),
        (b"[]", "application/json", "object_type"),
        (b"null", "application/merge+json", "object_type"),
    ],
)
def test_bodies_that_are_no_json_object(body: bytes, content_type: str, problem: str) -> None:
    sent = Flask("test").test_request_context("/", method="POST", data=body, content_type=content_type)

    with sent, pytest.raises(Unprocessable) as refused:
        json_body()

    assert refused.value.problems[0]["type"] == problem
    assert refused.value.problems[0]["loc"] == ["body"]


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "a/b+json", None])
def test_json_by_its_content_type_or_by_none(content_type: str | None) -> None:
    with Flask("test").test_request_context("/", method="POST", data=b'{"a": 1}', content_type=content_type):
        assert json_body() == {"a": 1}


def test_a_422_walks_to_each_field(client: FlaskClient) -> None:
    answer = client.post("/cache/checksums", json={"block_ids": [0, "x"], "chunk_size": 1.5, "layerwise": "perhaps"})

    assert answer.status_code == 422
    problems = {tuple(problem["loc"]): problem["type"] for problem in answer.get_json()["detail"]}
    assert problems == {
        ("body", "block_ids", 1): "int_parsing",
        ("body", "chunk_size"): "int_from_float",
        ("body", "layerwise"): "bool_parsing",
    }
    assert all(problem["msg"] for problem in answer.get_json()["detail"])


def test_a_null_in_a_body_is_named(client: FlaskClient) -> None:
    answer = client.post("/cache/checksums", json={"chunk_size": None})

    assert answer.get_json()["detail"] == [
        {"type": "null", "loc": ["body", "chunk_size"], "msg": "null is not allowed here"}
    ]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("0,[2,5],8", [0, 2, 3, 4, 5, 8]),
        ("0,,1,", [0, 1]),
        ("[0,1][3,4]", [0, 1, 3, 4]),
        ("1 2", [12]),
        (" [ 1 , 2 ] ", [1, 2]),
        ("5,5,4", [5, 5, 4]),
        ("[3,3]", [3]),
        (",", []),
        ("", []),
    ],
)
def test_block_lists(text: str, blocks: list[int]) -> None:
    assert parse_block_ids(text) == blocks


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "1.5",
        "[[0,1]]",
        "[0,1",
        "0,1]",
        "[0]",
        "[0,1,2]",
        "[5,2]",
        "3[0,1]",
        "[0,1]3",
        "-1",
        "[0,-1]",
        "1;2",
        "99999999999",
        "[0,9999999999]",
        "[]",
        "٣",
        "0x1",
    ],
)
def test_malformed_block_lists(text: str) -> None:
    with pytest.raises(ValueError):
        parse_block_ids(text)


def test_a_block_list_is_bounded() -> None:
    assert len(parse_block_ids(f"[1,{MAX_BLOCKS}]")) == MAX_BLOCKS
    with pytest.raises(ValueError, match="more than"):
        parse_block_ids(f"[1,{MAX_BLOCKS}],7")


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([0, 2, 3, 4, 5, 8], "0,[2,5],8"),
        ([0, 1], "0,1"),
        ([2, 1, 0], "2,1,0"),
        ([1, 2, 3], "[1,3]"),
        ([5, 5, 6], "5,5,6"),
        ([], ""),
    ],
)
def test_blocks_are_shown_in_the_form_they_are_read(blocks: list[int], text: str) -> None:
    assert show_block_ids(blocks) == text
    assert parse_block_ids(text) == blocks
