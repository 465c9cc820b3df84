"""GET /kvcache/check and POST /cache/checksums: MD5 over blocks of a registered client's KV tensors.

The same question in two forms. Whether the instance is known is asked before the form of the blocks is judged.
"""

from typing import Any, Literal

from flask import Blueprint
from marshmallow import fields

from app.backend import Backend, current_backend
from app.block_ids import MAX_BLOCKS, parse_block_ids, show_block_ids
from app.declarations import answers, refuses
from app.errors import RouteError
from app.policy import ERROR, NEWER, Level, policy
from app.request_schema import Boolean, Integer, IntegerList, LarderSchema, QueryInteger, Text, takes_body, takes_query
from contract.commands import MAX_INTEGER, ChecksumBlocks

router = Blueprint("kvcache", __name__)

ABOUT_BLOCKS = {
    "description": "Needed. The blocks, in order: `0,[2,5],8` is 0, 2, 3, 4, 5, 8.",
    "examples": ["0,[2,5],8"],
}
ABOUT_CHUNK = {"description": "Needed, above 0: how many blocks a digest is of.", "examples": [4]}
ABOUT_INSTANCE = {"description": "The registered client.", "examples": [7]}
ABOUT_LAYERS = {"description": "Digests for each layer by itself."}
MD5 = "900150983cd24fb0d6963f7d28e17f72"


class CheckQuery(LarderSchema):
    block_ids: fields.Field = Text(load_default="", metadata=ABOUT_BLOCKS)
    chunk_size: fields.Field = QueryInteger(load_default=0, metadata=ABOUT_CHUNK)
    instance_id: fields.Field = QueryInteger(load_default=0, metadata=ABOUT_INSTANCE)
    layerwise: fields.Field = Boolean(load_default=False, metadata=ABOUT_LAYERS)


class ChecksumsBody(LarderSchema):
    block_ids: fields.Field = IntegerList(load_default=list, metadata={"description": "Needed. The blocks, in order."})
    chunk_size: fields.Field = Integer(load_default=0, metadata=ABOUT_CHUNK)
    instance_id: fields.Field = Integer(load_default=0, metadata=ABOUT_INSTANCE)
    layerwise: fields.Field = Boolean(load_default=False, metadata=ABOUT_LAYERS)


answers_digests = answers(
    200,
    {
        "status": Literal["success"],
        "chunk_size": int,
        "num_chunks": int,
        "chunk_checksums": list[str] | dict[str, list[str]],
        "layerwise": bool,
        "block_id_ranges": str,
    },
    example={
        "status": "success",
        "chunk_size": 4,
        "num_chunks": 2,
        "chunk_checksums": [MD5, MD5],
        "layerwise": False,
        "block_id_ranges": "0,[2,5],8",
    },
    says="With `layerwise` the digests stand under `layer_0` and so on.",
)


@router.get("/kvcache/check")
@policy(Level.ADMIN, ERROR)
@takes_query(CheckQuery)
@answers_digests
@refuses(400, "block_ids is required", "Invalid block_ids format", "chunk_size must be positive")
@refuses(404, "instance_id 7 not registered")
@refuses(501, "checksum not supported for this engine type")
@refuses(503)
def check(block_ids: str, chunk_size: int, instance_id: int, layerwise: bool) -> dict[str, Any]:
    """MD5 over blocks of a client's KV memory. Not over what is cached: to compare what was stored with what came
    back."""
    backend = current_backend()
    if not block_ids.strip():
        raise _refusal(backend, instance_id, "block_ids is required")
    try:
        blocks = parse_block_ids(block_ids)
    except ValueError as error:
        raise _refusal(backend, instance_id, "Invalid block_ids format") from error
    return _checksums(backend, blocks, chunk_size, instance_id, layerwise=layerwise)


@router.post("/cache/checksums")
@policy(Level.ADMIN, NEWER)
@takes_body(ChecksumsBody, example={"instance_id": 7, "block_ids": [0, 2, 3, 4, 5, 8], "chunk_size": 4})
@answers_digests
@refuses(400, "block_ids is required", "chunk_size must be positive", "100001 block_ids, at most 100000 are taken")
@refuses(404, "instance_id 7 not registered")
@refuses(501, "checksum not supported for this engine type")
@refuses(503)
def checksums(block_ids: list[int], chunk_size: int, instance_id: int, layerwise: bool) -> dict[str, Any]:
    """MD5 over blocks of a client's KV memory, named in a list."""
    backend = current_backend()
    if not block_ids:
        raise _refusal(backend, instance_id, "block_ids is required")
    if len(block_ids) > MAX_BLOCKS:
        raise _refusal(backend, instance_id, f"{len(block_ids)} block_ids, at most {MAX_BLOCKS} are taken")
    return _checksums(backend, block_ids, chunk_size, instance_id, layerwise=layerwise)


def _checksums(
    backend: Backend, block_ids: list[int], chunk_size: int, instance_id: int, *, layerwise: bool
) -> dict[str, Any]:
    if chunk_size <= 0:
        raise _refusal(backend, instance_id, "chunk_size must be positive")
    if max(abs(instance_id), chunk_size, *map(abs, block_ids), 0) > MAX_INTEGER:
        raise _refusal(backend, instance_id, "a number is beyond 64 bits")
    reply = backend.call(ChecksumBlocks(instance_id, tuple(block_ids), chunk_size, layerwise))
    return {
        "status": "success",
        "chunk_size": chunk_size,
        "num_chunks": reply["num_chunks"],
        "chunk_checksums": reply["chunk_checksums"],
        "layerwise": layerwise,
        "block_id_ranges": show_block_ids(block_ids),
    }


def _refusal(backend: Backend, instance_id: int, reason: str) -> RouteError:
    """The error for blocks or sizes that make no sense: unless the instance is the first thing wrong, which only
    the engine knows; it is asked about no blocks at all, and its own refusal goes first."""
    if abs(instance_id) <= MAX_INTEGER:
        backend.call(ChecksumBlocks(instance_id, (), 1, False))
    return RouteError(400, reason)
