"""/cache/clear, /cache/store and /cache/retrieve: objects by hand. And what other engines load from files of theirs."""

import re
from typing import Literal

from flask import Blueprint, Response, request
from marshmallow import fields

from app.backend import current_backend
from app.declarations import answers, refuses
from app.errors import RouteError
from app.inspection import asks_the_engine, fact, shape_of, shown
from app.policy import Level, policy
from app.request_schema import LarderSchema, Text, takes_query
from contract.commands import ClearCache, MoveMockTokens
from contract.process_facts import STEERING

router = Blueprint("vllm_objects", __name__)

CLEAR = shape_of("cache/clear")
STORE = shape_of("cache/store")
RETRIEVE = shape_of("cache/retrieve")
LOAD = shape_of("cache/load-fs-chunks")
L1_NAME = "LocalCPUBackend"
NOT_LOADED = "files of other engines have another form; an fs adapter's objects are loaded by POST /l2/prefetch"
NO_RANGE = "tokens_mock is required: two numbers, start,end"
_RANGE = re.compile(r"\s*([0-9]{1,10})\s*,\s*([0-9]{1,10})\s*", re.ASCII)


class MockQuery(LarderSchema):
    tokens_mock: fields.Field = Text(
        load_default="",
        metadata={
            "description": "Needed: `start,end`, the tokens from `start` to before `end`.",
            "examples": ["0,512"],
        },
    )


@router.delete("/cache/clear")
@policy(Level.ADMIN, CLEAR)
@answers(200, {"status": Literal["success"], "num_removed": int}, example={"status": "success", "num_removed": 118})
@refuses(400, "unknown location 's3'")
@asks_the_engine
def clear() -> Response:
    """Empties L1, also of what is in use. `locations`, which may be repeated, can name nothing else."""
    others = [name for name in request.args.getlist("locations") if name != L1_NAME]
    if others:
        adapters = [label for label in fact(STEERING)["backends"] if label != L1_NAME]
        # Elsewhere an adapter may also be named by its type alone, the `fs` of `0-fs`.
        if others[0] in {*adapters, *(label.partition("-")[2] for label in adapters)}:
            raise RouteError(
                400, f"{others[0]} is an L2 adapter, which is not cleared at once; DELETE /l2 deletes keys"
            )
        raise RouteError(400, f"unknown location {others[0][:80]!r}")
    reply = current_backend().call(ClearCache(force=True))
    return shown({"status": "success", "num_removed": reply["removed"] + reply["doomed"]})


refuses_range = refuses(400, NO_RANGE, "tokens 512,0: from 0 to 4294967296, start before end, 1000000 at most")
refuses_without_worker = refuses(404, "no KV caches are registered")


@router.post("/cache/store")
@policy(Level.ADMIN, STORE)
@takes_query(MockQuery)
@answers(200, {"status": Literal["success"], "num_tokens": int}, example={"status": "success", "num_tokens": 512})
@refuses_range
@refuses_without_worker
@asks_the_engine
def store(tokens_mock: str) -> Response:
    """Stores made-up tokens, for trying out. Their whole chunks are copied out of the KV memory of the worker that
    registered first, blocks from 1 on, whatever is in them."""
    return _move("store", tokens_mock)


@router.post("/cache/retrieve")
@policy(Level.ADMIN, RETRIEVE)
@takes_query(MockQuery)
@answers(
    200,
    {"status": Literal["success"], "num_tokens": int, "num_retrieved": int},
    example={"status": "success", "num_tokens": 512, "num_retrieved": 512},
)
@refuses_range
@refuses_without_worker
@asks_the_engine
def retrieve(tokens_mock: str) -> Response:
    """Looks made-up tokens up, for trying out. What L2 has of them is loaded into L1; nobody's KV memory is written."""
    return _move("retrieve", tokens_mock)


def _move(verb: str, tokens_mock: str) -> Response:
    found = _RANGE.fullmatch(tokens_mock)
    if found is None:
        raise RouteError(400, NO_RANGE)
    reply = current_backend().call(MoveMockTokens(verb, int(found[1]), int(found[2])))
    return shown({"status": "success", **reply})


@router.post("/cache/load-fs-chunks")
@policy(Level.ADMIN, LOAD)
@refuses(501, NOT_LOADED)
def load_files() -> Response:
    """Not supported."""
    raise RouteError(501, NOT_LOADED)
