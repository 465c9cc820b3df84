"""Part 3 of the page: the newer names, of a server that is up and has adapters. What has the same answers as its elder
is asked with the elder's cases."""

import re
from typing import Any

from tests.http_page import l2_cases, part1_cases
from tests.http_page.exchange import Case
from tests.http_page.forms import NOT_ALLOWED, WORDS, problem
from tests.http_page.l2_cases import DETAIL, ENTRY, IDS, JOB, KEY, NOOP, NOT_KEPT, PROMPT, Changes, result

CONFIG = {
    "config": [Case("GET /config", 200, part1_cases.CONF, indent=2)],
    "config of adapters": [
        Case(
            "GET /config/adapters",
            200,
            {
                "adapters": [
                    {
                        "index": index, "type_name": name, "tier": "l2", "primary": not index,
                        "reconfigurable": name == "dax",
                    }
                    for index, name in enumerate(["fs", "dax", "memory", "dax", "redis"])
                ]
            },
        )
    ],
    "wrong methods of newer paths": [
        Case(request, 405, NOT_ALLOWED)
        for request in (
            "POST /config", "POST /config/adapters", "GET /cache/clear", "GET /cache/checksums", "POST /cache/objects",
            "GET /cache/prefetches", "POST /cache/prefetches/x", "GET /reconfigure/dax/l2/add",
        )
    ],
}  # fmt: skip

CLEARED = {"status": "ok", "cleared": {"tier": "l1"}}
CLEARS = {
    "newer clear": [
        Case("POST /cache/clear", 200, CLEARED),
        Case("POST /cache/clear", 200, CLEARED, send=b"{}", content_type=""),
        Case("POST /cache/clear", 200, CLEARED, send={"tier": "l1", "force": "yes", "more": 1}),
        *[Case("POST /cache/clear", 400, DETAIL, send={"tier": tier}) for tier in ("l2", "all")],
        *[Case("POST /cache/clear", 422, problem("body", "tier"), send={"tier": tier}) for tier in ("l3", None, 1)],
        Case("POST /cache/clear", 422, problem("body", "force"), send={"force": "perhaps"}),
        *[Case("POST /cache/clear", 422, problem("body"), send=body) for body in ([], "x", 1)],
        Case("POST /cache/clear", 422, problem("body"), send=b"{", content_type="application/json"),
    ]
}


def checksums(status: int, body: Any, **members: Any) -> Case:
    return Case("POST /cache/checksums", status, body, send=members)


_DIGESTS = part1_cases.checksums(3, 2, "0,[2,5],8")
CHECKS = {
    "newer checksums": [
        checksums(200, _DIGESTS, instance_id=7, block_ids=[0, 2, 3, 4, 5, 8], chunk_size=2, more=1),
        checksums(200, _DIGESTS, instance_id="7", block_ids=[0, 2, "3", 4.0, 5, 8], chunk_size=2.0, layerwise="no"),
        checksums(200, part1_cases.checksums(1, 9, "1,0", layerwise=True), instance_id=7, block_ids=[1, 0],
                  chunk_size=9, layerwise=True),
        checksums(400, {"detail": "block_ids is required"}, instance_id=7, chunk_size=1),
        checksums(400, {"detail": "block_ids is required"}, instance_id=7, block_ids=[], chunk_size=1),
        *[
            checksums(400, {"detail": "chunk_size must be positive"}, instance_id=7, block_ids=[0], chunk_size=size)
            for size in (0, -1)
        ],
        *[checksums(400, DETAIL, instance_id=7, block_ids=[block], chunk_size=1) for block in (-1, 48)],
        checksums(404, {"detail": "instance_id 424242 not registered"}, instance_id=424242, block_ids=[0]),
        checksums(404, {"detail": "instance_id 0 not registered"}, block_ids=[0], chunk_size=1),
        checksums(501, {"detail": "checksum not supported for this engine type"}, instance_id=8, chunk_size=1),
        *[checksums(422, problem("body", "block_ids"), block_ids=given) for given in ("0,1", 1, None)],
        checksums(422, problem("body", "block_ids", 1), block_ids=[0, "x"]),
        checksums(422, problem("body", "chunk_size"), chunk_size=1.5),
        checksums(422, problem("body", "instance_id"), instance_id=None),
        checksums(422, problem("body", "layerwise"), layerwise="perhaps"),
        Case("POST /cache/checksums", 422, problem("body")),
        Case("POST /cache/checksums", 422, problem("body"), send=b"{", content_type="application/json"),
    ]
}  # fmt: skip


def delete(status: int, body: Any, keys: Any, **members: Any) -> Case:
    return Case("DELETE /cache/objects", status, body, send={"keys": keys, **members})


def deleted(count: int) -> dict[str, Any]:
    return {"deleted": count, "skipped": 0, "ok": True}


