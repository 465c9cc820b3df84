"""The API document: valid, complete both ways, with examples that keep to their own schemas."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import app
from app import close_app, create_app, openapi
from app.config import AppConfig
from app.declarations import answers, in_path, refuses
from app.json_schema import Components
from app.policy import ERROR, Level, policy
from tests.unit.app.memory_backend import MemoryBackend

METHODS = {"get", "put", "post", "delete", "patch"}


CATEGORIES = {"web tier": ("common", "mp"), "internal API server": ("common", "vllm", "controller")}


@pytest.fixture(params=CATEGORIES)
def described(request: pytest.FixtureRequest, backend: MemoryBackend) -> Iterator[Flask]:
    """The application of each kind of server of ours."""
    made = create_app(AppConfig("127.0.0.1", 8080), backend, CATEGORIES[request.param])
    yield made
    close_app(made)


@pytest.fixture
def document(described: Flask) -> dict[str, Any]:
    return dict(described.test_client().get("/openapi.json").get_json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


def media_types(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for status, response in operation["responses"].items():
        yield from ((f"{status} {kind}", media) for kind, media in response["content"].items())
    yield from operation.get("requestBody", {}).get("content", {}).items()


def examples_of(media: dict[str, Any]) -> list[Any]:
    return [media["example"]] if "example" in media else [named["value"] for named in media["examples"].values()]


def problems(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    whole = {**schema, "components": document["components"]}
    return [error.message for error in Draft202012Validator(whole).iter_errors(value)]


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    validate(document)

    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "Larder"


def test_every_route_is_in_it_and_nothing_else(described: Flask, document: dict[str, Any]) -> None:
    served = {
        (re.sub(r"<([^>]+)>", r"{\1}", rule.rule), method.lower())
        for rule in described.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert {(path, method) for path, method, _ in operations(document)} == served


def test_every_route_says_what_it_must(described: Flask) -> None:
    assert openapi.complaints(described) == []


def test_every_operation_is_told_with_its_access(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert operation["summary"], (method, path)
        assert "`" not in operation["summary"], (method, path)
        assert operation["description"], (method, path)
        statuses = set(operation["responses"])
        assert ("401" in statuses) == (operation["x-access"] != "open" or path == "/loglevel"), (method, path)
        assert operation["x-access"] != "admin" or {"401", "403"} <= statuses, (method, path)
        assert operation["security"] == openapi.SECURITY[Level(operation["x-access"])]
        assert {"413"} <= statuses or "requestBody" not in operation, (method, path)
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))


def test_every_body_has_examples_and_they_keep_to_its_schema(document: dict[str, Any]) -> None:
    wrong = []
    count = 0
    for path, method, operation in operations(document):
        for place, media in media_types(operation):
            examples = examples_of(media)
            assert examples, (method, path, place)
            count += len(examples)
            for example in examples:
                wrong += [f"{method} {path} {place}: {text}" for text in problems(document, media["schema"], example)]

    assert wrong == []
    assert count > 100


def test_parameters_have_descriptions_and_fitting_defaults(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (method, path, parameter["name"])
            assert parameter["in"] != "path" or parameter["example"]
            if "default" in parameter["schema"]:
                assert problems(document, parameter["schema"], parameter["schema"]["default"]) == []


def test_a_field_speaks_of_its_type(client: FlaskClient) -> None:
    document = client.get("/openapi.json").get_json()
    parameters = {p["name"]: p["schema"] for p in document["paths"]["/l2/keys"]["get"]["parameters"]}

    assert parameters["page_size"] == {"type": "integer", "minimum": 1, "maximum": 5000, "default": 500}
    assert parameters["adapter"] == {"type": "string"}
    (limit,) = document["paths"]["/jobs/prefetch"]["get"]["parameters"]
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    body = document["components"]["schemas"]["PrefetchBody"]
    assert body["required"] == ["model_name", "token_ids", "world_size"]
    assert body["properties"]["token_ids"]["items"]["maximum"] == 2**32 - 1


def test_it_is_open_and_made_once(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_app(admin_token="t0p-5ecret", read_token="0ther").test_client()
    first = client.get("/openapi.json", headers={"Host": "elsewhere"})
    monkeypatch.delattr(openapi, "build")

    again = client.get("/openapi.json")

    assert (first.status_code, first.content_type) == (200, "application/json")
    assert again.data == first.data
    assert b"t0p-5ecret" not in first.data


def test_the_page_brings_all_it_needs_and_lets_nothing_else_in(client: FlaskClient) -> None:
    page = client.get("/docs")

    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) >= 5
    for link in links:
        answer = client.get("/" + link)
        assert answer.status_code == 200, link
        assert link == "openapi.json" or answer.headers["X-Content-Type-Options"] == "nosniff"
        answer.close()
    page.close()


def test_what_was_brought_from_elsewhere_is_as_it_was_published() -> None:
    folder = Path(app.__file__).parent / "static" / "swagger-ui"
    sums = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())

    found = {path.name for path in folder.iterdir()} - {"README.md", "SHA256SUMS"}

    assert found == set(sums)
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in found} == sums


@pytest.mark.parametrize("name", ["page.html", "LICENSE", "..%2Fdocs%2Fpage.html", "%2e%2e", "nope.js"])
def test_the_page_has_no_other_files(client: FlaskClient, name: str) -> None:
    assert client.get(f"/docs/{name}").status_code == 404


def test_a_route_that_says_nothing_is_complained_about(make_app: Callable[..., Flask]) -> None:
    router = Blueprint("bare", __name__)

    @router.get("/bare/<thing>")
    @policy(Level.OPEN, ERROR)
    def bare(thing: str) -> str:
        return thing

    app = make_app()
    app.register_blueprint(router)
    app.extensions["larder_policies"]["bare.bare"] = Level.OPEN

    found = "\n".join(openapi.complaints(app))

    assert "GET /bare/<thing> (unit.app.test_openapi)" in found.replace("tests.", "")
    for words in ("the view has no docstring", "no answer is declared", "@in_path names [], the path has ['thing']"):
        assert words in found


class Inner(TypedDict):
    """What is inside."""

    name: Annotated[str, "a name"]
    size: NotRequired[int]


class Outer(TypedDict):
    inner: list[Inner]
    kind: Literal["a", "b"]
    at: float | None


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (str, {"type": "string"}),
        (float | None, {"type": ["number", "null"]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Literal["x", None], {"enum": ["x", None]}),
        (Annotated[int, "words", {"minimum": 0}], {"type": "integer", "description": "words", "minimum": 0}),
        (list[str] | str, {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
        (bytes, {"type": "string", "format": "binary"}),
        (
            {"a": int, ...: Any},
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": {},
            },
        ),
    ],
)
def test_types_become_json_schema(kind: Any, schema: dict[str, Any]) -> None:
    assert Components().schema_of(kind) == schema


def test_typed_dicts_become_components() -> None:
    components = Components()

    assert components.schema_of(Outer) == {"$ref": "#/components/schemas/Outer"}
    assert components.schemas["Inner"] == {
        "type": "object",
        "properties": {"name": {"type": "string", "description": "a name"}, "size": {"type": "integer"}},
        "required": ["name"],
        "description": "What is inside.",
    }
    assert components.schemas["Outer"]["properties"]["inner"]["items"] == {"$ref": "#/components/schemas/Inner"}


def test_two_types_of_one_name_and_types_without_a_schema_are_refused() -> None:
    components = Components()
    components.schema_of(Inner)

    with pytest.raises(ValueError, match="both describe a Inner"):
        components.schema_of(TypedDict("Inner", {"other": int}))
    with pytest.raises(TypeError, match="no JSON schema is known"):
        components.schema_of(object())


def test_decorators_add_up_in_the_order_of_reading() -> None:
    @in_path(thing=("a", "A thing."))
    @answers(200, {"first": int}, example={"first": 1})
    @answers(200, {"second": int}, example={"second": 2})
    @refuses(400, "one", "two")
    def view() -> None:
        """Words."""

    said = openapi.declaration_of(view)

    assert [answer.example for answer in said.answers] == [{"first": 1}, {"second": 2}, "one", "two"]
    assert said.path == {"thing": ("a", "A thing.")}
    with pytest.raises(ValueError, match="name a reason for 404"):
        refuses(404)
