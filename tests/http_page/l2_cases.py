"""Part 1 of the page, second half: L2, prefetch and reconfiguration, of a server that is up and has adapters."""

import re
from typing import Any

from tests.http_page.exchange import Case
from tests.http_page.forms import DAX_DEVICE, NOT_FOUND, WORDS, problem

KEY = {"chunk_hash_hex": "00ff", "model_name": "nobody", "kv_rank": 16777472}
WHOLE_KEY = {
    "chunk_hash_hex": re.compile("[0-9a-f]{64}"), "model_name": "page/model", "kv_rank": 16777472, "object_group_id": 0,
    "cache_salt": "",
}  # fmt: skip
ENTRY = {"key": WHOLE_KEY, "size_bytes": 4096 + 8192}
DETAIL = {"detail": WORDS}
JSON_TYPES = ("application/vnd.page+json", "application/json; charset=utf-8", "")


def delete(keys: Any, status: int, body: Any, query: str = "", **more: Any) -> Case:
    return Case(f"DELETE /l2{query}", status, body, send={"keys": keys, **more})


def deleted(count: int, adapter: str = "fs") -> dict[str, Any]:
    return {"requested": count, "adapter": adapter, "ok": True}


def bad_part(name: str, value: Any) -> Case:
    return delete([{**KEY, name: value}], 422, problem("body", "keys", 0, name), "?adapter=nope")


def broken_rule(name: str, value: Any) -> Case:
    return delete([KEY, {**KEY, name: value}], 400, {"detail": re.compile(r"keys\[1\]: .+")}, "?adapter=nope")


DELETES = {
    "deletes": [
        delete([], 200, deleted(0)),
        delete([KEY, KEY], 200, deleted(2), more=1),
        delete([KEY] * 10_000, 200, deleted(10_000)),
        delete([KEY], 200, deleted(1, "memory"), "?adapter=memory"),
        delete([KEY], 200, deleted(1, "dax"), "?adapter=fs&adapter=dax&unknown=1"),
        *[delete([{**KEY, "kv_rank": rank}], 200, deleted(1)) for rank in (1.0, "7", True, -1, 0)],
        delete([{**KEY, "object_group_id": 1, "cache_salt": "s" * 128}], 200, deleted(1)),
        delete([{**KEY, "chunk_hash_hex": ""}], 200, deleted(1)),
        *[Case("DELETE /l2", 200, deleted(0), send=b'{"keys":[]}', content_type=kind) for kind in JSON_TYPES],
        delete([KEY], 200, {"requested": 1, "adapter": "redis", "ok": False, "error": WORDS}, "?adapter=redis"),
    ],
    "deletes that are refused": [
        Case("DELETE /l2?adapter=nope", 422, problem("body")),
        Case("DELETE /l2?adapter=nope", 422, problem("body"), send=b"{"),
        Case("DELETE /l2?adapter=nope", 422, problem("body"), send=b'{"keys":[]}', content_type="text/plain"),
        Case("DELETE /l2?adapter=nope", 422, problem("body"), send=[KEY]),
        Case("DELETE /l2?adapter=nope", 422, problem("body", "keys"), send={}),
        delete(None, 422, problem("body", "keys"), "?adapter=nope"),
        delete({}, 422, problem("body", "keys"), "?adapter=nope"),
        delete([1], 422, problem("body", "keys", 0), "?adapter=nope"),
        *[bad_part("kv_rank", value) for value in (1.5, "x", None, [])],
        *[bad_part("chunk_hash_hex", value) for value in (1, None)],
        *[bad_part("cache_salt", value) for value in (1, None)],
        bad_part("object_group_id", "x"),
        delete([{**KEY, "cache_salt": "a@b"}] * 10_001, 400, DETAIL, "?adapter=nope"),
        *[broken_rule("chunk_hash_hex", value) for value in ("0", "0g", "zz")],
        broken_rule("model_name", "a@b"),
        broken_rule("object_group_id", -1),
        *[broken_rule(name, 2**63) for name in ("kv_rank", "object_group_id")],
        *[broken_rule(name, "0" * 4098) for name in ("chunk_hash_hex", "model_name")],
        *[broken_rule("cache_salt", value) for value in ("a@b", "a/b", "a\\b", "a\0b", "s" * 129)],
        delete([KEY], 404, DETAIL, "?adapter=nope"),
        delete([KEY], 404, DETAIL, "?adapter="),
    ],
}


