"""Part 2 of the page: the internal API server in the process of a cache client, which knows of itself alone."""

import re

from tests.http_page import part1_cases
from tests.http_page.exchange import PROMETHEUS, TEXT, Case
from tests.http_page.forms import NOT_FOUND, SUCCESS, fault
from tests.http_page.part2_cases import CONTROLLER, MUTABLE, UNKNOWN, as_text, shown

LAYER = {"shape": [2, 8, 4, 2, 8], "dtype": "torch.float32", "device": "cpu"}
FAILED = re.compile("Failed to set config value.*")
NOT_SUPPORTED = "{} API is not supported"


def alone(request: str, route: str) -> Case:
    """Only the engine can do it."""
    return shown(request, 501, fault(NOT_SUPPORTED.format(route)))


FLOWS = {
    "common": [
        *part1_cases.READS["versions"], *part1_cases.READS["environment"],
        Case("GET /metrics", 200, answers=PROMETHEUS), Case("POST /metrics/reset", 200, "ok", answers=TEXT),
        Case("GET /threads?name=nobody", 200, answers=TEXT), Case("GET /loglevel", 200, answers=TEXT),
        Case("GET /loglevel?logger_name=page&level=ERROR", 200, "Set page level to ERROR (including all handlers)",
             answers=TEXT),
        Case("GET /loglevel?logger_name=page", 200, "page: ERROR", answers=TEXT),
        Case("GET /loglevel?logger_name=page&level=NOTSET", 200, answers=TEXT),
        Case("GET /loglevel?level=ERROR", 200, None),
        Case("GET /periodic-threads-health", 200, {"healthy": True, "unhealthy_count": 0, "unhealthy_threads": []}),
        Case("GET /periodic-threads/nobody", 404, {"error": "Thread not found: nobody"}),
        Case("GET /", 404, NOT_FOUND), Case("GET /healthcheck", 404, NOT_FOUND),
        Case("POST /run_script", 400, "No script file provided", answers=TEXT),
        Case("POST /run_script", 501, re.compile("this process has a cache client.*"), answers=TEXT,
             send=part1_cases.script("x"), content_type=part1_cases.SCRIPT_FORM),
    ],
    "settings": [
        as_text("GET /conf", "url", "model_name", "timeout_s"),
        shown("POST /conf", 200, {"updated": {"timeout_s": 6.0}, "errors": {"url": MUTABLE, "no": UNKNOWN}},
              {"timeout_s": 6, "url": "x", "no": 1}),
        Case("GET /conf?names=timeout_s", 200, '{\n  "timeout_s": 6.0\n}', answers=TEXT),
        shown("POST /conf", 400, {"updated": {}, "errors": {"timeout_s": FAILED}}, {"timeout_s": 0}),
        shown("POST /conf", 400, {"error": "Request body must be a JSON object"}, []),
        shown("POST /conf", 400, fault("Invalid JSON body"), b"{"),
    ],
    "what it knows": [
        Case("GET /meta?names=model_name,worker_id,role", 200,
             '{\n  "model_name": "model",\n  "worker_id": 0,\n  "role": "worker"\n}', answers=TEXT),
        shown("GET /inference_info", 200, {"num_layers": 2, "layers": {"layer_0": LAYER, "layer_1": LAYER}}),
        shown("GET /inference_version", 200, {"vllm_version": None}),
        shown("GET /lookup/info", 200, {"client": "LarderClient", "server": "None"}),
        shown("GET /cache/kvcache/info", 200,
              {**SUCCESS, "num_layers": 2, "layers": {"layer_0": LAYER, "layer_1": LAYER}}),
        *CONTROLLER["controller"],
    ],
    "what the engine alone can do": [
        alone("GET /backends", "backends"), alone("GET /bypass/list", "bypass"),
        *[alone(f"PUT /bypass/{verb}?backend_name=x", "bypass") for verb in ("add", "remove")],
        *[alone(f"PUT /{route}/{verb}", route) for route in ("freeze", "hot_cache") for verb in ("enable", "disable")],
        *[alone(f"GET /{route}/status", route) for route in ("freeze", "hot_cache", "chunk_statistics")],
        alone("POST /backends", "backends"), alone("DELETE /backends/x", "backends"),
        alone("POST /backends/x/recreate", "backends"), alone("DELETE /cache/clear", "cache/clear"),
        *[alone(f"POST /cache/{verb}?tokens_mock=0,16", f"cache/{verb}") for verb in ("store", "retrieve")],
        alone("GET /cache/kvcache/check?slot_mapping=1", "cache/kvcache/check"),
        alone("POST /cache/kvcache/record_slot?enabled=true", "cache/kvcache/record_slot"),
        *[
            shown(f"POST /chunk_statistics/{step}", 400, fault("chunk_statistics API refused the request"))
            for step in ("start", "stop", "reset")
        ],
    ],
}  # fmt: skip

#: Before anything is registered. The first of them is audited, which starts the server's thread for that.
EMPTY = [
    Case("POST /metrics/reset", 200, "ok", answers=TEXT),
    shown("GET /inference_info", 200, {}),
    shown("GET /cache/kvcache/info", 404, fault("cache/kvcache/info API found nothing")),
]
