"""The HTTP side: parses, asks, shapes. Decides nothing about the cache and holds nothing between requests.

create_app puts together, in the order in which a request meets them: metrics, access, the routes of the chosen
categories, and the error bodies. Importing it brings neither torch nor the engine.
"""

import json
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, request
from flask.json.provider import JSONProvider
from werkzeug.exceptions import NotFound

from app import audit, autoload, baseline, errors, loops, metrics
from app.access import Gate
from app.backend import EXTENSION, Backend
from app.config import AppConfig
from app.policy import Policy, collect_policies
from contract.log_levels import APPLIED

CONFIG = "larder_config"
REGISTRY = "larder_registry"
FOLLOW_INTERVAL_S = 1.0


def create_app(config: AppConfig, backend: Backend, categories: tuple[str, ...]) -> Flask:
    """The WSGI application with the routes of `categories` (folders of app/api), answering from `backend`."""
    app = PlainFlask("larder", static_folder=None)
    app.json = CompactJson(app)
    app.config["MAX_CONTENT_LENGTH"] = config.max_body_bytes
    # `//status` is no route: a redirect would answer before access is decided.
    app.url_map.merge_slashes = False
    app.extensions[EXTENSION] = backend
    app.extensions[CONFIG] = config
    registry = app.extensions[REGISTRY] = metrics.install(app, multiprocess=config.multiprocess_metrics)
    app.extensions[loops.EXTENSION] = []
    app.extensions[baseline.EXTENSION] = baseline.Baselines()
    autoload.load_blueprints(app, categories)
    metrics.expect_routes(app, registry)
    policies = app.extensions[errors.POLICIES] = collect_policies(app)
    _guard(app, Gate(config.admin_token, config.read_token), policies)
    app.extensions[audit.EXTENSION] = audit.install(app, backend.write_audit, registry)
    errors.install(app)
    return app


def start_loops(app: Flask) -> None:
    """Starts what the app does beside requests; after the fork. close_app ends it."""
    backend: Backend = app.extensions[EXTENSION]
    baselines: baseline.Baselines = app.extensions[baseline.EXTENSION]

    def follow() -> None:
        """What was set through another worker counts in this one, also if Redis is away when it is needed."""
        APPLIED.sync(backend.log_levels)
        lost = baselines.follow(backend.metrics_baselines)
        if lost:
            backend.write_metrics_baselines(lost)

    follower = loops.WebLoop("web-follower", "low", FOLLOW_INTERVAL_S, follow)
    app.extensions[loops.EXTENSION].append(follower)
    follower.start()


def close_app(app: Flask) -> None:
    """Ends what the app started: its loops, the last audit notes, the backend. Answer nothing after it."""
    for loop in app.extensions[loops.EXTENSION]:
        loop.stop()
    app.extensions[audit.EXTENSION].close()
    app.extensions[EXTENSION].close()


def _guard(app: Flask, gate: Gate, policies: dict[str, Policy]) -> None:
    @app.before_request
    def admit() -> None:
        # Werkzeug drops leading slashes; a proxy that guards `/env` may let `//env` pass.
        if request.environ["PATH_INFO"].startswith("//"):
            request.url_rule = None
            raise NotFound
        route_policy = policies.get(request.endpoint or "")
        if route_policy is not None:
            g.larder_level = route_policy.level_for(request)
            g.larder_caller = gate.admit(g.larder_level, request.environ)


class PlainFlask(Flask):
    """Flask without coroutine views: it need not look at each function of each request whether it is one."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


class CompactJson(JSONProvider):
    """JSON replies without spaces, in UTF-8, keys in the order in which the view wrote them."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return json.dumps(obj, ensure_ascii=False, separators=(",", ":"), **kwargs)

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return json.loads(s, **kwargs)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        text = self.dumps(self._prepare_response_obj(args, kwargs))
        # A half of a surrogate pair, which UTF-8 cannot spell, becomes \ud800: that is JSON too.
        return Response(text.encode(errors="backslashreplace"), mimetype="application/json")