def keys(query: str) -> str:
    return f"GET /l2/keys?{query}"


def page(adapter: str, entries: Any, token: Any) -> dict[str, Any]:
    return {"adapter": adapter, "entries": entries, "next_page_token": token}


LISTS = {
    "keys": [
        Case("GET /l2/keys", 200, page("fs", [ENTRY, ENTRY], None)),
        Case(keys("page_token=&model_name=page/model&block_size=1"), 200, page("fs", [ENTRY, ENTRY], None)),
        Case(keys("page_size=1"), 200, page("fs", [ENTRY], str), keep={"token": "next_page_token"}),
        Case(keys("page_size=1&page_token=<token>"), 200, page("fs", [ENTRY], None)),
        Case(keys("adapter=dax&page_size=5000"), 200, page("dax", [ENTRY, ENTRY], None)),
        Case(keys("adapter=memory"), 200, page("memory", [{"key": WHOLE_KEY, "size_bytes": int}, ...], None)),
        Case(keys("model_name=page"), 200, page("fs", [], None)),
        Case(keys("model_name="), 200, page("fs", [], None)),
    ],
    "keys that are refused": [
        *[
            Case(keys(f"adapter=nope&page_size={size}"), 422, problem("query", "page_size"))
            for size in ("0", "5001", "-1", "x", "1.0", "")
        ],
        Case(keys("adapter=nope&page_token=x"), 404, DETAIL),
        Case(keys("adapter=&page_token=x"), 404, DETAIL),
        Case(keys("page_token=x"), 400, DETAIL),
        Case(keys("page_token=e30"), 400, DETAIL),
        Case(keys("adapter=redis"), 503, DETAIL),
    ],
}

PROMPT = {"model_name": "page/model", "world_size": 1}
IDS = list(range(512))
NOT_KEPT = {"Cache-Control": "no-store"}
JOB = re.compile("[0-9a-f]{32}")


def prefetch(status: int, body: Any, **members: Any) -> Case:
    return Case("POST /l2/prefetch", status, body, send={**PROMPT, **members})


NOOP = {"chunks": 0, "status": "noop"}
GONE = {"detail": "unknown prefetch request, or its result was taken already"}


def result(found: int, total: int) -> dict[str, Any]:
    return {"status": "completed", "found_keys": found, "total_keys": total}


