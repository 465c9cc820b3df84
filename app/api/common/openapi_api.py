"""GET /openapi.json and /docs: what this server answers, for programs and for people.

Both describe the server that serves them. The page brings its own scripts; nothing of it comes from elsewhere.
"""

import threading
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, send_from_directory

from app import openapi
from app.declarations import answers, in_path, refuses
from app.errors import RouteError
from app.policy import DETAIL, Level, policy

router = Blueprint("openapi", __name__)

PAGES = Path(__file__).parents[2] / "static" / "docs"
SWAGGER_UI = Path(__file__).parents[2] / "static" / "swagger-ui"
ASSETS = {
    "page.js": (PAGES, "text/javascript"),
    "page.css": (PAGES, "text/css"),
    "swagger-ui-bundle.js": (SWAGGER_UI, "text/javascript"),
    "swagger-ui.css": (SWAGGER_UI, "text/css"),
    "favicon-32x32.png": (SWAGGER_UI, "image/png"),
}
ASSET_MAX_AGE_S = 3600
# The page may talk to this server alone, and nobody may frame it. Swagger UI sets styles of single elements, and its
# style sheet holds its icons.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_EXTENSION = "larder_openapi"
_building = threading.Lock()


@router.get("/openapi.json")
@policy(Level.OPEN, DETAIL)
@answers(200, dict[str, Any], example={"openapi": openapi.OPENAPI, "info": {"title": "Larder"}, "paths": {}})
def document() -> Response:
    """This document."""
    return Response(_text_for(current_app), mimetype="application/json")


@router.get("/docs")
@policy(Level.OPEN, DETAIL)
@answers(200, str, example="<!doctype html>", content="text/html", headers=HEADERS)
def docs() -> Response:
    """This document as a page, from which requests can be sent."""
    return _file(PAGES, "page.html", "text/html", max_age_s=0)


@router.get("/docs/<asset>")
@policy(Level.OPEN, DETAIL)
@in_path(asset=("page.css", "A file of the page."))
@answers(200, str, example="body {}", content="text/css", headers=HEADERS)
@answers(200, str, example="'use strict'", content="text/javascript", headers=HEADERS)
@answers(200, bytes, example="", content="image/png", headers=HEADERS)
@refuses(404, "the page has no such file")
def docs_asset(asset: str) -> Response:
    """Scripts and styles of the page."""
    if asset not in ASSETS:
        raise RouteError(404, "the page has no such file")
    folder, content_type = ASSETS[asset]
    return _file(folder, asset, content_type, max_age_s=ASSET_MAX_AGE_S)


def _file(folder: Path, name: str, content_type: str, *, max_age_s: int) -> Response:
    """A whole file of ours, whatever ranges or dates a client names."""
    response = send_from_directory(folder, name, mimetype=content_type, max_age=max_age_s, conditional=False)
    response.headers.update(HEADERS)
    return response


def _text_for(flask_app: Flask) -> str:
    """The document as JSON, made by the first request of a process."""
    with _building:
        text: str | None = flask_app.extensions.get(_EXTENSION)
        if text is None:
            text = flask_app.extensions[_EXTENSION] = flask_app.json.dumps(openapi.build(flask_app))
    return text
