"""Part 1 of the page: a server that is up, route by route, with L2 adapters. In each flow one request after another."""

import re
from typing import Any

from tests.http_page.exchange import PROMETHEUS, TEXT, Case, OneOf
from tests.http_page.forms import (
    LOOP,
    LOOPS,
    MD5,
    NO_THREADS,
    NOT_ALLOWED,
    NOT_FOUND,
    THREADS,
    WORDS,
    problem,
)

GROUP = {
    "kernel_group_idx": int, "engine_group_idx": int, "object_group_idx": int, "num_layers": 2, "layer_indices": [0, 1],
    "tokens_per_block": 16, "slots_per_block": 16, "dtype": "torch.float16",
    "engine_kv_concrete_shape": "2 x [2, 48, 16, 1, 4]", "is_mla": False, "engine_kv_format": "NL_X_TWO_NB_BS_NH_HS",
    "engine_kv_shape": "NL x [2, NB, BS, NH, HS]", "attention_backend": str, ...: ...,
}  # fmt: skip
CONTEXT = {
    "model_name": "page/model", "world_size": 1, ...: ...,
    "kv_cache_layout": {"num_layers": 2, "num_blocks": 48, "cache_size_per_token": 32, "kernel_groups": [GROUP]},
}  # fmt: skip
ADAPTER = {"is_healthy": bool, "type": re.compile(r"[A-Z]\w+Adapter"), ...: ...}
STATUS = {
    "is_healthy": bool, "engine_type": "MPCacheServer", "chunk_size": 256, "hash_algorithm": "blake3",
    "active_sessions": int, "registered_gpu_ids": [7], "cache_context_meta": {"7": CONTEXT},
    "active_prefetch_jobs": int, "registered_non_cuda_instance_ids": [8],
    "non_cuda_context_meta": {
        "8": {"model_name": "page/other", "world_size": 1, "block_size": 16, "use_mla": False, ...: ...}
    },
    "worker_liveness": {
        "enabled": bool, "reap_timeout_seconds": float, "registration_grace_seconds": float, "tracked_instances": 2
    },
    "storage_manager": {
        "is_healthy": bool,
        "l1_manager": {
            "is_healthy": bool, "total_object_count": int, "write_locked_count": int, "read_locked_count": int,
            "temporary_count": int, "memory_used_bytes": int, "memory_total_bytes": int, "memory_usage_ratio": float,
            "write_ttl_seconds": float, "read_ttl_seconds": float, ...: ...,
        },
        "store_controller": {"is_healthy": bool, "thread_alive": bool, "num_l2_adapters": 5, ...: ...},
        "prefetch_controller": {"is_healthy": bool, "thread_alive": bool, "num_l2_adapters": 5, ...: ...},
        "l1_eviction_controller": {
            "is_healthy": bool, "thread_alive": bool, "eviction_policy": "IsolatedLRU", "trigger_watermark": float,
            "eviction_ratio": float,
        },
        "l2_adapters": [ADAPTER] * 5, "num_l2_adapters": 5, ...: ...,
    },
    ...: ...,
}  # fmt: skip
CONF = {
    "mp": {
        "http_host": "127.0.0.1", "http_port": "<http_port>", "chunk_size": 256, "hash_algorithm": "blake3", ...: ...
    },
    "storage_manager": {
        "l1_manager_config": {"memory_config": {"size_in_bytes": int, ...: ...}, ...: ...},
        "eviction_config": {"eviction_policy": "IsolatedLRU", "trigger_watermark": float, "eviction_ratio": float},
        "l2_adapter_config": {
            "adapters": [
                {"type": "fs", "base_path": "<directory>/objects"}, {"type": "dax", ...: ...},
                {"type": "memory", ...: ...}, {"type": "dax", ...: ...},
                {"type": "redis", "url": "redis://:***@127.0.0.1:1/0"},
            ]
        },
        ...: ...,
    },
    "observability": {"enabled": bool, ...: ...},
    ...: ...,
}  # fmt: skip