PREFETCHES = {
    "a prefetch": [
        Case("POST /clear-cache", 200),
        Case(
            "POST /l2/prefetch", 202, {"request_id": JOB, "chunks": 2, "status": "submitted"},
            send={**PROMPT, "world_size": "1", "token_ids": [*IDS, 1], "more": 1}, keep={"job": "request_id"},
        ),
        Case("GET /l2/prefetch/<job>?wait=20", 200, result(2, 2), answer_headers=NOT_KEPT),
        Case("GET /l2/prefetch/<job>", 404, GONE),
        Case("POST /l2/prefetch", 202, send={**PROMPT, "token_ids": IDS}, keep={"job": "request_id"}),
        Case("GET /l2/prefetch/<job>?wait=20", 200, result(0, 2), answer_headers=NOT_KEPT),
        Case("POST /l2/prefetch", 202, send={**PROMPT, "token_ids": [9] * 256}, keep={"job": "request_id"}),
        # The keys are in none of the adapters that answer; that of type redis is away.
        Case("GET /l2/prefetch/<job>?wait=20", 200, {**result(0, 1), "outcome": "failed", "error": WORDS},
             answer_headers=NOT_KEPT),
        prefetch(202, NOOP, token_ids=[]),
        prefetch(202, NOOP, token_ids=[4294967295] * 255, cache_salt="alice"),
        *[
            Case("POST /l2/prefetch", 202, NOOP, send=b'{"model_name":"page/model","world_size":1,"token_ids":[1]}',
                 content_type=kind)
            for kind in JSON_TYPES
        ],
    ],
    "polls": [
        Case("GET /l2/prefetch/<running1>", 200, {"status": "pending"}, answer_headers=NOT_KEPT),
        Case("GET /l2/prefetch/<failed1>", 200, {**result(1, 4), "outcome": "failed", "error": "broken"},
             answer_headers=NOT_KEPT),
        Case("GET /l2/prefetch/<failed1>", 404, GONE),
        Case(f"GET /l2/prefetch/{'0' * 32}", 404, GONE),
        Case("GET /l2/prefetch/x", 404, GONE),
        Case("GET /l2/prefetch/x?wait=31", 422, problem("query", "wait")),
        Case("GET /l2/prefetch/x?wait=", 422, problem("query", "wait")),
        Case(f"DELETE /l2/prefetch/{'0' * 32}", 404, DETAIL),
        Case("DELETE /l2/prefetch/<failed1>", 404, DETAIL),
        Case("GET /jobs/prefetch?limit=1", 200, {"jobs": [{"request_id": JOB, "status": str, ...: ...}]}),
        *[Case(f"GET /jobs/prefetch?limit={limit}", 422, problem("query", "limit")) for limit in ("0", "1001", "x")],
    ],
    "prefetches that are refused": [
        Case("POST /l2/prefetch", 422, problem("body")),
        Case("POST /l2/prefetch", 422, problem("body"), send=b"{"),
        Case("POST /l2/prefetch", 422, problem("body"), send=[]),
        Case("POST /l2/prefetch", 422, problem("body"), send=b"{}", content_type="text/plain"),
        Case("POST /l2/prefetch", 422, problem("body", "token_ids"), send=PROMPT),
        *[prefetch(422, problem("body", "token_ids"), token_ids=value) for value in (None, "1", 1, {})],
        *[
            prefetch(422, problem("body", "token_ids", 1), token_ids=[1, value])
            for value in (-1, 4294967296, 1.5, "x", None, [])
        ],
        *[prefetch(422, problem("body", "world_size"), token_ids=[1], world_size=value) for value in (None, "x", 1.5)],
        prefetch(422, problem("body", "model_name"), token_ids=[1], model_name=1),
        prefetch(422, problem("body", "cache_salt"), token_ids=[1], cache_salt=None),
        prefetch(400, DETAIL, token_ids=[1] * 1_000_001, world_size=9, cache_salt="a@b"),
        prefetch(409, DETAIL, token_ids=[1], world_size=9, cache_salt="a@b"),
        prefetch(409, DETAIL, token_ids=IDS, model_name="nobody"),
        *[prefetch(400, DETAIL, token_ids=[1], cache_salt=salt) for salt in ("a@b", "a/b", "a\\b", "\0", "s" * 129)],
    ],
}  # fmt: skip

STATUS_OF_DAX = {
    "backend": "dax", "supported_operations": ["status", "add", "remove", "resize"], "adapter_index": int,
    "l2_adapter_index": int,
    "status": {
        "hotplug_enabled": bool, "slot_bytes": "<slot>", "total_capacity_bytes": int, "total_used_bytes": int,
        "devices": [DAX_DEVICE, ...],
    },
}  # fmt: skip
NONE_OF = {"enabled": False, "num_adapters": 0, "adapters": []}
NO_SIZE = {"error": "size must be a positive integer byte count or a string like '100GiB'"}
DEVICE, SMALL = "<directory>/dax-page", "<directory>/dax-small"


