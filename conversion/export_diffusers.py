"""A model of ours as a diffusers `VQModel`: its config.json and its tensors."""

import re
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lgq_hf import LGQConfig, LGQModel

# our names to diffusers', in the order in which they are tried
_RULES = [
    (r"encoder\.stem\.", "encoder.conv_in."),
    (r"encoder\.to_emb\.", "encoder.conv_out."),
    (r"decoder\.from_emb\.", "decoder.conv_in."),
    (r"decoder\.out\.", "decoder.conv_out."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"encoder\.downsamplers\.(\d+)\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"decoder\.upsamplers\.(\d+)\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"encoder\.stages\.", "encoder.down_blocks."),
    (r"decoder\.stages\.", "decoder.up_blocks."),
    (r"(encoder|decoder)\.mid\.", r"\1.mid_block."),
    (r"pre_quant\.", "quant_conv."),
    (r"post_quant\.", "post_quant_conv."),
    (r"quantizer\.codebook", "quantize.embedding.weight"),
]
_LAYERS = [
    (r"\.blocks\.", ".resnets."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.(q|k|v)\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj\.", r"\1.to_out.0."),
]
_FIXED = {
    "backbone": "vqgan",
    "stem_channels": None,
    "decoder_extra_block": True,
    "num_mid_blocks": 2,
    "norm_eps": 1e-6,
    "conv_bias": True,
    "downsample": "asymmetric_conv",
    "upsample": "nearest_conv",
    "shortcut_on_hidden": False,
    "adaptive_group_norm": False,
    "encoder_out_kernel": 3,
}


def export_diffusers(model: LGQModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of the `VQModel` that gives the same tokens and pictures.

    Codes that are compared by angle are written at length 1: the nearest of those is the one at the smallest angle, so
    tokens and pictures stay what they were, and the lengths of the table's rows are lost.

    Raises:
        ValueError: for what `VQModel` does not have, naming the field of the configuration.
    """
    config = model.config
    if config.quantizer not in ("vq", "simvq"):
        raise ValueError(
            f"quantizer='{config.quantizer}' cannot be exported: diffusers' VQModel takes the nearest code"
        )
    settings, tensors = diffusers_net(model)
    table = model.quantizer.get_parameter("codebook").detach()
    tensors["quantize.embedding.weight"] = F.normalize(table, dim=1) if config.distance == "cosine" else table.clone()
    return settings, tensors


def unsupported(config: LGQConfig) -> str | None:
    """The field, with its value, that keeps a net from being a `VQModel`; `None` for one that can be."""
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            return f"{name}={getattr(config, name)!r}"
    return "code_dim=None" if config.code_dim is None else None


def diffusers_net(model: LGQModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As [`export_diffusers`], for any lookup: encoder, decoder and the convolutions between them and the codes.

    Raises:
        ValueError: for a net that `VQModel` does not have, naming the field of the configuration.
    """
    config = model.config
    if (field := unsupported(config)) is not None:
        raise ValueError(f"{field} cannot be exported: diffusers' VQModel has no such net")
    levels = range(len(config.channel_multiplier))
    attention = [level in config.attention_levels for level in levels]
    down = ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attention]
    up = ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attention)]
    settings = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": config.stage_channels,
        "down_block_types": down,
        "up_block_types": up,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.num_res_blocks,
        "lookup_from_codebook": False,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.norm_num_groups,
        "norm_type": "group",
        "num_vq_embeddings": config.codebook_size,
        "sample_size": config.image_size,
        "vq_embed_dim": config.quantizer_dim,
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("quantizer."):
            continue
        if re.search(r"\.attentions\.\d+\.(q|k|v|proj)\.weight$", name):
            tensor = tensor[:, :, 0, 0]
        tensors[_name(name)] = tensor.detach().clone().contiguous()
    return settings, tensors


def _name(ours: str) -> str:
    theirs = next(re.sub(f"^{pattern}", target, ours) for pattern, target in _RULES if re.match(pattern, ours))
    for pattern, target in _LAYERS:
        theirs = re.sub(pattern, target, theirs)
    return theirs


__all__ = ["diffusers_net", "export_diffusers", "unsupported"]
