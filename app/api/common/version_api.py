"""GET /version, /lmc_version, /commit_id: bare JSON strings."""

from flask import Blueprint, Response, jsonify

from app.policy import ERROR, Level, policy
from contract.version import VERSION, commit_id

router = Blueprint("version", __name__)


@router.get("/version")
@policy(Level.OPEN, ERROR)
def version() -> Response:
    """Version and commit in one text; NA for what is unknown."""
    return jsonify(f"{VERSION or 'NA'}-{commit_id() or 'NA'}")


@router.get("/lmc_version")
@policy(Level.OPEN, ERROR)
def lmc_version() -> Response:
    """The version alone."""
    return jsonify(VERSION)


@router.get("/commit_id")
@policy(Level.OPEN, ERROR)
def commit() -> Response:
    """The commit alone, empty when unknown."""
    return jsonify(commit_id())
