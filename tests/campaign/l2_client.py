"""A client process for campaigns of the second tier: it checks every byte it gets back and notes how long it waited.

    python -m tests.campaign.l2_client '{"port": ..., "log": ..., "number": 0, "prompts": 60, "role": "reader"}'

role    what it does in a round
------  ---------------------------------------------------------------------------------------------------
reader  looks a prompt up, retrieves and compares what is there, stores the rest
rude    the same, but now and then it clears, ends a session in mid lookup, looks up twice, or just leaves
storer  stores a prompt nobody has seen, without looking it up: how the data plane does, apart from L2

Each round is one line of JSON in the log (`Round`). SIGTERM ends the rounds; the client then stays registered until
its standard input ends. Odd clients copy by themselves, even ones have the server copy. The content of a chunk follows
from its prompt and salt, so every client knows what any other must have stored.
"""

import hashlib
import json
import random
import signal
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from engine.dataplane.client import LarderClient, LarderClientError, Miss, Refused, SharedKV

CHUNK_TOKENS, BLOCK_TOKENS, CHUNKS = 16, 8, 6
LAYERS, HEADS, HEAD_SIZE = 2, 2, 64
BLOCKS_PER_CHUNK = CHUNK_TOKENS // BLOCK_TOKENS
BLOCKS = list(range(CHUNKS * BLOCKS_PER_CHUNK))
SHAPE = (2, len(BLOCKS), BLOCK_TOKENS, HEADS, HEAD_SIZE)
OBJECT_BYTES = 2 * LAYERS * CHUNK_TOKENS * HEADS * HEAD_SIZE * 2
PROMPT_BYTES = CHUNKS * OBJECT_BYTES
#: Neighbours of so many prompts share their first chunks and their salt.
FAMILY, SHARED_CHUNKS, SALTS = 4, 2, 3
#: Prompts from here on are nobody else's.
FRESH = 1_000_000
STORER_PAUSE_S = 0.03
RUDE_SHARE = 0.3


@dataclass
class Round:
    """One round as a client saw it. `at` is monotonic time, the same clock in every process."""

    at: float
    lookup_s: float = 0.0
    hit_chunks: int = 0
    #: Chunks that came back with other bytes.
    wrong_chunks: int = 0
    #: Found by the lookup, and not there a moment later.
    lost_chunks: int = 0
    stored_chunks: int = 0
    refused_chunks: int = 0
    store_s: float = 0.0
    error: str = ""


def salt_of(prompt: int) -> str:
    return f"tenant-{prompt // FAMILY % SALTS}"


def _branch(prompt: int, chunk: int) -> int:
    return prompt // FAMILY if chunk < SHARED_CHUNKS else prompt


def tokens_of(prompt: int) -> list[int]:
    """CHUNKS chunks, the first ones those of the prompt's family."""
    return [token for chunk in range(CHUNKS) for token in (chunk, _branch(prompt, chunk), *range(CHUNK_TOKENS - 2))]


def content_of(prompt: int, chunk: int) -> np.ndarray:
    """What a chunk holds, one array per layer, as bits. No two chunks and no two places in one look alike."""
    text = f"{salt_of(prompt)}:{_branch(prompt, chunk)}:{chunk}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    shape = (LAYERS, 2, BLOCKS_PER_CHUNK, *SHAPE[2:])
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 1 << 16, shape, dtype=np.uint16)


