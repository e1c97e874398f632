"""diffusers' VQModel (Apache-2.0), as it is today and as it was before 0.17, and aMUSEd's, which is one."""

from collections.abc import Mapping
from typing import Any

from conversion.family import ENDS, MINUS_ONE_TO_ONE, ZERO_TO_ONE, Rules, compare, reading, rename, vqgan_plan
from conversion.plan import CheckpointError, Plan, Weights
from conversion.weights import choose_entry

RULES: Rules = [
    *ENDS,
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(\w+\.\w+)", r"encoder.stages.\1.blocks.\2.@\3"),
    (r"encoder\.down_blocks\.(\d+)\.attentions\.(\d+)\.(\w+(?:\.0)?\.\w+)", r"encoder.stages.\1.attentions.\2.@\3"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.(\w+)", r"encoder.downsamplers.\1.conv.\2"),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(\w+\.\w+)", r"decoder.stages.\1.blocks.\2.@\3"),
    (r"decoder\.up_blocks\.(\d+)\.attentions\.(\d+)\.(\w+(?:\.0)?\.\w+)", r"decoder.stages.\1.attentions.\2.@\3"),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.conv\.(\w+)", r"decoder.upsamplers.\1.conv.\2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(\w+\.\w+)", r"\1.mid.blocks.\2.@\3"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.(\w+(?:\.0)?\.\w+)", r"\1.mid.attentions.0.@\2"),
]
# fields that change what the net computes, and the only values that it has here
_ONLY = {"act_fn": ("silu", "swish"), "norm_type": ("group",), "_class_name": ("VQModel",)}


def plan(content: Mapping[str, Any], config: Mapping[str, Any] | None, weights: Weights, format: str) -> Plan:
    """The conversion of `diffusion_pytorch_model.*` with its config.json; `format` is `"diffusers"` or `"amused"`.

    Raises:
        CheckpointError: for what is not such a checkpoint, without a configuration (the number of groups of the norms
            stands nowhere else), and for one that differs from the tensors.
    """
    if config is None:
        raise CheckpointError(
            "a diffusers VQModel needs its config.json beside the weights: the number of groups of its norms stands "
            "nowhere else"
        )
    for name, values in _ONLY.items():
        if config.get(name, values[0]) not in values:
            raise CheckpointError(
                f"config.json has {name}={config[name]!r}, and only {' or '.join(values)} can be converted"
            )
    chosen = choose_entry(content, weights)
    names = rename(chosen.tensors, RULES)
    tensors = {
        # attention's maps are Linear there and 1x1 convolutions here
        name: tensor[..., None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        for name, tensor in ((names[key], tensor) for key, tensor in chosen.tensors.items())
    }
    made = vqgan_plan(
        format,
        tensors,
        {names[name]: key for name, key in chosen.origin.items()},
        ZERO_TO_ONE if format == "amused" else MINUS_ONE_TO_ONE,
        quantizer="vq",
        **_image_size(config),
        norm_num_groups=config.get("norm_num_groups", 32),
    )
    made.dropped, made.weights = chosen.dropped, chosen.weights
    with reading("config.json"):
        _compare(made, config)
    return made


def _compare(made: Plan, config: Mapping[str, Any]) -> None:
    ours = made.config
    levels = len(ours.channel_multiplier)
    down = ["AttnDownEncoderBlock2D" if i in ours.attention_levels else "DownEncoderBlock2D" for i in range(levels)]
    up = ["AttnUpDecoderBlock2D" if i in ours.attention_levels else "UpDecoderBlock2D" for i in range(levels)][::-1]
    fields = {
        "block_out_channels": (
            _list(config.get("block_out_channels")),
            ours.stage_channels,
        ),
        "layers_per_block": (config.get("layers_per_block"), ours.num_res_blocks),
        "in_channels": (config.get("in_channels"), ours.in_channels),
        "out_channels": (config.get("out_channels"), ours.in_channels),
        "latent_channels": (config.get("latent_channels"), ours.latent_channels),
        "num_vq_embeddings": (config.get("num_vq_embeddings"), ours.codebook_size),
        "vq_embed_dim": (_code_dim(config), ours.quantizer_dim),
        "mid_block_add_attention": (config.get("mid_block_add_attention"), ours.mid_attention),
        "down_block_types": (_list(config.get("down_block_types")), down),
        "up_block_types": (_list(config.get("up_block_types")), up),
    }
    compare(fields, "config.json")


def _image_size(config: Mapping[str, Any]) -> dict[str, int]:
    """`sample_size`, unless it is 32: diffusers' default, which says nothing of the pictures."""
    size = config.get("sample_size")
    return {"image_size": size} if isinstance(size, int) and size != 32 else {}


def _code_dim(config: Mapping[str, Any]) -> Any:
    """`vq_embed_dim`, which is `latent_channels` where it is not stated."""
    stated = config.get("vq_embed_dim")
    return config.get("latent_channels") if stated is None else stated


def _list(value: Any) -> list[Any] | None:
    return None if value is None else list(value)


__all__ = ["RULES", "plan"]
