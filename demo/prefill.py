"""The first process of the demonstration: computes a prompt's KV and stores it.

python -m demo.prefill tcp://127.0.0.1:5555 2000      prints JSON: tokens stored, seconds of prefill and of store
"""

import json
import sys
import time

import torch
from transformers import DynamicCache

from demo import model
from engine.dataplane.client import LarderClient, SharedKV


def main(url: str, prompt_tokens: int) -> dict[str, float]:
    prompt = model.make_prompt(prompt_tokens)
    llama = model.make_model()
    cache = DynamicCache()
    started = time.perf_counter()
    model.prefill(llama, prompt, cache)
    prefilled = time.perf_counter()

    with LarderClient(url, model.MODEL_NAME) as client, SharedKV(model.kv_shapes(prompt_tokens), "float32") as memory:
        whole_chunks = prompt_tokens // client.chunk_size * client.chunk_size
        model.copy_to_blocks(cache, [torch.from_numpy(layer) for layer in memory.layers], whole_chunks)
        client.register_shared(memory)
        before_store = time.perf_counter()
        client.store(prompt, model.block_ids(whole_chunks), "prefill")
        stored = time.perf_counter()
        client.end_session("prefill")
    return {"stored_tokens": whole_chunks, "prefill_s": prefilled - started, "store_s": stored - before_store}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