class PromptClient:
    """A registered client and its KV memory. A context manager."""

    def __init__(self, port: int, number: int, *, timeout_s: float = 20.0) -> None:
        self.number, self._requests = number, 0
        copies_itself = bool(number % 2)
        self._parts = ExitStack()
        self._memory = self._parts.enter_context(SharedKV([SHAPE] * LAYERS))
        self._layers = [layer.view(np.uint16) for layer in self._memory.layers]
        self._parts.callback(self._layers.clear)
        model = "campaign/copies" if copies_itself else "campaign/shared"
        self.wire = self._parts.enter_context(LarderClient(f"tcp://127.0.0.1:{port}", model, timeout_s=timeout_s))
        if copies_itself:
            self.wire.register_arrays(self._memory.layers)
        else:
            self.wire.register_shared(self._memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def new_request(self) -> str:
        self._requests += 1
        return f"client-{self.number}-{self.wire.instance_id}-{self._requests}"

    def lookup(self, prompt: int, request: str, seen: Round) -> int:
        """Chunks found; how long that took goes into `seen`."""
        began = time.monotonic()
        hit = self.wire.lookup(tokens_of(prompt), request, cache_salt=salt_of(prompt)) // CHUNK_TOKENS
        seen.lookup_s = max(seen.lookup_s, time.monotonic() - began)
        seen.hit_chunks += hit
        return hit

    def read(self, prompt: int, request: str, chunks: int, seen: Round) -> None:
        """Retrieves the first chunks of a prompt and compares them."""
        for layer in self._layers:
            layer.fill(0)
        tokens, salt, end = tokens_of(prompt), salt_of(prompt), chunks * CHUNK_TOKENS
        try:
            self.wire.retrieve(tokens, BLOCKS, request, end=end, cache_salt=salt)
        except Miss:
            seen.lost_chunks += chunks
            self.wire.free(tokens, request, end=end, cache_salt=salt)
            return
        for chunk in range(chunks):
            here = slice(chunk * BLOCKS_PER_CHUNK, (chunk + 1) * BLOCKS_PER_CHUNK)
            wanted = content_of(prompt, chunk)
            same = [np.array_equal(layer[:, here], wanted[number]) for number, layer in enumerate(self._layers)]
            seen.wrong_chunks += not all(same)

    def write(self, prompt: int, request: str, start: int, seen: Round) -> None:
        """Stores the chunks of a prompt from `start` on."""
        for chunk in range(start, CHUNKS):
            here, content = slice(chunk * BLOCKS_PER_CHUNK, (chunk + 1) * BLOCKS_PER_CHUNK), content_of(prompt, chunk)
            for number, layer in enumerate(self._layers):
                layer[:, here] = content[number]
        blocks, salt = BLOCKS[start * BLOCKS_PER_CHUNK :], salt_of(prompt)
        began = time.monotonic()
        try:
            self.wire.store(tokens_of(prompt), blocks, request, start=start * CHUNK_TOKENS, cache_salt=salt)
        except Refused:
            seen.refused_chunks += CHUNKS - start
        else:
            seen.stored_chunks += CHUNKS - start
        seen.store_s = time.monotonic() - began

    def one_round(self, prompt: int) -> Round:
        """As an inference engine does."""
        seen, request = Round(time.monotonic()), self.new_request()
        hit = self.lookup(prompt, request, seen)
        if hit:
            self.read(prompt, request, hit, seen)
        if hit < CHUNKS:
            self.write(prompt, request, hit, seen)
        self.wire.end_session(request)
        return seen

    def fresh_store(self, prompt: int) -> Round:
        """A prompt that nobody has looked up."""
        seen, request = Round(time.monotonic()), self.new_request()
        self.write(prompt, request, 0, seen)
        self.wire.end_session(request)
        return seen

    def rude_round(self, prompt: int, chance: random.Random) -> Round:
        """Something that well-behaved clients do rarely."""
        seen, request = Round(time.monotonic()), self.new_request()
        kind = chance.choice(["clear", "force", "ended", "twice", "freed", "left", "kept"])
        key = self.wire._key(tokens_of(prompt), 0, CHUNKS * CHUNK_TOKENS, request, salt_of(prompt), 1, None)
        if kind in ("clear", "force"):
            self.wire.clear(force=kind == "force")
        elif kind in ("ended", "twice"):
            self.wire.call("lookup", key, 1)
            if kind == "ended":
                self.wire.end_session(request)
            self.wire.free(tokens_of(prompt), request, end=self.lookup(prompt, request, seen) * CHUNK_TOKENS)
        elif kind == "freed":
            self.lookup(prompt, request, seen)
            self.wire.free(tokens_of(prompt), request, cache_salt=salt_of(prompt))
        elif kind == "left":
            self.wire.call("lookup", key, 1)
        else:
            self.lookup(prompt, request, seen)
        if kind != "left":
            self.wire.end_session(request)
        return seen


def run(arguments: dict[str, Any], log: TextIO, over: threading.Event) -> None:
    """Rounds until `over`."""
    number, role = arguments["number"], arguments["role"]
    chance = random.Random(arguments["seed"] * 1000 + number)
    with PromptClient(arguments["port"], number) as client:
        rounds = 0
        while not over.is_set():
            rounds += 1
            began = time.monotonic()
            try:
                if role == "storer":
                    seen = client.fresh_store(FRESH * (number + 1) + rounds)
                    over.wait(STORER_PAUSE_S)
                elif role == "rude" and chance.random() < RUDE_SHARE:
                    seen = client.rude_round(chance.randrange(arguments["prompts"]), chance)
                else:
                    seen = client.one_round(chance.randrange(arguments["prompts"]))
            except LarderClientError as error:
                seen = Round(began, error=f"{type(error).__name__}: {error}")
            log.write(json.dumps(asdict(seen)) + "\n")
            log.flush()
        log.write("idle\n")
        log.flush()
        sys.stdin.read()


def main(arguments: dict[str, Any]) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with open(arguments["log"], "w", encoding="utf-8") as log:
        run(arguments, log, over)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
