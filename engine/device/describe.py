"""What GET /status tells about a client's registered KV tensors."""

from engine.device.geometry import GroupGeometry, KVGeometry, LayerGeometry
from engine.kv_layout import dimensions

_SYMBOLIC_SHAPES = {
    "TWO_NB_BS_NH_HS": "[2, NB, BS, NH, HS]",
    "TWO_NB_NH_BS_HS": "[2, NB, NH, BS, HS]",
    "NB_TWO_BS_NH_HS": "[NB, 2, BS, NH, HS]",
    "NB_TWO_NH_BS_HS": "[NB, 2, NH, BS, HS]",
    "NB_BS_NH_TWO_HS": "[NB, BS, NH, 2*HS]",
    "NB_NH_BS_TWO_HS": "[NB, NH, BS, 2*HS]",
    "NB_BS_HS": "[NB, BS, HS]",
}


def describe_geometry(geometry: KVGeometry) -> dict[str, object]:
    """num_layers, num_blocks, cache_size_per_token (bytes over all groups' layers), kernel_groups."""
    kernel_groups: list[dict[str, object]] = []
    per_token = 0
    for position, group in enumerate(geometry.groups):
        per_token += sum(layer.chunk_bytes(1) for layer in group.layers) // group.tokens_per_block
        for layers in _alike(group.layers):
            kernel_groups.append(_kernel_group(len(kernel_groups), group, layers, position))
    return {
        "num_layers": sum(len(group.layers) for group in geometry.groups),
        "num_blocks": min((group.num_blocks for group in geometry.groups if group.layers), default=0),
        "cache_size_per_token": per_token,
        "kernel_groups": kernel_groups,
    }


def describe_layers(geometry: KVGeometry) -> dict[str, dict[str, object]]:
    """layer_0, layer_1, ... -> shape, dtype, device."""
    return {
        f"layer_{layer.index}": {
            "shape": list(layer.descriptor.shape),
            "dtype": f"torch.{layer.descriptor.dtype}",
            "device": "cpu",
        }
        for layer in geometry.layers
    }


def _alike(layers: tuple[LayerGeometry, ...]) -> list[list[LayerGeometry]]:
    """Layers of a group, split where dtype or shape differ."""
    alike: dict[tuple[object, ...], list[LayerGeometry]] = {}
    for layer in layers:
        alike.setdefault((layer.descriptor.dtype, layer.descriptor.shape), []).append(layer)
    return list(alike.values())


def _kernel_group(number: int, group: GroupGeometry, layers: list[LayerGeometry], position: int) -> dict[str, object]:
    first = layers[0]
    return {
        "kernel_group_idx": number,
        "engine_group_idx": group.group.engine_group_id,
        "object_group_idx": 0,
        "kv_group_idx": position,
        "num_layers": len(layers),
        "layer_indices": [layer.index for layer in layers],
        "tokens_per_block": group.tokens_per_block,
        "slots_per_block": first.slots,
        "dtype": f"torch.{first.descriptor.dtype}",
        "engine_kv_concrete_shape": f"{len(layers)} x {dimensions(first.descriptor.shape)}",
        "is_mla": first.format_name == "NB_BS_HS",
        "engine_kv_format": f"NL_X_{first.format_name}",
        "engine_kv_shape": f"NL x {_SYMBOLIC_SHAPES[first.format_name]}",
        "attention_backend": "unknown",
    }
