"""What a client says with every operation: whose tokens, which range of them, for which worker."""

from array import array
from dataclasses import dataclass

from engine.errors import BadRequest
from engine.object_key import MAX_WORLD_SIZE, check_cache_salt, check_model_name, pack_kv_rank

#: Most tokens one request may name.
MAX_TOKENS = 1_000_000
MAX_NAME_CHARACTERS = 1024
#: Most workers that may read one object of a lookup.
MAX_KV_READERS = 1024


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """A checked request. Build it with `make_request`.

    `tokens` holds the whole sequence of the request as far as it is known (unsigned 32 bit), `[start, end)` is the
    token range the operation is about. `worker_id` None means all workers of `world_size`. `request_id` names
    the session and owns leases; it is no part of an object's identity.
    """

    model_name: str
    world_size: int
    worker_id: int | None
    tokens: "array[int]"
    start: int
    end: int
    request_id: str
    cache_salt: str = ""
    num_kv_readers: int = 1

    def kv_rank(self) -> int:
        """The packed rank of the request's own worker. Raises BadRequest when it names none."""
        if self.worker_id is None:
            raise BadRequest("worker_id is missing: a transfer is about one worker's objects")
        return pack_kv_rank(self.world_size, self.worker_id)

    def kv_ranks(self) -> list[int]:
        """The packed ranks the request is about: its worker's, or those of the whole world size."""
        workers = range(self.world_size) if self.worker_id is None else (self.worker_id,)
        return [pack_kv_rank(self.world_size, worker_id) for worker_id in workers]

    def chunk_range(self, chunk_size: int) -> range:
        """Chunk indices of `[start, end)`, `end` rounded down to whole chunks.

        Raises BadRequest when `start` is not the start of a chunk.
        """
        if self.start % chunk_size:
            raise BadRequest(f"start {self.start} is not a multiple of the chunk size {chunk_size}")
        return range(self.start // chunk_size, max(self.start, self.end) // chunk_size)


def make_request(
    model_name: str,
    world_size: int,
    worker_id: int | None,
    tokens: "array[int]",
    start: int,
    end: int,
    request_id: str,
    cache_salt: str = "",
    num_kv_readers: int = 1,
) -> CacheRequest:
    """A request whose every field obeys the rules; raises BadRequest naming the first that does not."""
    if tokens.typecode != "I" or tokens.itemsize != 4:
        raise BadRequest(f"tokens must be 32-bit unsigned, got typecode {tokens.typecode!r}")
    if len(tokens) > MAX_TOKENS:
        raise BadRequest(f"{len(tokens)} token ids, at most {MAX_TOKENS} are allowed")
    if not 0 <= start <= end <= len(tokens):
        raise BadRequest(f"range [{start}, {end}) does not fit {len(tokens)} tokens")
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise BadRequest(f"world_size {world_size} is not in 1..{MAX_WORLD_SIZE}")
    if worker_id is not None and not 0 <= worker_id < world_size:
        raise BadRequest(f"worker_id {worker_id} is not in 0..{world_size - 1}")
    if not 1 <= num_kv_readers <= MAX_KV_READERS:
        raise BadRequest(f"num_kv_readers {num_kv_readers} is not in 1..{MAX_KV_READERS}")
    for name, text in (("model_name", model_name), ("request_id", request_id)):
        if len(text) > MAX_NAME_CHARACTERS:
            raise BadRequest(f"{name} has {len(text)} characters, at most {MAX_NAME_CHARACTERS} are allowed")
    check_model_name(model_name)
    check_cache_salt(cache_salt)
    return CacheRequest(model_name, world_size, worker_id, tokens, start, end, request_id, cache_salt, num_kv_readers)