STATUS_CASE = Case("GET /status", 200, STATUS)
SICK = {"name": str, "level": str, "last_run_ago": OneOf(float, None), "interval": float}
READS = {
    "liveness": [
        Case("GET /", 200, {"status": "ok", "service": "LMCache HTTP API"}),
        Case("GET /healthcheck", 200, {"status": "healthy"}),
        Case("GET /healthcheck?unknown=1", 200, {"status": "healthy"}),
    ],
    "status": [STATUS_CASE],
    "conf": [Case("GET /conf", 200, CONF, indent=2)],
    "versions": [
        Case("GET /lmc_version", 200, re.compile(r"\d[\w.]*")),
        Case("GET /commit_id", 200, re.compile(r"\w*")),
        Case("GET /version", 200, re.compile(r"\d[\w.]*-\w+")),
    ],
    "adapters": [
        Case(
            "GET /l2/adapters",
            200,
            {
                "adapters": [
                    {"index": index, "type_name": name, "primary": index == 0}
                    for index, name in enumerate(["fs", "dax", "memory", "dax", "redis"])
                ]
            },
        )
    ],
    "metrics": [Case("GET /metrics", 200, answers=PROMETHEUS)],
    "metrics reset": [
        Case("POST /metrics/reset", 200, "ok", answers=TEXT),
        Case("POST /metrics/reset", 200, "ok", send=b"{", answers=TEXT),
    ],
    "levels of loggers": [
        Case("GET /loglevel", 200, re.compile(r"(.+: (Level \d+|[A-Z]+)\n)+"), answers=TEXT),
        Case("GET /loglevel?logger_name=&level=", 200, re.compile(r"(.+: .+\n)+"), answers=TEXT),
        Case("GET /loglevel?logger_name=app.page", 200, "app.page: INFO", answers=TEXT),
        Case("GET /loglevel?logger_name=app.page&level=", 200, "app.page: INFO", answers=TEXT),
        *[
            Case(
                f"GET /loglevel?logger_name=app.page&level={given}",
                200,
                f"Set app.page level to {word} (including all handlers)",
                answers=TEXT,
            )
            for given, word in {
                "debug": "DEBUG",
                "Info": "INFO",
                "WARNING": "WARNING",
                "error": "ERROR",
                "CRITICAL": "CRITICAL",
                "warn": "WARN",
                "fatal": "FATAL",
                "notset": "NOTSET",
                "ERROR": "ERROR",
            }.items()
        ],
        Case("GET /loglevel?logger_name=app.page", 200, "app.page: ERROR", answers=TEXT),
        Case("GET /loglevel?logger_name=app.page.child", 200, "app.page.child: ERROR", answers=TEXT),
        Case("GET /loglevel?logger_name=a&logger_name=app.page", 200, "app.page: ERROR", answers=TEXT),
        Case("GET /loglevel?logger_name=app.page&level=NOTSET", 200, answers=TEXT),
        *[
            Case(f"GET /loglevel?logger_name=app.page&level={word}", 400, f"Invalid log level: {word}", answers=TEXT)
            for word in ("LOUD", "BASIC_FORMAT", "10", "Logger")
        ],
        Case("GET /loglevel?level=DEBUG", 200, None),
        Case("GET /loglevel?level=LOUD", 200, None),
    ],
    "threads": [
        Case("GET /threads", 200, THREADS, answers=TEXT),
        Case("GET /threads?name=COMMAND-loop", 200, THREADS, answers=TEXT),
        Case("GET /threads?name=nobody", 200, NO_THREADS, answers=TEXT),
        Case("GET /threads?name=command-loop&thread_id=1", 200, NO_THREADS, answers=TEXT),
        Case("GET /threads?thread_id=x", 422, problem("query", "thread_id")),
        Case("GET /threads?thread_id=", 422, problem("query", "thread_id")),
        Case("GET /threads?thread_id=1.0", 422, problem("query", "thread_id")),
    ],
    "loops": [
        Case("GET /periodic-threads", 200, LOOPS),
        Case("GET /periodic-threads?level=", 200, LOOPS),
        Case("GET /periodic-threads?level=CRITICAL&running_only=yes&active_only=1", 200, LOOPS),
        Case("GET /periodic-threads?level=low&running_only=off&active_only=F", 200, LOOPS),
        Case("GET /periodic-threads?level=urgent", 400, {"error": "Invalid level: urgent"}),
        Case("GET /periodic-threads?running_only=perhaps", 422, problem("query", "running_only")),
        Case("GET /periodic-threads?active_only=", 422, problem("query", "active_only")),
        Case("GET /periodic-threads/heartbeat", 200, LOOP),
        Case("GET /periodic-threads/nobody", 404, {"error": "Thread not found: nobody"}),
        Case(
            "GET /periodic-threads-health",
            200,
            {
                "healthy": bool,
                "unhealthy_count": int,
                "unhealthy_threads": [SICK, ...],
            },
        ),
    ],
    "environment": [Case("GET /env", 200, re.compile(r'\{\n(  ".*": ".*",?\n)+\}'), answers=TEXT)],
}


