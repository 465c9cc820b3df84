"""What each route answers while something that it needs is not there; see sites.py for what is."""

import re
from typing import Any

from tests.http_page import l2_cases, part1_cases
from tests.http_page.exchange import PROMETHEUS, TEXT, Case
from tests.http_page.forms import LOOPS, NOT_FOUND, SUCCESS, WORDS, fault, problem, unavailable
from tests.http_page.l2_cases import DETAIL, JOB, KEY, NO_SIZE, NONE_OF, NOOP, result
from tests.http_page.part2_cases import shown

NO_ADAPTER = {"detail": "no L2 adapter configured"}
NO_CHECKSUM = "checksum not supported for this engine type"
OFF = re.compile("run_script is switched off.*--run-script-api-enabled.*")

#: An engine without L2 that takes engine-driven clients alone, and scripts switched off.
BARE = {
    "no adapters": [
        Case("GET /l2/adapters", 200, {"adapters": []}),
        Case("GET /config/adapters", 200, {"adapters": []}),
        Case("DELETE /l2", 503, NO_ADAPTER, send={"keys": [KEY]}),
        Case("DELETE /l2?adapter=fs", 503, NO_ADAPTER, send={"keys": []}),
        Case("DELETE /l2", 422, problem("body", "keys", 0, "kv_rank"), send={"keys": [{**KEY, "kv_rank": "x"}]}),
        Case("DELETE /l2", 400, DETAIL, send={"keys": [{**KEY, "model_name": "@"}]}),
        Case("GET /l2/keys?adapter=fs&page_token=x", 503, NO_ADAPTER),
        Case("GET /l2/keys?page_size=0", 422, problem("query", "page_size")),
        *[Case(f"{method} /l2/scrub", 503, NO_ADAPTER) for method in ("GET", "POST", "DELETE")],
        *[
            Case("DELETE /cache/objects", 503, NO_ADAPTER, send={"keys": [KEY], "tier": tier})
            for tier in ("l2", "all")
        ],
        Case("DELETE /cache/objects", 200, {"deleted": 0, "skipped": 0, "ok": True},
             send={"keys": [KEY], "tier": "l1"}),
        Case("GET /cache/objects", 503, NO_ADAPTER),
    ],
    "no backends": [
        Case("GET /reconfigure/backends", 200, {"enabled": False, "num_backends": 0, "backends": []}),
        *[
            case
            for l2 in ("", "l2/")
            for case in (
                Case(f"GET /reconfigure/dax/{l2}status", 200, {**NONE_OF, "backend": "dax"}),
                Case(f"POST /reconfigure/dax/{l2}add", 404, {"error": "dax adapter not found"},
                     send={"device_path": "/x", "size": "1 GiB"}),
                Case(f"POST /reconfigure/dax/{l2}add", 400, NO_SIZE, send={"device_path": "/x", "size": "1 GB2"}),
                Case(f"POST /reconfigure/dax/{l2}status", 400,
                     {"error": "unsupported dax reconfigure operation: status"}, send={}),
                Case(f"POST /reconfigure/Nope/{l2}x", 404, {"error": "nope adapter not found"}, send={"any": 1}),
            )
        ],
    ],
    "no checksums": [
        Case("GET /kvcache/check?block_ids=[&instance_id=1", 501, {"error": NO_CHECKSUM}),
        Case("POST /cache/checksums", 501, {"detail": NO_CHECKSUM}, send={"block_ids": [0], "chunk_size": 1}),
    ],
    "no scripts": [
        Case("POST /run_script", 404, OFF, answers=TEXT),
        Case("POST /run_script", 404, OFF, send=part1_cases.script("x"), content_type=part1_cases.SCRIPT_FORM,
             answers=TEXT),
    ],
}  # fmt: skip

#: A storage with more objects than are listed.
TOO_MANY = [
    Case("GET /l2/keys", 501, DETAIL),
    Case("GET /l2/keys?page_token=x", 400, DETAIL),
    Case("GET /cache/objects", 503, DETAIL),
]

