"""GET /env: the environment of the process that answers, with its secrets masked."""

import json
import os

from flask import Blueprint, Response

from app.errors import plain_text
from app.policy import TEXT, Level, policy
from contract.masking import mask_environment

router = Blueprint("env", __name__)


@router.get("/env")
@policy(Level.ADMIN, TEXT)
def env() -> Response:
    """Every variable by name, as JSON indented by two."""
    return plain_text(json.dumps(mask_environment(os.environ), indent=2, sort_keys=True, ensure_ascii=False))
