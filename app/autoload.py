"""Finds the routes: every `*_api.py` of a category folder under app/api holds a Blueprint named `router`.

Dropping such a file into a folder is all it takes. One that cannot be used stops the start, by its name.
"""

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

from flask import Blueprint, Flask

import app.api

SUFFIX = "_api"
_PARAMETER = re.compile(r"<[^>]*>")


class BrokenRoutes(Exception):
    """A file of routes that cannot be used; the message begins with its path."""


def load_blueprints(flask_app: Flask, categories: tuple[str, ...]) -> None:
    """Registers the blueprints of the categories. Raises ValueError for an unknown category, BrokenRoutes for a file
    that fails, holds no router, or wants a path and method that another file has."""
    owners: dict[tuple[str, str], str] = {}
    for category in categories:
        package = _category_package(category)
        for module_info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            if module_info.name.endswith(SUFFIX):
                file = f"{Path(package.__path__[0]) / module_info.name}.py"
                _register(flask_app, f"{package.__name__}.{module_info.name}", file)
                _claim(flask_app, owners, file)


def _register(flask_app: Flask, module_name: str, file: str) -> None:
    try:
        router = getattr(importlib.import_module(module_name), "router", None)
        if isinstance(router, Blueprint):
            flask_app.register_blueprint(router)
            return
    except Exception as error:
        raise BrokenRoutes(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    raise BrokenRoutes(f"{file} holds no Blueprint named router")


def _claim(flask_app: Flask, owners: dict[tuple[str, str], str], file: str) -> None:
    """Notes the routes that are new as the file's; the map would give a path of two files to the first of them."""
    claimed: set[tuple[str, str]] = set()
    for rule in flask_app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            route = (method, _PARAMETER.sub("<>", rule.rule))
            if route in claimed:
                raise BrokenRoutes(f"{file}: {owners.get(route, file)} has the route {method} {rule.rule} already")
            claimed.add(route)
            owners.setdefault(route, file)


def _category_package(category: str) -> ModuleType:
    known = sorted(info.name for info in pkgutil.iter_modules(app.api.__path__) if info.ispkg)
    if category not in known:
        raise ValueError(f"unknown route category {category!r}, there are {', '.join(known)}")
    return importlib.import_module(f"app.api.{category}")