OBJECTS = {
    "newer deletes": [
        delete(200, deleted(0), [], more=1),
        delete(200, deleted(2), [KEY, KEY]),
        delete(200, deleted(1), [KEY], tier="l2", force=True, adapter="memory"),
        delete(200, deleted(1), [KEY], adapter=None),
        delete(200, deleted(0), [KEY], tier="l1"),
        delete(200, deleted(0), [KEY], tier="l1", adapter="nope"),
        delete(200, deleted(1), [KEY], tier="all", force="no"),
        delete(200, {"deleted": 0, "skipped": 0, "ok": False, "error": WORDS}, [KEY], adapter="redis"),
        delete(400, DETAIL, [{**KEY, "model_name": "a@b"}], adapter="nope"),
        delete(400, DETAIL, [KEY] * 10_001, adapter="nope", tier="all"),
        delete(404, DETAIL, [KEY], adapter="nope"),
        delete(404, DETAIL, [KEY], adapter="", tier="all"),
        *[delete(422, problem("body", "tier"), [], tier=tier) for tier in ("l3", None)],
        delete(422, problem("body", "force"), [], force=None),
        delete(422, problem("body", "adapter"), [], adapter=1),
        delete(422, problem("body", "keys"), None),
        delete(422, problem("body", "keys", 0, "kv_rank"), [{**KEY, "kv_rank": 1.5}]),
        Case("DELETE /cache/objects", 422, problem("body")),
        Case("DELETE /cache/objects", 422, problem("body"), send=b"{}", content_type="text/plain"),
    ],
    "newer keys": [
        Case("GET /cache/objects", 200, {**l2_cases.page("fs", [ENTRY, ENTRY], None), "shared": False}),
        Case("GET /cache/objects?tier=l2&page_size=1", 200, {**l2_cases.page("fs", [ENTRY], str), "shared": False},
             keep={"newer_token": "next_page_token"}),
        Case("GET /cache/objects?page_token=<newer_token>", 200,
             {**l2_cases.page("fs", [ENTRY], None), "shared": False}),
        Case("GET /cache/objects?model_name=x&adapter=dax", 200, {**l2_cases.page("dax", [], None), "shared": False}),
        *[Case(f"GET /cache/objects?tier={tier}", 400, DETAIL) for tier in ("l1", "all", "l3", "")],
        Case("GET /cache/objects?page_token=x", 400, DETAIL),
        Case("GET /cache/objects?adapter=nope&page_token=x", 404, DETAIL),
        Case("GET /cache/objects?adapter=nope&page_size=0", 422, problem("query", "page_size")),
        Case("GET /cache/objects?adapter=redis", 503, DETAIL),
    ],
}  # fmt: skip


def prefetch(status: int, body: Any, **members: Any) -> Case:
    return Case("POST /cache/prefetches", status, body, send={**PROMPT, **members})


TOO_MANY = [1] * 1_000_001
GONE = {"detail": re.compile("unknown prefetch request.*")}
PREFETCHES = {
    "a newer prefetch": [
        # A storage that is away fails a prefetch that finds nothing elsewhere; L1 has all of this one.
        Case("POST /cache/prefetches", 202, {"request_id": JOB, "chunks": 2, "status": "submitted"},
             send={**PROMPT, "token_ids": IDS, "source_tier": "l2", "target_tier": "l1"}, keep={"newer": "request_id"}),
        Case("GET /cache/prefetches/<newer>?wait=20", 200, {"request_id": "<newer>", **result(2, 2)},
             answer_headers=NOT_KEPT),
        Case("GET /cache/prefetches/<newer>", 404, GONE),
        Case("POST /cache/prefetches", 202, send={**PROMPT, "token_ids": IDS}, keep={"newer": "request_id"}),
        Case("GET /cache/prefetches/<newer>?wait=20", 200, {"request_id": "<newer>", **result(2, 2)}),
        prefetch(202, NOOP, token_ids=[1], more=1),
        Case("GET /cache/prefetches/<running2>", 200, {"request_id": "<running2>", "status": "pending"},
             answer_headers=NOT_KEPT),
        Case("GET /cache/prefetches/<failed2>", 200,
             {"request_id": "<failed2>", **result(1, 4), "outcome": "failed", "error": "broken"}),
        Case("GET /cache/prefetches/<failed2>", 404, GONE),
        Case("GET /cache/prefetches/x", 404, GONE),
        Case("GET /cache/prefetches/x?wait=31", 422, problem("query", "wait")),
    ],
    "newer prefetches that are refused": [
        Case("POST /cache/prefetches", 422, problem("body")),
        prefetch(422, problem("body", "token_ids"), token_ids=None),
        prefetch(422, problem("body", "token_ids", 0), token_ids=[-1]),
        prefetch(422, problem("body", "target_tier"), token_ids=[1], target_tier=1),
        prefetch(400, DETAIL, token_ids=[1], source_tier="l1"),
        prefetch(400, DETAIL, token_ids=[1], target_tier="all"),
        prefetch(503, DETAIL, token_ids=[1], model_name="nobody"),
        prefetch(503, DETAIL, token_ids=TOO_MANY, world_size=9),
        prefetch(400, DETAIL, token_ids=TOO_MANY),
        prefetch(400, DETAIL, token_ids=[1], cache_salt="a@b"),
    ],
}  # fmt: skip

NOT_DAX = {"error": re.compile("L1 is not Device-DAX backed.*")}


def l1(operation: str, status: int, body: Any, **fields: Any) -> Case:
    return Case(f"POST /reconfigure/dax/l1/{operation}", status, body, send=fields)


DAX_IN_L1 = {
    "dax in L1": [
        Case("GET /reconfigure/dax/l1/status", 409, NOT_DAX),
        l1("add", 409, NOT_DAX, device_path="/dev/dax0.0", size="1GiB"),
        l1("remove", 409, NOT_DAX, device_path="/dev/dax0.0", mode="drain"),
        l1("add", 422, problem("device_path"), size=1),
        *[l1("add", 422, problem("size"), device_path="/x", size=size) for size in (True, 1.5, None)],
        l1("add", 422, problem("mode"), device_path="/x", size=1, mode="drain"),
        l1("remove", 422, problem("mode"), device_path="/x", mode="migrate"),
        *[
            Case(f"POST /reconfigure/dax/l1/{verb}", 422, problem("body"), send=b"{", content_type="application/json")
            for verb in ("add", "remove")
        ],
    ]
}

FLOWS = {**CONFIG, **CHECKS, **OBJECTS, **PREFETCHES, **CLEARS, **Changes("l2/").flows(), **DAX_IN_L1}
