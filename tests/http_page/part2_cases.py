"""Part 2 of the page: the internal API server of an engine that is up, and what it shares with part 1.

The engine has adapters, and a registered worker of PAGE_MODEL with two layers. In each flow one request after another.
"""

import re
from typing import Any

from tests.http_page import part1_cases
from tests.http_page.exchange import TEXT, Case, OneOf
from tests.http_page.forms import MD5, NOT_ALLOWED, NOT_FOUND, SUCCESS, WORDS, fault, problem

PAGE_MODEL = "page/model"


def shown(request: str, status: int, body: Any, send: Any = None, **more: Any) -> Case:
    """A request with an indented JSON answer."""
    given = {} if send is None else {"send": send}
    return Case(request, status, body, indent=2, **given, **more)


COMMON = {f"own {name}": cases for name, cases in part1_cases.READS.items() if name in (
    "versions", "metrics", "levels of loggers", "loops", "environment", "metrics reset"
)} | {
    "own threads": part1_cases.READS["threads"],
    "own scripts": [*part1_cases.SCRIPTS["scripts"], *part1_cases.SCRIPTS["scripts that fail"]],
    "own, no script": part1_cases.SCRIPTS["no script"],
    "not here": [
        Case(f"GET {path}", 404, NOT_FOUND) for path in ("/", "/healthcheck", "/status", "/quota", "/l2/keys")
    ],
    "own wrong methods": [
        Case(request, 405, NOT_ALLOWED)
        for request in (
            "DELETE /conf", "POST /meta", "PUT /backends", "GET /bypass/add", "POST /freeze/enable",
            "PUT /freeze/status",
            "GET /cache/clear", "POST /cache/kvcache/check", "GET /chunk_statistics/start", "POST /lookup/info",
            "POST /controller/workers", "POST /inference_info",
        )
    ],
}  # fmt: skip


def refused(route: str) -> dict[str, Any]:
    """The body of a 400."""
    return fault(f"{route} API refused the request")


META = {"model_name": PAGE_MODEL, "worker_id": 0, "role": "server", "kv_shape": [2, 2, 256, 1, 4]}


def as_text(request: str, *members: str) -> Case:
    """Indented JSON that comes as text, with at least these members."""
    inside = ".*".join(re.escape(f'"{member}": ') for member in members)
    return Case(request, 200, re.compile(r"\{\n  .*" + inside + r".*\n\}", re.DOTALL), answers=TEXT)


MUTABLE, UNKNOWN = "Config is not mutable at runtime", "Unknown config"
FAILED = re.compile("Failed to set config value.*")
SETTINGS = {
    "settings": [
        as_text("GET /conf", "chunk_size", "instance_id", "log_level"),
        as_text("GET /conf?names=", "chunk_size", "instance_id"),
        Case("GET /conf?names=chunk_size,%20unknown,instance_id", 200,
             '{\n  "chunk_size": 256,\n  "instance_id": "default"\n}', answers=TEXT),
        Case("GET /conf?names=unknown", 200, "{}", answers=TEXT),
    ],
    "changed settings": [
        shown("POST /conf", 200, {"updated": {"eviction_ratio": 0.5}}, {"eviction_ratio": 0.5}),
        shown("POST /conf", 200, {"updated": {"eviction_ratio": 0.2}, "errors": {"chunk_size": MUTABLE, "no": UNKNOWN,
              "l1_read_ttl_seconds": FAILED}},
              {"chunk_size": 1, "no": 1, "eviction_ratio": 0.2, "l1_read_ttl_seconds": "x"}),
        shown("POST /conf", 200, {"updated": {"eviction_ratio": 0.2}}, b'{"eviction_ratio":0.2}',
              content_type="text/plain"),
        Case("GET /conf?names=eviction_ratio", 200, '{\n  "eviction_ratio": 0.2\n}', answers=TEXT),
        shown("POST /conf", 400, {"updated": {}, "errors": {"chunk_size": MUTABLE}}, {"chunk_size": 1}),
        shown("POST /conf", 400, {"updated": {}}, {}),
        *[shown("POST /conf", 400, fault("Invalid JSON body"), body) for body in (b"", b"{", b"\xff")],
        *[shown("POST /conf", 400, {"error": "Request body must be a JSON object"}, body)
          for body in (b"[]", b"1", b"null")],
        shown("POST /conf", 400, fault(WORDS), {f"no{number}": 1 for number in range(101)}),
    ],
    "meta": [
        as_text("GET /meta", *META),
        Case("GET /meta?names=model_name,worker_id,unknown", 200,
             '{\n  "model_name": "page/model",\n  "worker_id": 0\n}', answers=TEXT),
        shown("GET /inference_info?format=x", 200, {"registered_gpu_ids": [7], ...: ...}),
        shown("GET /inference_version", 200, {"vllm_version": None}),
        shown("GET /lookup/info", 200, {"client": "None", "server": "DataPlaneServer"}),
    ],
}  # fmt: skip

