"""GET /meta, /inference_info, /inference_version: what is known of the model and of who infers with it."""

from flask import Blueprint, Response

from app.api.vllm.settings_api import NamesQuery, chosen
from app.errors import plain_text
from app.inspection import fact, shape_of, shown
from app.policy import Level, policy
from app.request_schema import takes_query
from contract.process_facts import INFERENCE, META

router = Blueprint("vllm_meta", __name__)


@router.get("/meta")
@policy(Level.READ, shape_of("meta"))
@takes_query(NamesQuery)
def meta(names: str) -> Response:
    """All of it, or what is named with commas between the names."""
    return plain_text(chosen(fact(META), names))


@router.get("/inference_info")
@policy(Level.READ, shape_of("inference_info"))
def inference_info() -> Response:
    """What the inference side has told; an empty object when it has told nothing."""
    return shown(fact(INFERENCE))


@router.get("/inference_version")
@policy(Level.READ, shape_of("inference_version"))
def inference_version() -> Response:
    """The version of vLLM in this process, null where there is none."""
    return shown({"vllm_version": fact(META).get("vllm_version")})
