"""GET /config, GET /config/adapters: /conf and /l2/adapters under their newer names."""

import json
from typing import Any, Literal, TypedDict

from flask import Blueprint, Response

from app.api.mp import conf_api
from app.backend import current_backend
from app.declarations import answers, like, refuses
from app.policy import ERROR, NEWER, Level, policy
from contract.snapshots import ADAPTERS

router = Blueprint("newer_config", __name__)


class CacheAdapter(TypedDict):
    """A configured adapter; `index` 0 is the primary."""

    index: int
    type_name: str
    tier: Literal["l2"]
    primary: bool
    reconfigurable: bool


@router.get("/config")
@policy(Level.READ, ERROR)
@like(conf_api.conf)
def config() -> Response:
    """The same as `/conf`."""
    return conf_api.conf()


@router.get("/config/adapters")
@policy(Level.READ, NEWER)
@answers(
    200,
    {"adapters": list[CacheAdapter]},
    example={
        "adapters": [{"index": 0, "type_name": "dax", "tier": "l2", "primary": True, "reconfigurable": True}],
    },
)
@refuses(503)
def adapters() -> dict[str, Any]:
    """The configured adapters, in their order, and whether each can be changed at runtime."""
    published = json.loads(current_backend().read_text(ADAPTERS))
    changeable = {entry["l2_adapter_index"] for entry in published["reconfigurable"]}
    return {
        "adapters": [
            {
                "index": entry["index"],
                "type_name": entry["type_name"],
                "tier": "l2",
                "primary": entry["primary"],
                "reconfigurable": entry["index"] in changeable,
            }
            for entry in published["adapters"]
        ]
    }