NAMES = {
    "LocalCPUBackend": "L1Cache", "0-fs": "FsAdapter", "1-dax": "DaxAdapter", "2-memory": "MemoryAdapter",
    "3-dax": "DaxAdapter", "4-redis": "RedisAdapter",
}  # fmt: skip


def bypass(verb: str, name: str, was: bool, now: list[str], query: str = "") -> Case:
    was_named = "was_already_bypassed" if verb == "add" else "was_bypassed"
    body = {
        **SUCCESS, "backend_name": name, "bypassed": verb == "add", was_named: was, "bypassed_backends": now
    }  # fmt: skip
    return shown(f"PUT /bypass/{verb}?backend_name={query or name}", 200, body)


BACKENDS = {
    "own backends": [
        shown("GET /backends", 200, NAMES),
        shown("POST /backends", 200, {**SUCCESS, "created": {}, "backends": NAMES}),
        *[
            shown(request, 404, {"status": "not_found", "message": WORDS, "backends": NAMES})
            for request in ("DELETE /backends/nope", "POST /backends/nope/recreate", "DELETE /backends/a%2Fb")
        ],
    ],
    "bypass": [
        shown("GET /bypass/list", 200, {**SUCCESS, "bypassed_backends": [], "all_backends": list(NAMES)}),
        bypass("add", "2-memory", False, ["2-memory"]),
        bypass("add", "2-memory", True, ["2-memory"], "memory"),
        shown("GET /bypass/list", 200, {**SUCCESS, "bypassed_backends": ["2-memory"], "all_backends": list(NAMES)}),
        bypass("remove", "2-memory", True, []),
        bypass("remove", "2-memory", False, [], "memory"),
        *[
            shown(f"PUT /bypass/{verb}{query}", 400, refused("bypass"))
            for verb in ("add", "remove")
            for query in ("", "?backend_name=", "?backend_name=nope", "?backend_name=LocalCPUBackend")
        ],
    ],
}


def switch(route: str, verb: str, method: str, on: bool) -> Case:
    return shown(f"{method} /{route}/{verb}", 200, {**SUCCESS, route: on, "message": WORDS})


def switched(route: str, first: str, then: str) -> list[Case]:
    """Switched one way, the other, and looked at after each."""
    steps = [(verb, verb == "enable") for verb in (first, first, then)]
    return [
        case
        for verb, on in steps
        for case in (switch(route, verb, "PUT", on), switch(route, "status", "GET", on))
    ]  # fmt: skip


SWITCHES = {
    "freeze": switched("freeze", "enable", "disable"),
    "hot cache": switched("hot_cache", "disable", "enable"),
    "record slots": [
        shown(f"POST /cache/kvcache/record_slot?enabled={word}", 200, {**SUCCESS, "kvcache_check_log_enabled": on})
        for word, on in {"true": True, "TRUE": True, "false": False}.items()
    ]
    + [
        shown(
            f"POST /cache/kvcache/record_slot{query}", 400, fault("cache/kvcache/record_slot API refused the request")
        )
        for query in ("", "?enabled=", "?enabled=1", "?enabled=yes")
    ],
}
CLEARS = {
    "own clear": [
        shown("DELETE /cache/clear", 200, {**SUCCESS, "num_removed": int}),
        shown("DELETE /cache/clear", 200, {**SUCCESS, "num_removed": 0}),
        shown("DELETE /cache/clear?locations=LocalCPUBackend&locations=LocalCPUBackend", 200,
              {**SUCCESS, "num_removed": 0}),
        *[
            shown(f"DELETE /cache/clear?locations=LocalCPUBackend&locations={name}", 400,
                  refused("cache/clear"))
            for name in ("nope", "0-fs", "")
        ],
    ]
}  # fmt: skip

