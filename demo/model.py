"""A small Llama with seeded random weights, and its KV between transformers' cache and paged shared memory.

The weights are noise, so the text is noise; but the arithmetic is that of a real model, and one wrong byte of KV
changes the tokens that follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

SEED = 20
VOCABULARY = 8192
LAYERS = 8
KV_HEADS = 4
HEAD_DIM = 64
BLOCK_TOKENS = 16
MODEL_NAME = "demo/llama-noise"


@dataclass(frozen=True)
class Continuation:
    """Tokens a prompt was continued with, and the seconds until the first of them was known."""

    tokens: list[int]
    first_token_s: float


def make_model() -> LlamaForCausalLM:
    """The same model in every process, in float32, ready for inference."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()


def make_prompt(length: int) -> list[int]:
    """`length` random token ids, the same in every process."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def prefill(model: LlamaForCausalLM, tokens: Sequence[int], cache: DynamicCache) -> int:
    """The likeliest token after `tokens`, which follow what `cache` holds; `cache` then holds them too."""
    with torch.inference_mode():
        output = model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return int(output.logits[0, -1].argmax())


def decode(model: LlamaForCausalLM, first: int, count: int, cache: DynamicCache) -> list[int]:
    """`count` tokens beginning with `first`, each the likeliest after those before it."""
    tokens = [first]
    while len(tokens) < count:
        tokens.append(prefill(model, tokens[-1:], cache))
    return tokens


def copy_to_blocks(cache: DynamicCache, layers: Sequence[torch.Tensor], tokens: int) -> None:
    """Writes the KV of the first `tokens` positions into the first blocks of each layer's memory.

    `cache` has (1, KV_HEADS, positions, HEAD_DIM) per layer for keys and for values; `layers` has one tensor
    (2, blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM) per layer. `tokens` is a multiple of BLOCK_TOKENS.
    """
    for memory, (keys, values) in zip(layers, layer_tensors(cache), strict=True):
        for plane, tensor in enumerate((keys, values)):
            pages = tensor[0, :, :tokens].transpose(0, 1).reshape(-1, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
            memory[plane, : len(pages)] = pages


def copy_from_blocks(layers: Sequence[torch.Tensor], tokens: int) -> DynamicCache:
    """The cache of transformers that holds the first `tokens` positions of the blocks; the reverse of the above."""
    blocks = tokens // BLOCK_TOKENS
    cache = DynamicCache()
    for number, memory in enumerate(layers):
        keys, values = (
            memory[plane, :blocks].reshape(tokens, KV_HEADS, HEAD_DIM).transpose(0, 1).unsqueeze(0).clone()
            for plane in (0, 1)
        )
        cache.update(keys, values, number)
    return cache


def layer_tensors(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def kv_shapes(tokens: int) -> list[tuple[int, ...]]:
    """The shape of each layer's paged memory with room for `tokens` positions."""
    blocks = -(-tokens // BLOCK_TOKENS)
    return [(2, blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)] * LAYERS


def block_ids(tokens: int) -> list[int]:
    """The blocks of the first `tokens` positions: here simply the first ones."""
    return list(range(tokens // BLOCK_TOKENS))
