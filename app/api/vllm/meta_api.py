"""GET /meta, /inference_info, /inference_version: what is known of the model and of who infers with it."""

from typing import Any

from flask import Blueprint, Response

from app.api.vllm.settings_api import NamesQuery, chosen
from app.declarations import PLAIN, answers, refuses
from app.errors import plain_text
from app.inspection import fact, shape_of, shown
from app.policy import Level, policy
from app.request_schema import takes_query
from contract.process_facts import INFERENCE, META

router = Blueprint("vllm_meta", __name__)


@router.get("/meta")
@policy(Level.READ, shape_of("meta"))
@takes_query(NamesQuery)
@answers(200, str, example='{\n  "model_name": "llama-8b",\n  "worker_id": 0\n}', content=PLAIN)
@refuses(503)
def meta(names: str) -> Response:
    """What is known of the model, as indented JSON. All of it, or what is named with commas between the names."""
    return plain_text(chosen(fact(META), names))


@router.get("/inference_info")
@policy(Level.READ, shape_of("inference_info"))
@answers(200, dict[str, Any], example={})
@refuses(503)
def inference_info() -> Response:
    """What the inference side has told. An empty object when it has told nothing."""
    return shown(fact(INFERENCE))


@router.get("/inference_version")
@policy(Level.READ, shape_of("inference_version"))
@answers(200, {"vllm_version": str | None}, example={"vllm_version": None})
@refuses(503)
def inference_version() -> Response:
    """The version of vLLM in this process. Null where there is none."""
    return shown({"vllm_version": fact(META).get("vllm_version")})