STORED = {**SUCCESS, "num_tokens": 512}
MOVES = {
    "made-up tokens": [
        shown("POST /cache/retrieve?tokens_mock=70000,70512", 200, {**STORED, "num_retrieved": 0}),
        shown("POST /cache/store?tokens_mock=70000,70512", 200, STORED),
        shown("POST /cache/store?tokens_mock=%2070000%20,%2070512", 200, STORED),
        shown("POST /cache/retrieve?tokens_mock=70000,70512", 200, {**STORED, "num_retrieved": 512}),
        shown("POST /cache/retrieve?tokens_mock=70000,70600", 200,
              {**SUCCESS, "num_tokens": 600, "num_retrieved": 512}),
        shown("POST /cache/store?tokens_mock=0,1", 200, {**SUCCESS, "num_tokens": 1}),
        *[
            shown(f"POST /cache/{verb}{query}", 400, refused(f"cache/{verb}"))
            for verb in ("store", "retrieve")
            for query in (
                "", "?tokens_mock=", "?tokens_mock=1", "?tokens_mock=x,1", "?tokens_mock=1,2,3", "?tokens_mock=1.5,2",
                "?tokens_mock=-1,2", "?tokens_mock=2,1", "?tokens_mock=1,1", "?tokens_mock=0,1000001",
                "?tokens_mock=4294967296,4294967297",
            )
        ],
        shown("POST /cache/store?tokens_mock=0,768", 400, refused("cache/store")),
    ]
}  # fmt: skip


def slots(query: str, status: int, body: Any) -> Case:
    return shown(f"GET /cache/kvcache/check?{query}", status, body)


def digests(ranges: list[Any], size: int | None, sums: Any, count: int, *, layerwise: bool = False) -> dict[str, Any]:
    return {
        **SUCCESS, "slot_mapping_ranges": ranges, "chunk_size": size, "num_chunks": count, "chunk_checksums": sums,
        "layerwise": layerwise,
    }  # fmt: skip


_BY_LAYER = {"layer_0": [MD5], "layer_1": [MD5]}
_BAD_SLOTS = refused("cache/kvcache/check")
LAYER = {"shape": [2, 48, 16, 1, 4], "dtype": "torch.float16", "device": "cpu"}
SLOTS = {
    "layers": [
        shown("GET /cache/kvcache/info", 200,
              {**SUCCESS, "num_layers": 2, "layers": {"layer_0": LAYER, "layer_1": LAYER}}),
    ],
    "slots": [
        slots("slot_mapping=5,[8,11],3&chunk_size=4", 200, digests([5, [8, 11], 3], 4, [MD5] * 2, 2)),
        slots("slot_mapping=%200,%201&chunk_size=9&layerwise=yes", 200,
              digests([0, 1], 9, _BY_LAYER, 1, layerwise=True)),
        slots("slot_mapping=[1,2][3,4]", 200, digests([[1, 4]], None, [], 0)),
        *[slots(query, 400, _BAD_SLOTS) for query in (
            "", "slot_mapping=", "slot_mapping=x", "slot_mapping=[3,1]", "slot_mapping=1[2,3]", "slot_mapping=768",
            "slot_mapping=1&chunk_size=0", "slot_mapping=1&chunk_size=-1",
        )],
        Case("GET /cache/kvcache/check?slot_mapping=1&chunk_size=x", 422, problem("query", "chunk_size")),
        Case("GET /cache/kvcache/check?slot_mapping=1&layerwise=perhaps", 422, problem("query", "layerwise")),
    ],
}  # fmt: skip

COUNTED = {
    "enabled": bool, "total_requests": int, "total_chunks": int, "unique_chunks": int, "duplicate_chunks": int,
    "reuse_rate": float, "since": OneOf(float, None), "timestamp": float, "auto_exit_enabled": False,
    "auto_exit_timeout_hours": 0.0, "auto_exit_target_unique_chunks": 0,
}  # fmt: skip
STATISTICS = {
    "statistics of chunks": [
        *[
            case
            for step, word, on in (("start", "Started", True), ("stop", "Stopped", False), ("reset", "Reset", False))
            for case in (
                shown(f"POST /chunk_statistics/{step}", 200, {**SUCCESS, "message": word}),
                shown("GET /chunk_statistics/status", 200, {**COUNTED, "enabled": on}),
            )
        ]
    ]
}
CONTROLLER = {
    "controller": [
        Case(f"GET /controller/{path}", 503, {"detail": "Controller manager not available"})
        for path in ("workers", "workers?instance_id=a", "workers?instance_id=a&worker_id=1", "key-stats")
    ]
}


def unsupported(request: str, route: str) -> Case:
    return shown(request, 501, fault(f"{route} API is not supported"))


UNSUPPORTED = {
    "not supported": [
        unsupported("DELETE /backends/0-fs", "backends"),
        unsupported("POST /backends/0-fs/recreate", "backends"),
        unsupported("POST /cache/load-fs-chunks", "cache/load-fs-chunks"),
        *[unsupported(f"POST /lookup/{verb}", "lookup") for verb in ("close", "create?dryrun=true", "recreate")],
    ]
}

FLOWS = {
    **COMMON, **SETTINGS, **BACKENDS, **SWITCHES, **CLEARS, **MOVES, **SLOTS, **STATISTICS, **CONTROLLER, **UNSUPPORTED
}  # fmt: skip
