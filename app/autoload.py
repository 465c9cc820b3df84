"""Finds the routes: every `*_api.py` of a category folder under app/api holds a Blueprint named `router`."""

import importlib
import pkgutil
from types import ModuleType

from flask import Blueprint, Flask

import app.api

SUFFIX = "_api"


def load_blueprints(flask_app: Flask, categories: tuple[str, ...]) -> None:
    """Registers the blueprints of the categories. Raises ValueError: unknown category, a file without router."""
    for category in categories:
        package = _category_package(category)
        for module_info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            if not module_info.name.endswith(SUFFIX):
                continue
            module = importlib.import_module(f"{package.__name__}.{module_info.name}")
            router = getattr(module, "router", None)
            if not isinstance(router, Blueprint):
                raise ValueError(f"{module.__name__} holds no Blueprint named router")
            flask_app.register_blueprint(router)


def _category_package(category: str) -> ModuleType:
    known = sorted(info.name for info in pkgutil.iter_modules(app.api.__path__) if info.ispkg)
    if category not in known:
        raise ValueError(f"unknown route category {category!r}, there are {', '.join(known)}")
    return importlib.import_module(f"app.api.{category}")