def wrong_methods() -> list[Case]:
    """For each path of the table in 1.2 a method that it does not have."""
    reads = (
        "/", "/healthcheck", "/status", "/conf", "/version", "/lmc_version", "/commit_id", "/kvcache/check",
        "/l2/adapters", "/l2/keys", "/quota", "/reconfigure/backends", "/metrics", "/loglevel", "/threads",
        "/periodic-threads", "/periodic-threads/x", "/periodic-threads-health", "/env",
    )  # fmt: skip
    allowed = {
        **{("POST", path): "GET" for path in reads}, ("GET", "/clear-cache"): "POST", ("GET", "/l2"): "DELETE",
        ("GET", "/l2/prefetch"): "POST", ("POST", "/quota/x"): "GET", ("GET", "/metrics/reset"): "POST",
        ("GET", "/run_script"): "POST", ("GET", "/reconfigure/dax/add"): "POST", ("PUT", "/l2/prefetch/x"): "GET",
    }  # fmt: skip
    return [Case(f"{method} {path}", 405, NOT_ALLOWED) for method, path in allowed]


HABITS = {
    "unknown paths": [
        Case(request, 404, NOT_FOUND)
        for request in ("GET /nope", "POST /nope", "GET /STATUS", "GET /l2/nope", "GET /reconfigure", "DELETE /conf/x")
    ],
    "wrong methods": wrong_methods(),
}


def check(query: str) -> str:
    return f"GET /kvcache/check?{query}"


def checksums(count: int, size: int, ranges: str, *, layerwise: bool = False) -> dict[str, Any]:
    digests: Any = [MD5] * count
    return {
        "status": "success", "chunk_size": size, "num_chunks": count, "layerwise": layerwise,
        "chunk_checksums": {"layer_0": digests, "layer_1": digests} if layerwise else digests,
        "block_id_ranges": ranges,
    }  # fmt: skip


_ONE = "instance_id=7&chunk_size=2&block_ids="
CHECKS = {
    "checksums": [
        Case(check(_ONE + "0,[2,5],8"), 200, checksums(3, 2, "0,[2,5],8")),
        Case(check(_ONE + "0,,1,"), 200, checksums(1, 2, "0,1")),
        Case(check(_ONE + "[0,1][3,4]"), 200, checksums(2, 2, "0,1,3,4")),
        Case(check(_ONE + "1%202,%09[3%20,%205]"), 200, checksums(2, 2, "12,[3,5]")),
        Case(check(_ONE + "3,3,2,1"), 200, checksums(2, 2, "3,3,2,1")),
        Case(check(_ONE + ","), 200, checksums(0, 2, "")),
        Case(check(_ONE + "0,1&chunk_size=1&block_size=16"), 200, checksums(2, 1, "0,1")),
        *[
            Case(check(f"{_ONE}0&layerwise={word}"), 200, checksums(1, 2, "0", layerwise=meant))
            for words, meant in (("true,1,yes,on,t,Y,TRUE", True), ("false,0,no,off,f,n,No", False))
            for word in words.split(",")
        ],
    ],
    "checksums that are refused": [
        Case(check("instance_id=x&chunk_size=0"), 422, problem("query", "instance_id")),
        Case(check("instance_id=424242&chunk_size="), 422, problem("query", "chunk_size")),
        Case(check(_ONE + "0&layerwise=maybe"), 422, problem("query", "layerwise")),
        Case(check(_ONE + "0&layerwise="), 422, problem("query", "layerwise")),
        Case(check("instance_id=8&block_ids=["), 501, {"error": "checksum not supported for this engine type"}),
        Case(check("instance_id=424242&block_ids=["), 404, {"error": "instance_id 424242 not registered"}),
        Case(check("block_ids=0&chunk_size=1"), 404, {"error": "instance_id 0 not registered"}),
        Case(check("instance_id=7"), 400, {"error": "block_ids is required"}),
        Case(check(_ONE), 400, {"error": "block_ids is required"}),
        *[
            Case(check(f"instance_id=7&chunk_size=0&block_ids={given}"), 400, {"error": "Invalid block_ids format"})
            for given in (
                "x", "1.5", "[0,[1,2]]", "[0,1", "0]", "[1]", "[0,1,2]", "[5,2]", "3[0,1]", "[0,1]3", "-1", "[0;1]"
            )
        ],
        Case(check("instance_id=7&block_ids=0"), 400, {"error": "chunk_size must be positive"}),
        Case(check("instance_id=7&block_ids=0&chunk_size=0"), 400, {"error": "chunk_size must be positive"}),
        Case(check("instance_id=7&block_ids=0&chunk_size=-1"), 400, {"error": "chunk_size must be positive"}),
        Case(check(_ONE + "48"), 400, {"error": WORDS}),
    ],
}  # fmt: skip