#: The bare server, with a registered client of the model `page/bare`.
PREFETCH_WITHOUT_L2 = [
    Case("POST /l2/prefetch", 202, {"request_id": JOB, "chunks": 2, "status": "submitted"}, keep={"job": "request_id"},
         send={"model_name": "page/bare", "world_size": 1, "token_ids": [1] * 512}),
    Case("GET /l2/prefetch/<job>?wait=20", 200, result(0, 2)),
    Case("POST /cache/prefetches", 202, {"request_id": JOB, "chunks": 1, "status": "submitted"},
         keep={"job": "request_id"}, send={"model_name": "page/bare", "world_size": 1, "token_ids": [1] * 256}),
    Case("GET /cache/prefetches/<job>?wait=20", 200, {"request_id": "<job>", **result(0, 1)}),
    Case("POST /l2/prefetch", 202, NOOP, send={"model_name": "page/bare", "world_size": 1, "token_ids": [1]}),
]  # fmt: skip

#: Its own server.
BARE_OWN = {
    "no memory": [
        shown("GET /cache/kvcache/info", 404, fault("cache/kvcache/info API found nothing")),
        shown("GET /cache/kvcache/check?slot_mapping=1", 404, fault("cache/kvcache/check API found nothing")),
        shown("GET /cache/kvcache/check?slot_mapping=x", 400, fault("cache/kvcache/check API refused the request")),
        *[
            shown(f"POST /cache/{verb}?tokens_mock=0,16", 404, fault(f"cache/{verb} API found nothing"))
            for verb in ("store", "retrieve")
        ],
        shown("GET /inference_info", 200, {}),
    ],
    "no second tier": [
        shown("GET /backends", 200, {"LocalCPUBackend": "L1Cache"}),
        shown("GET /bypass/list", 200, {**SUCCESS, "bypassed_backends": [], "all_backends": ["LocalCPUBackend"]}),
        shown("PUT /hot_cache/disable", 400, fault("hot_cache API refused the request")),
        shown("PUT /hot_cache/enable", 200, {**SUCCESS, "hot_cache": True, "message": WORDS}),
    ],
    "scripts off": [Case("POST /run_script", 404, OFF, answers=TEXT)],
}


def reads_that_need_nobody() -> list[Case]:
    """What answers without engine and Redis."""
    return [
        Case("GET /", 200, {"status": "ok", "service": "LMCache HTTP API"}),
        Case("GET /metrics", 200, answers=PROMETHEUS),
        Case("GET /loglevel?logger_name=app", 200, "app: INFO", answers=TEXT),
        Case("GET /loglevel", 200, answers=TEXT),
        Case("GET /loglevel?level=DEBUG", 200, None),
        Case("GET /loglevel?logger_name=app&level=LOUD", 400, "Invalid log level: LOUD", answers=TEXT),
        Case("GET /threads", 200, answers=TEXT),
        Case("GET /threads?thread_id=x", 422, problem("query", "thread_id")),
        Case("GET /periodic-threads", 200, LOOPS),
        Case("GET /periodic-threads/nobody", 404, {"error": "Thread not found: nobody"}),
        Case("GET /periodic-threads?level=x", 400, {"error": "Invalid level: x"}),
        Case("GET /periodic-threads-health", 200,
             {"healthy": False, "unhealthy_count": int, "unhealthy_threads": [part1_cases.SICK, ...]}),
        *part1_cases.READS["versions"], *part1_cases.READS["environment"],
    ]  # fmt: skip