class Changes:
    """The cases of reconfiguration; `l2` is what stands before the operation in the newer paths."""

    def __init__(self, l2: str = "") -> None:
        self.l2 = l2

    def change(self, path: str, status: int, body: Any, **fields: Any) -> Case:
        backend, operation = path.split("/")
        return Case(f"POST /reconfigure/{backend}/{self.l2}{operation}", status, body, send=fields)

    def raw(self, status: int, body: Any, send: Any, content_type: str | None = None) -> Case:
        path = f"POST /reconfigure/%20/{self.l2}%20"
        return Case(path, status, body, send=send, content_type=content_type)

    def done(self, operation: str, **more: Any) -> dict[str, Any]:
        return {"status": "ok", "operation": operation, "adapter_index": 0, **more}

    def status(self) -> list[Case]:
        path = f"GET /reconfigure/{{}}/{self.l2}status"
        whole = {"enabled": True, "backend": "dax", "num_adapters": 2, "adapters": [STATUS_OF_DAX] * 2}
        return [
            Case(path.format("dax"), 200, whole),
            Case(path.format("%20DAX%20"), 200, whole),
            Case(path.format("fs"), 200, {**NONE_OF, "backend": "fs"}),
            Case(path.format("Nope"), 200, {**NONE_OF, "backend": "nope"}),
            Case(path.format("%20"), 400, {"error": "backend must be non-empty"}),
            Case(path.format("a%2Fb"), 404, NOT_FOUND),
        ]

    def devices(self) -> list[Case]:
        """A device that comes, grows, is drained and goes."""
        size, larger = 4 * 16384, 8 * 16384
        added = self.done("add", device={**DAX_DEVICE, "device_path": DEVICE, "state": "active"})
        resized: dict[str, Any] = {
            "device_path": DEVICE, "index": int, "new_size_bytes": larger, "moved_keys": 0, "deleted_keys": 0,
            "state": "active",
        }  # fmt: skip
        gone = {"moved_keys": 0, "moved_bytes": 0, "deleted_keys": 0, "source_slots_freed": 0, "state": "removed"}
        return [
            self.change("dax/add", 200, added, device_path=DEVICE, size=size),
            self.change("%20Dax/ADD%20", 200, added, device_path=DEVICE, size="64 KiB", adapter_index="0"),
            self.change("dax/add", 409, {"error": "device_path already active with a different size"},
                        device_path=DEVICE, size=larger),
            self.change("dax/resize", 200, self.done("resize", old_size_bytes=size, **resized), device_path=DEVICE,
                        size="128k", mode="evict", force=True),
            self.change("dax/resize", 200, self.done("resize", old_size_bytes=larger, **resized), device_path=DEVICE,
                        size="0.125 mib"),
            self.change("dax/remove", 200, self.done("drain", device_path=DEVICE, index=int, state="draining"),
                        device_path=DEVICE, mode="drain"),
            self.change("dax/remove", 200, self.done("remove", device_path=DEVICE, index=int, **gone),
                        device_path=DEVICE),
            self.change("dax/remove", 404, {"error": "DAX device not found"}, device_path=DEVICE),
        ]  # fmt: skip

    def bodies(self) -> list[Case]:
        blank = {"error": "backend must be non-empty"}
        return [
            self.raw(422, problem("body"), b""),
            self.raw(422, problem("body"), b"{", "application/json"),
            self.raw(422, problem("body"), []),
            self.raw(422, problem("body"), b"{}", "text/plain"),
            self.raw(400, blank, {}),
            self.raw(400, blank, b"{}", "application/x+json"),
            self.change("dax/%20", 400, {"error": "operation must be non-empty"}, size=True),
            self.change("nope/x", 422, problem("body", "adapter_index"), adapter_index="x"),
            self.change("nope/x", 404, {"error": "nope adapter not found"}, adapter_index=1.0, any=1),
            self.change("fs/x", 404, {"error": "fs adapter not found"}),
        ]

    def fields(self) -> list[Case]:
        device = {"device_path": DEVICE}
        cases = [
            self.change("dax/add", 422, problem("device_path"), size=1),
            self.change("dax/add", 422, problem("device_path"), size=1, device_path=1),
            self.change("dax/add", 422, problem("size"), **device),
            *[self.change("dax/add", 422, problem("size"), **device, size=size) for size in (True, 1.5, None, [])],
            self.change("dax/add", 422, problem("mode"), **device, size=1, mode="migrate"),
            self.change("dax/remove", 422, problem("size"), **device, size=1),
            self.change("dax/remove", 422, problem("mode"), **device, mode="burn"),
            self.change("dax/resize", 422, problem("mode"), **device, size=1, mode="drain"),
            self.change("dax/resize", 422, problem("force"), **device, size=1, force="perhaps"),
            self.change("dax/remove", 422, problem("adapter_index"), **device, adapter_index=1.5),
        ]
        whole = self.change("dax/add", 404, {"error": "dax adapter not found"}, **device, size=1.0, adapter_index=9)
        strict = self.change("dax/add", 422, problem("size"), **device, size=1.0, adapter_index=9)
        cases.append(strict if self.l2 else whole)
        sizes = (0, -1, "", "0", "1.5.5", "1 XB", "1e3", "-1", "0.1 b", "1" * 65, ".5 gib")
        cases += [self.change("dax/add", 400, NO_SIZE, **device, size=size, adapter_index=9) for size in sizes]
        unknown = "unsupported dax reconfigure operation: "
        cases += [
            self.change(f"dax/{verb}", 400, {"error": unknown + verb}, adapter_index=9) for verb in ("status", "grow")
        ]
        return cases

    def refusals(self) -> list[Case]:
        first = "<directory>/dax-a"
        missing = {"error": "dax adapter not found"}
        return [
            *[self.change("dax/remove", 404, missing, device_path=first, adapter_index=at) for at in (-1, 2, 10**12)],
            self.change("dax/add", 403, {"error": "DAX hotplug is disabled"}, device_path=SMALL, size=16384,
                        adapter_index=1),
            self.change("dax/add", 400, {"error": "failed to map DAX device", ...: ...}, device_path=SMALL, size="1g"),
            self.change("dax/add", 400, {"error": "size_bytes does not fit one slot", ...: ...}, device_path=SMALL,
                        size=1),
            self.change("dax/add", 400, {"error": WORDS}, device_path="", size=16384),
            self.change("dax/resize", 400, {"error": "failed to remap DAX device", ...: ...}, device_path=first,
                        size="1 TiB"),
            self.change("dax/resize", 404, {"error": "DAX device not found"}, device_path=SMALL, size=16384),
            self.change("dax/remove", 507, {"error": re.compile("no room to migrate.*")}, device_path=first),
        ]  # fmt: skip

    def flows(self) -> dict[str, list[Case]]:
        name = f"reconfigure {self.l2}"
        return {
            f"{name}status": self.status(), f"{name}devices": self.devices(), f"{name}bodies": self.bodies(),
            f"{name}fields": self.fields(), f"{name}refusals": self.refusals(),
        }  # fmt: skip


BACKENDS = {
    "backends": [
        Case("GET /reconfigure/backends", 200, {"enabled": True, "num_backends": 1, "backends": ["dax"]}),
    ]
}
SCRUB = {"adapter": str, "adapter_index": int, "state": str, ...: ...}
SCRUBS = {
    "scrub": [
        Case("POST /l2/scrub?adapter=memory", 202, SCRUB),
        Case("GET /l2/scrub?adapter=memory", 200, SCRUB),
        Case("DELETE /l2/scrub?adapter=memory", 200, {**SCRUB, "stopped": bool}),
        Case("POST /l2/scrub?adapter=redis", 202, SCRUB),
        Case("POST /l2/scrub?adapter=redis", 409, {"detail": "a scrub of redis is running already"}),
        Case("DELETE /l2/scrub?adapter=redis", 200, {**SCRUB, "state": "stopped", "stopped": True}),
        *[Case(f"{method} /l2/scrub?adapter=nope", 404, DETAIL) for method in ("GET", "POST", "DELETE")],
    ]
}

FLOWS = {**DELETES, **LISTS, **PREFETCHES, **BACKENDS, **Changes().flows(), **SCRUBS}
