"""The second process of the demonstration: continues the prompt, once from stored KV and once from nothing.

python -m demo.resume tcp://127.0.0.1:5555 2000 32    prints JSON: both continuations, and their first token's time
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

from demo import model
from demo.model import Continuation
from engine.dataplane.client import LarderClient, SharedKV


def continue_from(
    llama: LlamaForCausalLM, rest: Sequence[int], count: int, cache: DynamicCache, started: float
) -> Continuation:
    """`count` tokens after `cache` and `rest`; the first one's time counts from `started`."""
    first = model.prefill(llama, rest, cache)
    first_token_s = time.perf_counter() - started
    return Continuation(model.decode(llama, first, count, cache), first_token_s)


def with_larder(llama: LlamaForCausalLM, prompt: Sequence[int], count: int, url: str) -> tuple[int, Continuation]:
    """How many tokens were found stored, and the continuation that computes only the others."""
    with LarderClient(url, model.MODEL_NAME) as client, SharedKV(model.kv_shapes(len(prompt)), "float32") as memory:
        client.register_shared(memory)
        started = time.perf_counter()
        # The last token is always computed: its output is what the next one is chosen from.
        hit = client.lookup(prompt, "resume", end=len(prompt) - 1)
        client.retrieve(prompt, model.block_ids(hit), "resume", end=hit)
        cache = model.copy_from_blocks([torch.from_numpy(layer) for layer in memory.layers], hit)
        continuation = continue_from(llama, prompt[hit:], count, cache, started)
        client.end_session("resume")
    return hit, continuation


def main(url: str, prompt_tokens: int, count: int) -> dict[str, Any]:
    prompt = model.make_prompt(prompt_tokens)
    llama = model.make_model()
    model.prefill(llama, prompt[: model.BLOCK_TOKENS], DynamicCache())  # the first forward pass of a process is slow
    hit, cached = with_larder(llama, prompt, count, url)
    computed = continue_from(llama, prompt, count, DynamicCache(), time.perf_counter())
    return {"hit_tokens": hit, "with_larder": asdict(cached), "without": asdict(computed)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
