"""The README's tour: stores the KV of a prompt and gets it back. Needs a running Larder, no model and no torch."""

import sys

from engine.dataplane.client import LarderClient, SharedKV

url = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555"
prompt = list(range(1000))  # token ids; only whole chunks of 256 are cached
shapes = [(2, 64, 16, 8, 64)] * 4  # per layer: K and V, 64 blocks of 16 tokens, 8 heads of 64
blocks = list(range(48))  # where the first 3 chunks of the prompt lie: 48 blocks of 16 tokens

with SharedKV(shapes, "float16") as kv, LarderClient(url, "my-model") as client:
    client.register_shared(kv)
    print("found before:", client.lookup(prompt, "request-1"), "tokens")
    for number, layer in enumerate(kv.layers, start=1):
        layer[:, :48] = number  # stands for what a model would compute
    client.store(prompt, blocks, "request-1")

    for layer in kv.layers:
        layer[:] = 0  # forget it
    found = client.lookup(prompt, "request-2")
    client.retrieve(prompt, blocks, "request-2", end=found)
    last = [float(layer[1, 47, 15, 7, 63]) for layer in kv.layers]
    print("found after: ", found, "tokens, and each layer holds", last)
