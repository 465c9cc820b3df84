"""GET /version, /lmc_version, /commit_id: bare JSON strings."""

from flask import Blueprint, Response, jsonify

from app.declarations import answers
from app.policy import ERROR, Level, policy
from contract.version import VERSION, commit_id

router = Blueprint("version", __name__)


@router.get("/version")
@policy(Level.OPEN, ERROR)
@answers(200, str, example="0.1.0-7d853c892")
def version() -> Response:
    """Version and commit in one text. NA stands for what is unknown."""
    return jsonify(f"{VERSION or 'NA'}-{commit_id() or 'NA'}")


@router.get("/lmc_version")
@policy(Level.OPEN, ERROR)
@answers(200, str, example="0.1.0")
def lmc_version() -> Response:
    """The version alone. Empty when unknown."""
    return jsonify(VERSION)


@router.get("/commit_id")
@policy(Level.OPEN, ERROR)
@answers(200, str, example="7d853c892")
def commit() -> Response:
    """The commit alone. Empty when unknown."""
    return jsonify(commit_id())