SCRIPT_FORM = "multipart/form-data; boundary=x"


def script(source: str, field: str = 'name="script"; filename="s.py"') -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {field}\r\n\r\n{source}\r\n--x--\r\n".encode()


def runs(source: str, text: Any, status: int = 200) -> Case:
    return Case("POST /run_script", status, text, send=script(source), content_type=SCRIPT_FORM, answers=TEXT)


_NONE = "No script file provided"
SCRIPTS = {
    "scripts": [
        runs("result = [1, 'two']", "[1, 'two']"),
        runs("result = None", "None"),
        runs("x = 1", "Script executed successfully"),
        runs("", "Script executed successfully"),
        runs("import math\nresult = math.floor(2.5)", "2"),
        runs("from math import pi\nresult = str(pi)[:4]", "3.14"),
        runs("result = str(int('1')) + str(float(2)) + str(list('a')) + str(dict()) + str(tuple()) + str(set())",
             "12.0['a']{}()set()"),
        runs("result = str(app.state.lmcache_adapter.lmcache_engine.metadata.world_size)", "1"),
    ],
    "scripts that fail": [
        runs("def :", re.compile("Error executing script: .+", re.DOTALL), 500),
        runs("result = len([])", "Error executing script: name 'len' is not defined", 500),
        runs("open('x')", "Error executing script: name 'open' is not defined", 500),
        runs("import os", re.compile("Error executing script: .*os.*"), 500),
        runs("import json.decoder", re.compile("Error executing script: .*json.decoder.*"), 500),
        runs("1/0", "Error executing script: division by zero", 500),
        runs("x = 1\ndef f():\n    return x\nresult = f()", "Error executing script: name 'x' is not defined", 500),
    ],
    "no script": [
        Case("POST /run_script", 400, _NONE, answers=TEXT),
        Case("POST /run_script", 400, _NONE, send={"script": "result = 1"}, answers=TEXT),
        Case("POST /run_script", 400, _NONE, send=script("x", 'name="other"; filename="s.py"'),
             content_type=SCRIPT_FORM, answers=TEXT),
        Case("POST /run_script", 400, _NONE, send=script("x", 'name="script"'), content_type=SCRIPT_FORM, answers=TEXT),
        Case("POST /run_script", 400, _NONE, send=b"--x\r\nbroken", content_type=SCRIPT_FORM, answers=TEXT),
        Case("POST /run_script", 400, _NONE, send=b"--x", content_type="multipart/form-data", answers=TEXT),
    ],
}  # fmt: skip

CLEARS = {
    "clearing": [
        Case("POST /clear-cache", 200, {"status": "ok"}),
        Case("POST /clear-cache?force=maybe", 200, {"status": "ok"}, send=b'{"tier":', content_type="application/json"),
        Case("POST /clear-cache", 200, {"status": "ok"}, send=b"\xff\x00", content_type="text/plain"),
    ]
}

_ALICE = {"cache_salt": "alice"}
_USAGE = {"current_usage_gb": float, "l1_usage_gb": float, "l2_usage_gb": float}


def put(salt: str, limit: Any, stored: float) -> Case:
    return Case(
        f"PUT /quota/{salt}", 200, {"cache_salt": str, "limit_gb": stored, "status": "ok"}, send={"limit_gb": limit}
    )


