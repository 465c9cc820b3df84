"""A new endpoint is one file: dropped into a folder of routes it is served and documented, or stops the start."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import start_redis
from tests.stack import ROOT, RedisServer, WebProcess

HELLO = '''
"""GET /hello: greets whoever asks."""

from typing import Any

from flask import Blueprint
from marshmallow import fields

from app.declarations import answers, refuses
from app.errors import RouteError
from app.policy import DETAIL, Level, policy
from app.request_schema import LarderSchema, QueryInteger, takes_query

router = Blueprint("hello", __name__)


class HelloQuery(LarderSchema):
    times: fields.Field = QueryInteger(load_default=1, metadata={"description": "How often to greet."})


@router.get("/hello")
@policy(Level.READ, DETAIL)
@takes_query(HelloQuery)
@answers(200, {"greetings": list[str]}, example={"greetings": ["hello"]})
@refuses(400, "too often")
def hello(times: int) -> dict[str, Any]:
    """Greets whoever asks."""
    if times > 3:
        raise RouteError(400, "too often")
    return {"greetings": ["hello"] * times}
'''


class CopiedWeb(WebProcess):
    """gunicorn with the sources of another place."""

    def __init__(self, sources: Path, redis_url: str) -> None:
        super().__init__(sources / "larder", redis_url)
        self.cwd = sources


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_redis("redis", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def web_with(tmp_path: Path, redis: RedisServer) -> Callable[..., CopiedWeb]:
    """Makes a web tier, not started, whose sources are a copy of ours with these files added under app/api."""

    def make(**files: str) -> CopiedWeb:
        for folder in ("app", "contract"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("wsgi.py", "gunicorn.conf.py"):
            shutil.copy(ROOT / name, tmp_path / name)
        for place, text in files.items():
            category, _, name = place.partition("_")
            (tmp_path / "app" / "api" / category / f"{name}.py").write_text(text)
        return CopiedWeb(tmp_path, redis.url)

    return make


def test_a_file_in_a_folder_is_an_endpoint(web_with: Callable[..., CopiedWeb]) -> None:
    with web_with(mp_hello_api=HELLO) as web:
        assert web.http("GET", "/hello").json() == {"greetings": ["hello"]}
        assert web.http("GET", "/hello?times=2").json() == {"greetings": ["hello", "hello"]}
        refused = web.http("GET", "/hello?times=4")
        assert (refused.status, refused.json()) == (400, {"detail": "too often"})
        assert web.http("GET", "/hello?times=x").json()["detail"][0]["loc"] == ["query", "times"]
        assert web.http("GET", "/status").status == 503
        told = web.http("GET", "/openapi.json").json()["paths"]["/hello"]["get"]
        assert (told["summary"], told["parameters"][0]["name"]) == ("Greets whoever asks", "times")
        assert set(told["responses"]) == {"200", "400", "401", "422", "500"}


BROKEN = {
    "a syntax error": ("def :", "SyntaxError"),
    "a failing import": ("import a_module_that_is_not_there", "ModuleNotFoundError"),
    "a mistake": ("router = unheard_of", "NameError"),
    "no router": ('"""Nothing here."""', "holds no Blueprint named router"),
    "a route of another file": (HELLO.replace('"/hello"', '"/status"'), "has the route GET /status already"),
    "a blueprint's name of another file": (HELLO.replace('"hello", __name__', '"env", __name__'), "'env'"),
    "a view without a policy": (HELLO.replace("@policy(Level.READ, DETAIL)", ""), "decorate it with @policy"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_stops_the_start_by_its_name(web_with: Callable[..., CopiedWeb], case: str) -> None:
    text, words = BROKEN[case]
    web = web_with(mp_hello_api=text)

    with pytest.raises(AssertionError, match="before it was ready"):
        web.start()

    last_words = web.log_tail()
    assert "hello_api" in last_words.splitlines()[-1]
    assert words in last_words
