"""The yardstick of the web tier: the smallest Flask application, one static route."""

from flask import Flask, Response

app = Flask(__name__)


@app.get("/")
def index() -> Response:
    return Response('{"status":"ok"}', mimetype="application/json")