def named(segment: str, salt: str) -> Case:
    body = {"cache_salt": salt, "limit_gb": 1.0, "status": "ok"}
    return Case(f"PUT /quota/{segment}", 200, body, send={"limit_gb": 1})


def badly(words: str, *bodies: bytes) -> list[Case]:
    return [Case("PUT /quota/alice", 400, {"error": words}, send=body, content_type="") for body in bodies]


QUOTAS = {
    "a quota": [
        Case("DELETE /quota/alice", 200, {**_ALICE, "status": "not_found"}),
        Case("GET /quota/alice", 200, {**_ALICE, "limit_gb": 0.0, **_USAGE, "exists": False}),
        Case("PUT /quota/alice", 200, {**_ALICE, "limit_gb": 10.0, "status": "ok"}, send={"limit_gb": 10, "more": 1}),
        Case("PUT /quota/alice", 200, {**_ALICE, "limit_gb": 3.5, "status": "ok"}, send=b'{"limit_gb":3.5}',
             content_type="text/plain"),
        Case("GET /quota/alice", 200, {**_ALICE, "limit_gb": 3.5, **_USAGE, "exists": True}),
        put("alice", 0.001, 0.001),
        Case("GET /quota/alice", 200, {**_ALICE, "limit_gb": 0.0009999992325901985, **_USAGE, "exists": True}),
        Case("GET /quota", 200, {"users": {"alice": {"limit_gb": float, **_USAGE}, ...: ...}}),
        put("alice", 0, 0.0),
        Case("GET /quota/alice", 200, {**_ALICE, "limit_gb": 0.0, **_USAGE, "exists": True}),
        put("alice", "3.5", 3.5),
        put("alice", True, 1.0),
        Case("DELETE /quota/alice", 200, {**_ALICE, "status": "removed"}),
        Case("GET /quota/alice", 200, {**_ALICE, "limit_gb": 0.0, **_USAGE, "exists": False}),
    ],
    "the salt in the path": [
        named("_default", "_default"),
        Case("GET /quota", 200, {"users": {"_default": {"limit_gb": 1.0, **_USAGE}, ...: ...}}),
        named("a%40b%20%C3%BC", "a@b ü"),
        Case("GET /quota/a%40b%20%C3%BC", 200, {"cache_salt": "a@b ü", "limit_gb": 1.0, **_USAGE, "exists": True}),
        Case("DELETE /quota/a%40b%20%C3%BC", 200, {"cache_salt": "a@b ü", "status": "removed"}),
        put("s" * 200, 1, 1.0),
        Case(f"DELETE /quota/{'s' * 200}", 200, {"cache_salt": "s" * 200, "status": "removed"}),
        *[Case(f"{method} /quota/a%2Fb", 404, NOT_FOUND) for method in ("PUT", "GET", "DELETE")],
        *[Case(f"{method} /quota/%FF", 400, {"error": WORDS}) for method in ("PUT", "GET", "DELETE")],
    ],
    "limits that are none": [
        put("alice", 2, 2.0),
        *badly("invalid JSON body", b"", b"{", b"limit_gb=1", b"\xff"),
        *badly("body must be {'limit_gb': <float>}", b"[]", b"1", b"null", b"{}", b'{"limit":1}'),
        *badly("limit_gb must be numeric", *[b'{"limit_gb":%s}' % it for it in (b"null", b'"x"', b"[]", b"{}", b'""')]),
        *badly("limit_gb must be finite", *[
            b'{"limit_gb":%s}' % it for it in (b"NaN", b"Infinity", b"1e400", b'"nan"', b'"inf"', b'"-Infinity"')
        ]),
        *badly("limit_gb must be non-negative", b'{"limit_gb":-1}', b'{"limit_gb":"-0.5"}'),
        Case("PUT /quota/alice", 400, {"error": WORDS}, send={"limit_gb": 1e308}),
        Case("GET /quota/alice", 200, {**_ALICE, "limit_gb": 2.0, **_USAGE, "exists": True}),
        Case("DELETE /quota/alice", 200, {**_ALICE, "status": "removed"}),
    ],
}  # fmt: skip

FLOWS = {**READS, **HABITS, **CHECKS, **SCRIPTS, **CLEARS, **QUOTAS}
