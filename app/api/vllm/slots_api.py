"""/cache/kvcache/*: the KV tensors of the worker that registered first, by token slot.

A slot is block id * tokens per block + token. `slot_mapping` has the form of block_ids.py.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

from flask import Blueprint, Response
from marshmallow import fields

from app.backend import current_backend
from app.block_ids import parse_block_ids, runs_of
from app.declarations import answers, refuses
from app.errors import RouteError
from app.inspection import asks_the_engine, fact_or_none, shape_of, shown
from app.policy import Level, policy
from app.request_schema import Boolean, LarderSchema, QueryInteger, Text, takes_query
from contract.commands import MAX_INTEGER, ChecksumSlots, SetSwitch
from contract.process_facts import KV_LAYERS

router = Blueprint("vllm_slots", __name__)

CHECK = shape_of("cache/kvcache/check")
RECORD = shape_of("cache/kvcache/record_slot")
INFO = shape_of("cache/kvcache/info")


class CheckQuery(LarderSchema):
    slot_mapping: fields.Field = Text(
        load_default="",
        metadata={"description": "Needed. The slots: `0,[2,5]` is 0, 2, 3, 4, 5.", "examples": ["0,[2,5]"]},
    )
    chunk_size: fields.Field = QueryInteger(
        load_default=None, metadata={"description": "How many slots a digest is of; without it none is made."}
    )
    layerwise: fields.Field = Boolean(load_default=False, metadata={"description": "Digests for each layer by itself."})


class RecordQuery(LarderSchema):
    enabled: fields.Field = Text(load_default="", metadata={"description": "Needed: true or false."})


class KvLayer(TypedDict):
    """The KV tensor of a layer."""

    shape: list[int]
    dtype: str
    device: str


DIGEST = "900150983cd24fb0d6963f7d28e17f72"


@router.get("/cache/kvcache/check")
@policy(Level.ADMIN, CHECK)
@takes_query(CheckQuery)
@answers(
    200,
    {
        "status": Literal["success"],
        "slot_mapping_ranges": list[int | list[int]],
        "chunk_size": int | None,
        "num_chunks": int,
        "chunk_checksums": list[str] | dict[str, list[str]],
        "layerwise": bool,
    },
    example={
        "status": "success",
        "slot_mapping_ranges": [0, [2, 5]],
        "chunk_size": 4,
        "num_chunks": 2,
        "chunk_checksums": [DIGEST, DIGEST],
        "layerwise": False,
    },
)
@refuses(400, "slot_mapping is required", "Invalid slot_mapping format: a range is reversed")
@refuses(404, "no KV caches are registered")
@asks_the_engine
def check(slot_mapping: str, chunk_size: int | None, layerwise: bool) -> Response:
    """MD5 over slots of the first worker's KV memory. Of each `chunk_size` slots; without a chunk size the slots are
    only checked."""
    if not slot_mapping.strip():
        raise RouteError(400, "slot_mapping is required")
    try:
        slots = parse_block_ids(slot_mapping)
    except ValueError as error:
        raise RouteError(400, f"Invalid slot_mapping format: {error}") from error
    if chunk_size is not None and not 0 < chunk_size <= MAX_INTEGER:
        raise RouteError(400, "chunk_size must be positive")
    reply = current_backend().call(ChecksumSlots(None, tuple(slots), chunk_size, layerwise))
    return shown(
        {
            "status": "success",
            "slot_mapping_ranges": _ranges(slots),
            "chunk_size": chunk_size,
            "num_chunks": reply["num_chunks"],
            "chunk_checksums": reply["chunk_checksums"],
            "layerwise": layerwise,
        }
    )


@router.post("/cache/kvcache/record_slot")
@policy(Level.ADMIN, RECORD)
@takes_query(RecordQuery)
@answers(
    200,
    {"status": Literal["success"], "kvcache_check_log_enabled": bool},
    example={"status": "success", "kvcache_check_log_enabled": True},
)
@refuses(400, "enabled must be true or false")
@asks_the_engine
def record_slots(enabled: str) -> Response:
    """Whether the blocks of each store and retrieve are logged from now on."""
    if enabled.lower() not in ("true", "false"):
        raise RouteError(400, "enabled must be true or false")
    on = enabled.lower() == "true"
    current_backend().call(SetSwitch("block_log", "", on))
    return shown({"status": "success", "kvcache_check_log_enabled": on})


@router.get("/cache/kvcache/info")
@policy(Level.READ, INFO)
@answers(
    200,
    {"status": Literal["success"], "num_layers": int, "layers": dict[str, KvLayer]},
    example={
        "status": "success",
        "num_layers": 1,
        "layers": {"layer_0": {"shape": [2, 48, 16, 1, 8], "dtype": "torch.float16", "device": "cpu"}},
    },
)
@refuses(404, "no KV caches are registered")
def info() -> Response:
    """Shape, dtype and device of each layer of the first worker's KV memory."""
    layers = fact_or_none(KV_LAYERS)
    if not layers:
        raise RouteError(404, "no KV caches are registered")
    return shown({"status": "success", "num_layers": len(layers), "layers": layers})


def _ranges(slots: Sequence[int]) -> list[int | list[int]]:
    """Runs of three or more as [first, last], other slots as they are."""
    ranges: list[int | list[int]] = []
    for run in runs_of(slots):
        ranges.extend([[run[0], run[-1]]] if len(run) >= 3 else run)
    return ranges