def needs_the_engine(words: Any, newer_words: Any, conf_words: Any) -> list[Case]:
    """The routes of parts 1 and 3 that ask the engine, and what they say instead: `words`, `newer_words` where the
    newer routes differ, `conf_words` where the configuration is asked for."""
    device = {"device_path": "/x", "size": 1}
    prompt = {"model_name": "m", "world_size": 1, "token_ids": [1]}
    sums = {"block_ids": [0], "chunk_size": 1}
    job = "0" * 32
    rows: list[tuple[str, str, Any]] = [
        ("GET /status", "error", None), ("GET /kvcache/check?block_ids=0&chunk_size=1", "error", None),
        ("GET /kvcache/check?block_ids=[", "error", None), ("GET /quota", "error", None),
        ("GET /quota/alice", "error", None), ("PUT /quota/alice", "error", {"limit_gb": 1}),
        ("PUT /quota/alice", "error", b"{"), ("DELETE /quota/alice", "error", None),
        ("GET /reconfigure/backends", "error", None), ("GET /reconfigure/dax/status", "error", None),
        ("GET /reconfigure/%20/status", "error", None), ("POST /reconfigure/%20/x", "error", {}),
        ("POST /reconfigure/dax/add", "error", device), ("POST /reconfigure/dax/add", "error", {"more": 1}),
        ("GET /reconfigure/dax/l2/status", "error", None), ("POST /reconfigure/dax/l2/add", "error", device),
        ("GET /reconfigure/dax/l1/status", "error", None), ("POST /reconfigure/dax/l1/add", "error", device),
        ("POST /reconfigure/dax/l1/remove", "error", {"device_path": "/x"}),
        ("GET /l2/adapters", "detail", None), ("DELETE /l2", "detail", {"keys": []}),
        ("GET /l2/keys", "detail", None), ("GET /l2/keys?adapter=x&page_token=x", "detail", None),
        ("POST /l2/prefetch", "detail", prompt), (f"GET /l2/prefetch/{job}", "detail", None),
        ("GET /l2/prefetch/x", "detail", None), (f"DELETE /l2/prefetch/{job}", "detail", None),
        *[(f"{method} /l2/scrub", "detail", None) for method in ("GET", "POST", "DELETE")],
    ]  # fmt: skip
    newer = [
        ("GET /config/adapters", None), ("POST /cache/clear", None), ("POST /cache/checksums", sums),
        ("DELETE /cache/objects", {"keys": [KEY], "tier": "all"}),
        ("DELETE /cache/objects", {"keys": [], "tier": "l1"}),
        ("GET /cache/objects", None), ("POST /cache/prefetches", prompt), (f"GET /cache/prefetches/{job}", None),
    ]  # fmt: skip

    def asked(request: str, body: Any, send: Any) -> Case:
        return Case(request, 503, body) if send is None else Case(request, 503, body, send=send)

    return [
        Case("GET /healthcheck", 503, {"status": "unhealthy", "reason": "engine not initialized"}),
        Case("POST /clear-cache", 503, {"status": "error", "reason": words}),
        Case("GET /conf", 503, {"error": conf_words}),
        Case("GET /config", 503, {"error": conf_words}),
        *[asked(request, {field: words}, send) for request, field, send in rows],
        *[asked(request, {"detail": newer_words}, send) for request, send in newer],
    ]


#: What is judged before the engine is asked for.
JUDGED_BEFORE = [
    Case("GET /kvcache/check?chunk_size=x", 422, problem("query", "chunk_size")),
    Case("DELETE /l2", 422, problem("body")),
    Case("DELETE /l2", 400, DETAIL, send={"keys": [{**KEY, "model_name": "@"}]}),
    Case("DELETE /l2", 400, DETAIL, send={"keys": [KEY] * 10_001}),
    Case("GET /l2/keys?page_size=0", 422, problem("query", "page_size")),
    Case("POST /l2/prefetch", 422, problem("body")),
    Case("POST /l2/prefetch", 400, DETAIL, send={**l2_cases.PROMPT, "token_ids": [1] * 1_000_001}),
    Case("GET /l2/prefetch/x?wait=x", 422, problem("query", "wait")),
    Case("POST /reconfigure/dax/add", 422, problem("body")),
    Case("POST /reconfigure/dax/l1/add", 422, problem("device_path"), send={"size": 1}),
    Case("POST /cache/clear", 422, problem("body", "tier"), send={"tier": "x"}),
    Case("POST /cache/clear", 400, DETAIL, send={"tier": "l2"}),
    Case("POST /cache/checksums", 422, problem("body", "chunk_size"), send={"chunk_size": "x"}),
    Case("DELETE /cache/objects", 422, problem("body", "keys"), send={}),
    Case("GET /cache/objects?tier=l1", 400, DETAIL),
    Case("PUT /quota/a%2Fb", 404, NOT_FOUND, send={"limit_gb": 1}),
]
ENGINELESS = {
    "needs nobody": reads_that_need_nobody(),
    "needs the engine": needs_the_engine("engine not initialized", "server not initialized", "configs not initialized"),
    "judged before": JUDGED_BEFORE,
    "Redis alone is enough": [
        Case("GET /jobs/prefetch", 200, {"jobs": []}),
        Case("POST /metrics/reset", 200, "ok", answers=TEXT),
        Case("GET /loglevel?logger_name=app.page&level=ERROR", 200,
             "Set app.page level to ERROR (including all handlers)", answers=TEXT),
        Case("POST /run_script", 404, OFF, answers=TEXT),
    ],
}  # fmt: skip

