"""GET /env: the environment of the process that answers, with its secrets masked."""

import json
import os

from flask import Blueprint, Response

from app.declarations import PLAIN, answers
from app.errors import plain_text
from app.policy import TEXT, Level, policy
from contract.masking import mask_environment

router = Blueprint("env", __name__)


@router.get("/env")
@policy(Level.ADMIN, TEXT)
@answers(200, str, example='{\n  "HOME": "/root",\n  "LARDER_ADMIN_TOKEN": "***"\n}', content=PLAIN)
def env() -> Response:
    """The environment of the process that answers, secrets masked. Every variable by name, as JSON indented by two."""
    return plain_text(json.dumps(mask_environment(os.environ), indent=2, sort_keys=True, ensure_ascii=False))