REDIS_AWAY = re.compile("Redis does not answer: .+")
LONELY = {
    "needs nobody": reads_that_need_nobody(),
    "needs Redis": needs_the_engine(REDIS_AWAY, REDIS_AWAY, REDIS_AWAY),
    "judged before": JUDGED_BEFORE,
    "needs Redis alone": [
        Case("GET /jobs/prefetch", 503, {"detail": REDIS_AWAY}),
        Case("POST /metrics/reset", 503, REDIS_AWAY, answers=TEXT),
        Case("GET /loglevel?logger_name=app&level=INFO", 503, REDIS_AWAY, answers=TEXT),
        Case("POST /run_script", 503, REDIS_AWAY, send=part1_cases.script("x"), content_type=part1_cases.SCRIPT_FORM,
             answers=TEXT),
        Case("POST /run_script", 400, "No script file provided", answers=TEXT),
    ],
}  # fmt: skip


def waits(request: str, route: str, send: Any = None) -> Case:
    return shown(request, 503, unavailable(route), send)


_CHECK, _RECORD = "cache/kvcache/check", "cache/kvcache/record_slot"
#: The own server of an engine that waits for Redis and has adapters.
WAITING = {
    "needs a ready engine": [
        waits("POST /conf", "conf", {"eviction_ratio": 0.5}), waits("GET /meta", "meta"),
        waits("GET /inference_info", "inference_info"), waits("GET /inference_version", "inference_version"),
        waits("GET /backends", "backends"), waits("POST /backends", "backends"),
        waits("DELETE /backends/x", "backends"), waits("POST /backends/x/recreate", "backends"),
        *[waits(f"POST /cache/{verb}?tokens_mock=0,16", f"cache/{verb}") for verb in ("store", "retrieve")],
        waits("GET /bypass/list", "bypass"),
        *[waits(f"PUT /bypass/{verb}?backend_name=x", "bypass") for verb in ("add", "remove")],
        *[waits(f"PUT /{route}/{verb}", route) for route in ("freeze", "hot_cache") for verb in ("enable", "disable")],
        *[waits(f"GET /{route}/status", route) for route in ("freeze", "hot_cache", "chunk_statistics")],
        *[waits(f"POST /chunk_statistics/{verb}", "chunk_statistics") for verb in ("start", "stop", "reset")],
        waits("DELETE /cache/clear", "cache/clear"), waits(f"GET /{_CHECK}?slot_mapping=1", _CHECK),
        waits(f"POST /{_RECORD}?enabled=true", _RECORD), waits("GET /lookup/info", "lookup"),
    ],
    "judged before": [
        shown("POST /conf", 400, fault("Invalid JSON body"), b"{"),
        shown("PUT /bypass/add", 400, fault("bypass API refused the request")),
        shown(f"GET /{_CHECK}", 400, fault(f"{_CHECK} API refused the request")),
        shown(f"POST /{_RECORD}", 400, fault(f"{_RECORD} API refused the request")),
        shown("GET /cache/kvcache/info", 404, fault("cache/kvcache/info API found nothing")),
    ],
    "shows itself": [
        Case("GET /conf?names=chunk_size", 200, '{\n  "chunk_size": 256\n}', answers=TEXT),
        Case("GET /threads", 200, answers=TEXT), Case("GET /env", 200, answers=TEXT),
        Case("GET /metrics", 200, answers=PROMETHEUS), Case("GET /periodic-threads", 200, LOOPS),
        Case("GET /loglevel?logger_name=engine", 200, "engine: INFO", answers=TEXT),
        Case("GET /loglevel?logger_name=engine&level=INFO", 200,
             re.compile(r"Set engine level to INFO \(including all handlers\) in this process alone; .*"),
             answers=TEXT),
        Case("POST /metrics/reset", 200, re.compile("ok in this process alone; .*"), answers=TEXT),
        Case("GET /controller/workers", 503, {"detail": "Controller manager not available"}),
        *part1_cases.READS["versions"],
    ],
    "no engine for scripts": [
        Case("POST /run_script", 503, "engine not initialized", send=part1_cases.script("x"),
             content_type=part1_cases.SCRIPT_FORM, answers=TEXT),
    ],
}  # fmt: skip
